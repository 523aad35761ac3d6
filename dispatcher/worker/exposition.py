"""The numbers of several workers as one answer for Prometheus: each sample gets the label `worker`.

Works on the text alone, so that whoever merges needs no library for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# The name of a sample, and whether labels follow.
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{?)")


def merged(expositions: Mapping[int, str]) -> str:
    """Merge expositions by the number of the worker that each is of; every family comes once, with its heading."""
    headings: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for number, text in expositions.items():
        family = ""
        known = set(headings)
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ", 3)[2]
                if family not in known:
                    headings.setdefault(family, []).append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(_labelled(line, number))
    return "".join(
        f"{line}\n"
        for family in dict.fromkeys([*headings, *samples])
        for line in (*headings.get(family, ()), *samples.get(family, ()))
    )


def family(name: str, kind: str, told: str, values: Mapping[str, float]) -> str:
    """Write a family of our own; the keys of `values` are labels as they stand in braces, such as `state="running"`."""
    lines = [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{{{labels}}} {float(value)}" for labels, value in values.items()]
    return "".join(f"{line}\n" for line in lines)


def _labelled(sample: str, number: int) -> str:
    found = _SAMPLE.match(sample)
    if found is None:
        return sample
    name, brace = found.groups()
    rest = sample[found.end() :]
    label = f'worker="{number}"'
    if not brace:
        return f"{name}{{{label}}}{rest}"
    return f"{name}{{{label}{rest}" if rest.startswith("}") else f"{name}{{{label},{rest}"
