"""Runs geventws.connect against the fuzzing server of the Autobahn testsuite, and judges its verdicts as run.py does.

    python tests/autobahn/client.py                         # all cases
    python tests/autobahn/client.py --cases '1.*,7.*'

It uses the build that is installed, and the pure one with GEVENTWS_PURE=1.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

# Beside this file, and no package.
from run import ROOT, RigError, free_port, install_suite, judge, read_index, suite_cases, wait_until_accepting

import geventws

AGENT = "geventws"


@contextlib.contextmanager
def fuzzing_server(python2: Path, cases: Sequence[str], report: Path) -> Iterator[str]:
    """Runs the fuzzing server on a free port; yields its URL, and stops it by its pid."""
    address = f"127.0.0.1:{free_port()}"
    specification = {
        "url": f"ws://{address}",
        "webport": 0,
        "outdir": str(report / "0"),
        "cases": list(cases),
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    path, log = report / "server.json", report / "server.log"
    path.write_text(json.dumps(specification, indent=1))
    command = [str(python2), "-u", "-m", "autobahntestsuite.wstest", "-m", "fuzzingserver", "-s", str(path)]
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, cwd=report, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until_accepting(address, server, log)
        yield f"ws://{address}"
    finally:
        server.kill()
        server.wait()


def converse(url: str, number: int) -> None:
    """Echoes what a case sends, to its end."""
    session = geventws.connect(
        f"{url}/runCase?case={number}&agent={AGENT}",
        extensions=[geventws.PermessageDeflate()],
        max_frame_size=32 * 1024 * 1024,
        max_fragments=None,
        proxy=None,
    )
    with session, contextlib.suppress(geventws.ConnectionClosed):
        for message in session:
            session.send(message)


def main() -> int:
    """Run the suite; the exit status: 0 when every case passed, 1 when one did not, 2 when the rig could not run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", default="*", help="comma-separated patterns, such as '1.*,7.3.*' (all)")
    parser.add_argument(
        "--report", type=Path, default=ROOT / "reports" / "autobahn" / "client", help="an empty directory"
    )
    parser.add_argument("--cache", type=Path, help="directory to keep the testsuite in (a temporary one)")
    parser.add_argument("--python2", help="the Python 2.7 to use (python2.7 on PATH, or pyenv's)")
    options = parser.parse_args()
    try:
        with contextlib.ExitStack() as cleanup:
            cache = options.cache or Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="autobahn-")))
            python2 = install_suite(cache.resolve(), options.python2)
            patterns = options.cases.split(",")
            cases = [each for each in suite_cases(python2) if any(fnmatch.fnmatchcase(each, one) for one in patterns)]
            report = options.report.resolve()
            if report.exists() and any(report.iterdir()):
                raise RigError(f"{report} is not empty")
            report.mkdir(parents=True, exist_ok=True)
            url = cleanup.enter_context(fuzzing_server(python2, cases, report))
            print(f"autobahn: {len(cases)} cases for a client of the {geventws.build()} build", flush=True)
            started = time.monotonic()
            for number in range(1, len(cases) + 1):
                converse(url, number)
            with geventws.connect(f"{url}/updateReports?agent={quote(AGENT)}", proxy=None) as session:
                session.wait_closed()
            print(f"autobahn: {time.monotonic() - started:.0f} s, report in {report}")
            failed = judge(cases, read_index(report, AGENT), report)
            print(f"autobahn: {len(cases) - len(failed)} passed, {len(failed)} failed", flush=True)
            return 1 if failed else 0
    except RigError as error:
        print(f"autobahn: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
