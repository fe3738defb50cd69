"""Compares geventws with its peers: python benchmarks/run.py"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from contenders import CONTENDERS, Contender
from installing import available, build_wsload, make_certificate
from measuring import Cores, Run, measure
from report import document, heading, table, write_json
from targets import markdown, needed
from works import WORKS, Work

_EXAMPLES = """\
examples:
  python benchmarks/run.py                                       everything: about {minutes} minutes
  python benchmarks/run.py --work echo 64k --server geventws picows --rounds 5
  python benchmarks/run.py --seconds 1 --rounds 1                a quick look

Each server runs alone on one core and wsload on another; in every round all servers take their turn. The first run
installs the peers into benchmarks/.peers. geventws itself is this checkout, run by the Python that runs this.
"""


def main() -> int:
    """Measures what the command line asks for and prints the tables; 1 where one of ours went wrong."""
    options = _parse()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    works = [WORKS[name] for name in options.work]
    if options.targets:
        options.server = list(dict.fromkeys(name for work in works for name in needed(work.name)))
    cores = Cores(*options.cores)
    try:
        wsload, speaks_tls = build_wsload()
        contenders = available([CONTENDERS[name] for name in options.server])
    except KeyboardInterrupt:
        return 130
    except (OSError, subprocess.CalledProcessError) as error:
        _say(f"wsload can't be built (it takes a C compiler and zlib's header): {error}")
        return 2
    works = _possible(works, speaks_tls)
    if not works:
        _say("there is no work to measure")
        return 2
    if not contenders:
        _say("there is no server to measure")
        return 2
    runs: list[Run] = []
    interrupted = False
    try:
        _measure_all(runs, wsload, works, contenders, options.rounds, options.seconds, cores, options.targets)
    except KeyboardInterrupt:
        interrupted = True
        _say("interrupted; what was measured until now:")
    _print_tables(works, runs, options.baseline)
    if runs:
        results = document(works, runs, {name: str(value) for name, value in vars(options).items()})
        if options.json:
            write_json(options.json, results)
            _say(f"all runs are in {options.json}")
        if options.targets:
            print(markdown(results), flush=True)
    if interrupted:
        return 130
    return int(any(CONTENDERS[run.server].ours and run.outcome not in ("right", "unable") for run in runs))


def _measure_all(
    runs: list[Run],
    wsload: Path,
    works: Sequence[Work],
    contenders: Sequence[Contender],
    rounds: int,
    seconds: int,
    cores: Cores,
    targets: bool,
) -> None:
    """Appends to ``runs`` as it goes, so that an interruption loses nothing."""
    for work in works:
        for round_ in range(1, rounds + 1):
            for contender in contenders:
                if targets and contender.name not in needed(work.name):
                    continue
                run = measure(wsload, work, contender, round_, seconds, cores)
                runs.append(run)
                _say(f"{work.name} {round_}/{rounds} {contender.name}: {_in_short(run, work)}")


def _in_short(run: Run, work: Work) -> str:
    words = [] if run.outcome == "right" else [f"{run.outcome.upper()} {run.remark}".strip()]
    if work.pinged and run.server_cpu is not None:
        words.append(f"{run.server_cpu:.2%} of a core")
    elif run.connection_bytes is not None:
        words.append(f"{run.connection_bytes:,.0f} bytes a connection")
    elif run.rate is not None:
        words.append(f"{run.rate:,.0f} {work.unit}/s")
    return ", ".join(words)


def _possible(works: Sequence[Work], speaks_tls: bool) -> list[Work]:
    """The works without those over TLS where there can't be any."""
    if not any(work.tls for work in works):
        return list(works)
    reason = "" if speaks_tls else "wsload was compiled without OpenSSL's headers"
    try:
        make_certificate()
    except (OSError, subprocess.CalledProcessError) as error:
        reason = f"no certificate can be made: {error}"
    if not reason:
        return list(works)
    for work in works:
        if work.tls:
            _say(f"left out: {work.name}: {reason}")
    return [work for work in works if not work.tls]


def _print_tables(works: Sequence[Work], runs: Sequence[Run], baseline: str) -> None:
    if not runs:
        return
    print(f"\n{heading(runs, baseline)}")
    for work in works:
        if chosen := [run for run in runs if run.work == work.name]:
            print(f"\n{table(work, chosen, baseline)}")
    print(flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _parse() -> argparse.Namespace:
    usual = [contender.name for contender in CONTENDERS.values() if not contender.moving]
    pairs = [(work, CONTENDERS[name]) for work in WORKS.values() for name in usual]
    everything = sum(3 * (50 if work.pinged else 3 + 2) for work, contender in pairs if not contender.lacks(work)) // 60
    parser = argparse.ArgumentParser(
        description="Compares geventws with other WebSocket servers on this machine (Linux, two cores or more).",
        epilog=_EXAMPLES.format(minutes=everything) + _listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = partial(parser.add_argument, metavar="NAME")
    add("--work", nargs="+", choices=WORKS, default=list(WORKS), help="what to measure (default: all works)")
    add("--server", nargs="+", choices=CONTENDERS, default=usual, help="whom (default: all but moving-*)")
    add("--baseline", choices=CONTENDERS, default="geventws", help="whom the ratios compare with (default: geventws)")
    add("--rounds", type=positive, default=3, metavar="N", help="rounds, told by their medians (default: 3)")
    add("--seconds", type=positive, default=3, metavar="S", help="seconds of each measurement (default: 3)")
    parser.add_argument("--targets", action="store_true", help="only what targets.py compares, and its table")
    add("--json", type=Path, metavar="FILE", help="where to write every run and the medians")
    add("--cores", type=two_cores, default=(0, 1), metavar="A,B", help="the cores of server and client (default: 0,1)")
    options = parser.parse_args()
    if not shutil.which("taskset"):
        parser.error("taskset (of util-linux) is needed to keep server and client on their cores")
    return options


def _listing() -> str:
    works = [f"  {work.name:<18} {work.title}" for work in WORKS.values()]
    servers = [f"  {contender.name:<18} {contender.remark}".rstrip() for contender in CONTENDERS.values()]
    return "\n".join(["\nworks:", *works, "\nservers:", *servers])


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("a whole number above 0, please")
    return int(text)


def two_cores(text: str) -> tuple[int, int]:
    numbers = text.split(",")
    usable = os.sched_getaffinity(0)
    if len(numbers) != 2 or not all(number.isdigit() and int(number) in usable for number in numbers):
        raise argparse.ArgumentTypeError(f"two of the cores {sorted(usable)}, please, as in 0,1")
    return int(numbers[0]), int(numbers[1])


if __name__ == "__main__":
    sys.exit(main())
