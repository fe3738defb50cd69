"""The memory that a subscription to a topic takes: python benchmarks/subscriptions.py

Idle sessions of one handler, without subscriptions and with some. What they differ by is divided by the subscriptions.
"""

from __future__ import annotations

import argparse
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from contenders import CONTENDERS
from installing import available, build_wsload
from measuring import Cores, Run, measure
from report import environment, write_json
from run import positive
from works import Work

__all__ = ["AT_MOST", "CASES", "Case", "bytes_of"]

#: Bytes of one subscription.
AT_MOST = 200
SESSIONS = 10_000


@dataclass(frozen=True)
class Case:
    """So many subscriptions of each session, each to a topic that so many sessions share."""

    topics: int
    sharing: int

    @property
    def title(self) -> str:
        """What it is."""
        if not self.topics:
            return "no subscription"
        return f"{self.topics} of each session, topics of {self.sharing:,}"

    @property
    def work(self) -> Work:
        """How it is measured."""
        path = f"/subscribed?topics={self.topics}&sharing={self.sharing}"
        return Work(f"{self.topics} of {self.sharing}", self.title, "hold", (f"-c{SESSIONS}",), path=path)


NOTHING = Case(0, SESSIONS)
CASES = (Case(1, SESSIONS), Case(10, SESSIONS), Case(10, 20))


def bytes_of(case: Case, runs: list[Run]) -> float | None:
    """Bytes of a subscription: medians of right runs. None where there are none."""
    with_, without = (
        [run.connection_bytes for run in runs if run.work == each.work.name and run.outcome == "right"]
        for each in (case, NOTHING)
    )
    known = [[value for value in values if value is not None] for values in (with_, without)]
    return (median(known[0]) - median(known[1])) / case.topics if all(known) else None


def main() -> int:
    """Measures and prints; 1 where a subscription takes too much, or nothing was measured."""
    parser = argparse.ArgumentParser(description="Measures the memory that a subscription to a topic takes.")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every run")
    options = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    wsload, _ = build_wsload()
    contenders = available([CONTENDERS["geventws"]])
    runs: list[Run] = []
    for round_ in range(1, options.rounds + 1) if contenders else ():
        for case in (NOTHING, *CASES):
            run = measure(wsload, case.work, contenders[0], round_, 1, Cores(0, 1))
            runs.append(run)
            print(f"{case.title}: {run.outcome} {run.remark} {run.connection_bytes or 0:,.0f} B", file=sys.stderr)
    failed = False
    print("\n| subscriptions | bytes of one | at most | |\n|---|---|---|---|")
    for case in CASES:
        value = bytes_of(case, runs)
        kept = value is not None and value <= AT_MOST
        failed |= not kept
        shown = "-" if value is None else f"{value:,.0f}"
        print(f"| {case.title} | {shown} | {AT_MOST} | {'met' if kept else '**missed**'} |", flush=True)
    if options.json:
        write_json(options.json, {"environment": environment(), "runs": [asdict(run) for run in runs]})
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
