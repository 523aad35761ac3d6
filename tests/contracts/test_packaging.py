"""What is promised to those who install: pins with hashes, an image and a Makefile that name what exists."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dispatcher.settings import load_settings

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
MAKEFILE = (ROOT / "Makefile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
WITH_POSTGRES = yaml.safe_load((ROOT / "compose.postgresql.yaml").read_text())


def pins(name):
    """Return version by distribution as requirements/<name>.txt pins them."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, flags=re.MULTILINE))


def declared():
    """Return what pyproject.toml asks for, by the file that has to pin it."""
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return {
        "build": PYPROJECT["build-system"]["requires"],
        "run": project["dependencies"],
        "test": [*project["dependencies"], *extras],
    }


def instructions(keyword):
    return re.findall(rf"^\s*(?:HEALTHCHECK .*)?\b{keyword} (.*)$", DOCKERFILE, flags=re.MULTILINE)


@pytest.mark.parametrize("name", ["build", "run", "test"])
def test_what_the_project_asks_for_is_pinned_to_a_version_that_it_accepts(name):
    for requirement in map(Requirement, declared()[name]):
        assert pins(name)[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("name", ["build", "run", "test"])
def test_every_pin_has_hashes_and_no_line_names_an_index(name):
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    kinds = [
        line for line in lines if line and not re.match(r" *#|[a-z0-9.-]+==\S+ \\$| +--hash=sha256:[0-9a-f]{64}", line)
    ]

    assert kinds == []
    for line, following in itertools.pairwise(lines):
        assert "==" not in line or following.lstrip().startswith("--hash=sha256:")


def test_what_is_tested_is_what_runs():
    assert pins("run").items() <= pins("test").items()


def test_the_image_copies_what_exists():
    sources = [source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]]

    assert {"dispatcher", "handlers", "config"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_image_lets_docker_see_every_file_that_it_copies():
    seen = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    sources = [source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]]

    assert {source.partition("/")[0] for source in sources} == seen


def test_the_image_runs_the_console_script_as_nobody_special():
    entry = [json.loads(line) for line in instructions("ENTRYPOINT")]

    assert entry == [["dispatcher"]]
    assert entry[0][0] in PYPROJECT["project"]["scripts"]
    assert re.findall(r"^USER (\d+):\d+$", DOCKERFILE, flags=re.MULTILINE) not in ([], ["0"])
    assert re.search(r"^VOLUME /var/lib/dispatcher$", DOCKERFILE, flags=re.MULTILINE)
    assert "DISPATCHER_STORE=sqlite:////var/lib/dispatcher/" in DOCKERFILE


def test_the_verbs_that_the_image_and_the_makefile_use_exist():
    commands = [json.loads(line) for line in instructions("CMD")]
    verbs = {[word for word in command if not word.startswith("-")][-1] for command in commands}
    verbs |= set(re.findall(r"bin/dispatcher (\w+)", MAKEFILE))

    assert verbs == {"run", "doctor", "demo"}
    for verb in sorted(verbs):
        command = [sys.executable, "-P", "-m", "dispatcher", verb, "--help"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert told.returncode == 0, f"{verb}: {told.stderr}"


def test_the_compose_file_gives_the_worker_settings_that_it_takes():
    settings = load_settings(COMPOSE["services"]["worker"]["environment"])

    assert settings.amqp_url is not None
    assert urlsplit(settings.amqp_url).password is None
    assert str(settings.amqp_password_file) == "/run/secrets/broker_password"
    assert settings.http_address == ("0.0.0.0", 9464)


def test_the_compose_file_opens_nothing_to_other_machines():
    ports = [port for service in COMPOSE["services"].values() for port in service["ports"]]

    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_the_compose_file_names_only_volumes_secrets_and_services_that_it_has():
    services, secrets, volumes = COMPOSE["services"], COMPOSE["secrets"], COMPOSE["volumes"]

    for service in services.values():
        assert set(service["secrets"]) <= set(secrets)
        assert set(service.get("depends_on", ())) <= set(services)
        sources = [volume.partition(":")[0] for volume in service["volumes"]]
        assert [source for source in sources if source not in volumes and not (ROOT / source).is_dir()] == []
    # What holds a password is neither built into the image nor committed.
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert {secret["file"] for secret in secrets.values()} == {"./secrets/broker_password"}


def test_the_compose_file_with_a_database_gives_the_worker_settings_that_it_takes():
    worker = WITH_POSTGRES["services"]["worker"]
    settings = load_settings(COMPOSE["services"]["worker"]["environment"] | worker["environment"])

    assert settings.store_kind == "postgresql"
    assert urlsplit(settings.store).hostname in WITH_POSTGRES["services"]
    assert urlsplit(settings.store).password is None
    assert str(settings.store_password_file) == "/run/secrets/store_password"
    assert settings.workers == 2


def test_the_compose_file_with_a_database_opens_nothing_and_names_what_there_is():
    services = WITH_POSTGRES["services"]

    assert services.keys() - COMPOSE["services"].keys() == {"database"}
    assert [name for name, service in services.items() if "ports" in service] == []
    for service in services.values():
        assert set(service["secrets"]) <= set(WITH_POSTGRES["secrets"])
        assert set(service.get("depends_on", ())) <= set(services)
    assert {volume.partition(":")[0] for volume in services["database"]["volumes"]} == set(WITH_POSTGRES["volumes"])
    assert {secret["file"] for secret in WITH_POSTGRES["secrets"].values()} == {"./secrets/store_password"}


def test_the_makefile_runs_a_benchmark_that_exists():
    packages = re.findall(r"\.venv/bin/python -m (bench\S*)", MAKEFILE)

    assert packages
    assert [package for package in packages if not (ROOT / package / "__main__.py").exists()] == []


def test_ci_runs_one_of_the_two_commands_of_the_readme():
    script = ROOT / ".ci" / "run"
    readme = (ROOT / "README.md").read_text()

    assert "make demo" in readme
    assert "make test" in readme
    assert script.read_text().endswith("exec make test\n")
    assert script.stat().st_mode & 0o111
