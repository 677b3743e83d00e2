#!/usr/bin/env python3
"""Runs the policy tests: all pass, none got lost, and every line of policy is covered.

Usage: rego_tests.py EXPECTED, the number of cases that there are at least. Needs `opa` on PATH.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

POLICIES = Path(__file__).resolve().parent.parent / "policies"
# Run inside the directory: from outside, OPA reports coverage under two names for the same file.
# Without our capabilities: OPA runs `test_x[note]` by a built-in that policies may not use; `opa check` applies them.
OPA_TEST = ["opa", "test", "--timeout", "300s", "--bundle", ".", "--schema", "schemas"]


def main(expected: int) -> int:
    report = _opa("--format", "json")
    if report.returncode != 0:
        # OPA's own report for people says which case failed and why.
        print(_opa().stdout or report.stderr)
        return 1
    cases = sum(_count(test) for test in json.loads(report.stdout))
    uncovered = _uncovered(json.loads(_opa("--coverage", "--format", "json").stdout)["files"])
    print(f"{cases} cases passed; {len(uncovered)} lines of policy not covered")
    for line in uncovered:
        print(f"policies/{line}: no test covers this")
    if cases < expected:
        print(f"{expected} cases were expected: are there test files that OPA no longer finds? See tools/check.sh")
    return int(cases < expected or bool(uncovered))


def _opa(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*OPA_TEST, *flags], cwd=POLICIES, capture_output=True, text=True, check=False)


def _count(test: dict[str, Any]) -> int:
    """Cases of one rule: a rule `test_x[note]` has one for each note."""
    return sum(map(_count, test.get("sub_results", {}).values())) or 1


def _uncovered(files: dict[str, Any]) -> list[str]:
    """`file:line: text` of every policy line that no test reached."""
    found = []
    for name, report in sorted(files.items()):
        if name.endswith("_test.rego"):
            continue
        text = (POLICIES / name).read_text().splitlines()
        lines = {
            row for part in report.get("not_covered", []) for row in range(part["start"]["row"], part["end"]["row"] + 1)
        }
        found += [f"{name}:{row}: {text[row - 1].strip()}" for row in sorted(lines)]
    return found


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
