"""Fails when a report of pytest (--junitxml) tells of a skipped test, or of no test: in CI everything is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def main(path: Path) -> int:
    """Print what was skipped and why; the exit status."""
    if not path.exists():
        print(f"ci: pytest wrote no report {path.name}")
        return 1
    cases = ElementTree.parse(path).getroot().findall(".//testcase")
    skipped = 0
    for case in cases:
        for reason in case.findall("skipped"):
            # An expected failure is reported as a skip too, but it did run.
            if reason.get("type") != "pytest.xfail":
                skipped += 1
                print(f"ci: skipped: {case.get('classname')}::{case.get('name')}: {reason.get('message')}")
    if skipped:
        print(f"ci: {skipped} tests skipped, which counts as a failure here")
    if not cases:
        print("ci: pytest ran no test")
    return 1 if skipped or not cases else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
