from __future__ import annotations

import json
import os
import subprocess
import sys

CODE = """
import json
from dispatcher.plugins.registry import load_registry
registry = load_registry()
registry.load_all()
good = registry.handlers["acme_score"]
broken = registry.broken["dispatcher.handlers", "acme_broken"]
print(json.dumps({
    "good": [good.name, good.distribution, good.version, good.target.__name__],
    "broken": [broken.name, broken.distribution, broken.version, broken.reason],
    "others": sorted(registry.handlers),
}))
"""


def test_the_good_handler_works_and_the_broken_one_is_reported_by_name(acme, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(acme)}
    found = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    told = json.loads(found.stdout)
    assert told["good"] == ["acme_score", "acme-dispatcher-handlers", "1.2.3", "Score"]
    assert told["broken"][:3] == ["acme_broken", "acme-dispatcher-handlers", "1.2.3"]
    assert told["broken"][3] == "ModuleNotFoundError: No module named 'acme_library_that_is_not_installed'"
    assert "send_sms" in told["others"]
