"""Fills the figures of the fault tests into a document.

    python -m pytest -m faults tests/faults --figures FIGURES.jsonl
    python benchmarks/fault_table.py FIGURES.jsonl docs/reliability.md

Several runs, and runs against several servers, may stand in one file. In the document ``<!-- {figure:TEST/NAME} -->``
asks for the figures of the test function TEST whose names contain NAME. What stands behind it, up to the end of the
cell or the next ``<``, is replaced: by the median of the runs, from the least to the most where several figures match.
A figure that was not measured is told on standard error, and its place is left as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

MARKER = re.compile(r"(<!-- \{figure:(?P<test>\w+)(?:/(?P<name>[^}]*))?\} -->)[^|<\n]*")


def main() -> None:
    """Rewrites the document; the exit status is 1 where a figure is missing."""
    parser = argparse.ArgumentParser(description="Fills the figures of the fault tests into a document.")
    parser.add_argument("figures", type=Path, help="what --figures of the fault tests wrote")
    parser.add_argument("document", type=Path, help="the document with the markers, which is rewritten")
    options = parser.parse_args()
    figures = [json.loads(line) for line in options.figures.read_text().splitlines() if line.strip()]
    text, missing = filled(options.document.read_text(), figures)
    options.document.write_text(text)
    for marker in missing:
        print(f"there is no figure for {marker}", file=sys.stderr)
    sys.exit(1 if missing else 0)


def filled(text: str, figures: Iterable[dict[str, Any]]) -> tuple[str, list[str]]:
    """``text`` with its figures, and the markers that there is no figure for."""
    known = list(figures)
    missing = []

    def fill(match: re.Match[str]) -> str:
        name = match["name"] or ""
        found = [entry for entry in known if _function(entry["test"]) == match["test"] and name in entry["name"]]
        if not found:
            missing.append(match[1])
            return match[0]
        return f"{match[1]} {described(name, found)} "

    return MARKER.sub(fill, text), missing


def described(name: str, figures: Iterable[dict[str, Any]]) -> str:
    """The figures of one marker in words: ``RSS delta 0.9 MiB (worker), 0.8 MiB (standalone)``."""
    servers: dict[str, dict[str, list[Any]]] = {}
    units: dict[str, str] = {}
    for entry in figures:
        by_name = servers.setdefault(entry["server"], {})
        by_name.setdefault(f"{entry['test']} {entry['name']}", []).append(entry["value"])
        units[entry["server"]] = entry["unit"]
    parts = []
    for server, by_name in servers.items():
        part = f"{_range([_typical(values) for values in by_name.values()])} {units[server]}".strip()
        parts.append(part if len(servers) == 1 else f"{part} ({server})")
    return f"{name} {', '.join(parts)}".strip()


def _function(test: str) -> str:
    return test.partition("[")[0]


def _typical(values: list[Any]) -> Any:
    """The median of the runs; of what is no number, the last."""
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return median(numbers) if len(numbers) == len(values) else values[-1]


def _range(values: list[Any]) -> str:
    if len(values) > 1 and all(isinstance(value, (int, float)) for value in values):
        least, most = _number(min(values)), _number(max(values))
        return least if least == most else f"{least} to {most}"
    return ", ".join(dict.fromkeys(map(_number, values)))


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    # It stands in a cell of a table.
    return str(value).replace("|", "/").replace("<", "(")


if __name__ == "__main__":
    main()
