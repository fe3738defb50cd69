"""Runs the fuzzing client of the Autobahn testsuite against geventws, and judges its verdicts.

    python tests/autobahn/run.py                       # all cases, gunicorn with geventws.Worker
    python tests/autobahn/run.py --pure                # the same with the uncompiled code
    python tests/autobahn/run.py --server standalone --cases '1.*,7.*'

Every case must end OK or INFORMATIONAL, in behavior and in closing behavior; NON-STRICT does not pass. Nor does a run
that misses a case, or in which the server logged an error. The suite runs on Python 2.7: an interpreter of that
version must be on the machine, and its packages (requirements.txt beside this file) are installed into `--cache`.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
REQUIREMENTS = HERE / "requirements.txt"
VIRTUALENV = "virtualenv==20.21.1"  # the last line that makes environments of Python 2.7
ALL_CASES = 517
PASSING = {"OK", "INFORMATIONAL"}
SERVER_ERROR = re.compile(r"Traceback|\[ERROR\]|\[CRITICAL\]|\bERROR\b|Unhandled")


class RigError(Exception):
    """The rig itself could not do its work; the message says what is missing."""


def find_python2(named: str | None) -> str:
    """The path of a Python 2.7 that runs: the one named, or python2.7 on PATH, or the newest of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    candidates = [named] if named else ["python2.7", *map(str, sorted(pyenv.glob("versions/2.7*/bin/python2.7"))[::-1])]
    for candidate in candidates:
        # pyenv leaves a python2.7 on PATH that only tells which versions have one: run it to know.
        probe = [candidate, "-c", "import sys; assert sys.version_info[:2] == (2, 7); print(sys.executable)"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(probe, check=True, capture_output=True, text=True).stdout.strip()
    raise RigError("the Autobahn testsuite needs Python 2.7: none of these runs: " + ", ".join(candidates))


def install_suite(cache: Path, python2: str | None) -> Path:
    """Make the suite's virtualenv in `cache`, or find it there; return its interpreter. Takes half a minute."""
    home = cache / "python2.7"
    python = home / "bin" / "python"
    done = home / "requirements.txt"
    if done.exists() and done.read_bytes() == REQUIREMENTS.read_bytes():
        return python
    interpreter = find_python2(python2)
    print(f"autobahn: installing the testsuite for {interpreter} into {home}", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    tool = cache / "virtualenv"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    quiet_run([*pip, "--upgrade", "--target", str(tool), VIRTUALENV])
    make = [sys.executable, "-m", "virtualenv", "--quiet", "--no-download", "--python", interpreter, str(home)]
    quiet_run(make, env={**os.environ, "PYTHONPATH": str(tool)})
    # --no-deps: the file names everything, so nothing can drift in.
    quiet_run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(REQUIREMENTS)])
    done.write_bytes(REQUIREMENTS.read_bytes())
    return python


def quiet_run(command: Sequence[str], env: dict[str, str] | None = None) -> None:
    """Run a command; show what it printed only when it fails, and then raise RigError."""
    result = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        raise RigError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")


def suite_cases(python2: Path) -> list[str]:
    """The ids of all cases that the installed suite has, in its order."""
    code = "from autobahntestsuite.case import Cases\nfor c in Cases: print(c.__name__[4:].replace('_', '.'))"
    listing = subprocess.run([str(python2), "-c", code], check=True, capture_output=True, text=True).stdout.split()
    if len(listing) != ALL_CASES:
        raise RigError(f"the installed testsuite has {len(listing)} cases, not {ALL_CASES}")
    return listing


def free_port() -> int:
    """A TCP port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def child_environment(pure: bool) -> dict[str, str]:
    """The environment of the server: ours, without what changes gunicorn's settings, and with the build asked for."""
    environment = {name: value for name, value in os.environ.items() if name not in ("GUNICORN_CMD_ARGS", "PORT")}
    environment["GEVENTWS_PURE"] = "1" if pure else "0"
    return environment


def check_build(pure: bool) -> str:
    """The line of `python -m geventws --version`; RigError when that is not the build asked for."""
    command = [sys.executable, "-m", "geventws", "--version"]
    result = subprocess.run(command, env=child_environment(pure), cwd=HERE, capture_output=True, text=True)
    line = result.stdout.strip()
    if result.returncode:
        raise RigError(f"{' '.join(command)} failed:\n{result.stderr}")
    wanted = "pure" if pure else "compiled"
    if wanted not in line:
        raise RigError(f"asked for the {wanted} build, but this is {line!r}")
    return line


@contextlib.contextmanager
def echo_server(kind: str, pure: bool, log: Path) -> Iterator[str]:
    """Run our echo server on a free loopback port; yields its URL once it accepts, and stops it by its pid."""
    address = f"127.0.0.1:{free_port()}"
    if kind == "worker":
        command = ["gunicorn", "-k", "geventws.Worker", "--no-control-socket", "--bind", address, "app:application"]
    else:
        command = ["geventws", "--bind", address, "app:application"]
    # The working directory is that of app.py, which also keeps gunicorn from reading the repository's configuration.
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=HERE,
            env=child_environment(pure),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_accepting(address, server, log)
        yield f"ws://{address}/"
        if server.poll() is not None:
            raise RigError(f"the server ended with {server.returncode}:\n{tail(log)}")
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_accepting(address: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 20) -> None:
    """Block until something accepts at `address`; RigError when the server ends first or time is up."""
    host, port = address.split(":")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    ended = "is still starting" if server.poll() is None else f"ended with status {server.returncode}"
    raise RigError(f"the server at {address} {ended}:\n{tail(log)}")


def tail(path: Path, lines: int = 30) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def fuzz(python2: Path, url: str, agent: str, cases: Sequence[str], jobs: int, report: Path, limit: float) -> None:
    """Run `jobs` fuzzing clients side by side, each on its share of the cases; blocks until all ended.

    One client waits much and computes much, by turns, so that two of them keep two cores busier than one does. Each
    writes its share of the report, with an index.html of its own, to a directory named by its number.
    """
    clients: list[subprocess.Popen[bytes]] = []
    logs = [report / f"client-{number}.log" for number in range(jobs)]
    started = time.monotonic()
    try:
        for number, log in enumerate(logs):
            specification = {
                "outdir": str(report / str(number)),
                "servers": [{"agent": agent, "url": url}],
                "cases": cases[number::jobs],
            }
            path = report / f"client-{number}.json"
            path.write_text(json.dumps(specification, indent=1))
            command = [str(python2), "-u", "-m", "autobahntestsuite.wstest", "-m", "fuzzingclient", "-s", str(path)]
            with log.open("wb") as output:
                clients.append(
                    subprocess.Popen(
                        command, cwd=report, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
                    )
                )
        told = started
        while any(client.poll() is None for client in clients):
            time.sleep(0.2)
            now = time.monotonic()
            if now - started > limit:
                last = "\n".join(tail(log, 3) for log in logs)
                raise RigError(f"not done after {limit:g} s; the last lines:\n{last}")
            if now - told >= 60:
                told = now
                begun = sum(log.read_text(errors="replace").count("Running test case ID") for log in logs)
                print(f"autobahn: {begun} of {len(cases)} cases begun after {now - started:.0f} s", flush=True)
    finally:
        for client in clients:
            if client.poll() is None:
                client.kill()
            client.wait()


def read_index(report: Path, agent: str) -> dict[str, dict[str, Any]]:
    """The verdicts of all clients by case id, merged and written to index.json of the report."""
    merged: dict[str, dict[str, Any]] = {}
    for index in sorted(report.glob("*/index.json")):
        for case, verdict in json.loads(index.read_text()).get(agent, {}).items():
            merged[case] = {**verdict, "reportfile": f"{index.parent.name}/{verdict['reportfile']}"}
    (report / "index.json").write_text(json.dumps({agent: merged}, indent=1))
    return merged


def explain(case: str, verdict: dict[str, Any], report: Path) -> str:
    """What the testsuite expected of a case and what it saw, in a few lines."""
    details = json.loads((report / verdict["reportfile"]).read_text())
    lines = [f"{case}: {verdict['behavior']}, closing {verdict['behaviorClose']} ({verdict['reportfile']})"]
    for key in ("description", "expectation", "result", "resultClose", "expected", "received", "wasNotCleanReason"):
        value = details.get(key)
        if value:
            text = value if isinstance(value, str) else json.dumps(value)
            lines.append(f"    {key}: " + " ".join(re.sub(r"<[^>]*>", " ", text).split())[:300])
    lines.append(f"    close code: sent {details.get('localCloseCode')}, received {details.get('remoteCloseCode')}")
    lines.extend(f"    wire: {json.dumps(entry)[:200]}" for entry in details.get("wirelog", [])[-6:])
    return "\n".join(lines)


def case_order(case: str) -> tuple[int, ...]:
    """Sorts 2.10 behind 2.9."""
    return tuple(map(int, case.split(".")))


def judge(cases: Sequence[str], verdicts: dict[str, dict[str, Any]], report: Path) -> list[str]:
    """Print the counts of each verdict, the slowest cases and all that did not pass; return the ids that did not."""
    for key in ("behavior", "behaviorClose"):
        counts = Counter(verdict[key] for verdict in verdicts.values())
        print(f"autobahn: {key}: " + ", ".join(f"{count} {name}" for name, count in counts.most_common()))
    slowest = sorted(verdicts, key=lambda case: -verdicts[case]["duration"])[:5]
    print("autobahn: slowest: " + ", ".join(f"{case} {verdicts[case]['duration'] / 1000:.1f} s" for case in slowest))
    failed = []
    for case in sorted(cases, key=case_order):
        verdict = verdicts.get(case)
        if verdict is None:
            print(f"{case}: no verdict")
        elif not {verdict["behavior"], verdict["behaviorClose"]} <= PASSING:
            print(explain(case, verdict, report))
        else:
            continue
        failed.append(case)
    return failed


def server_errors(log: Path) -> list[str]:
    """The lines of the server's log that tell of an error: a peer's mistakes must never be errors of ours."""
    if not log.exists():
        return []
    return [line for line in log.read_text(errors="replace").splitlines() if SERVER_ERROR.search(line)]


def arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--server", choices=("worker", "standalone"), default="worker", help="what serves (worker)")
    parser.add_argument("--pure", action="store_true", help="test the uncompiled code")
    parser.add_argument("--cases", default="*", help="comma-separated patterns, such as '1.*,7.3.*' (all)")
    parser.add_argument("--report", type=Path, help="directory of the report, emptied first (reports/autobahn/...)")
    parser.add_argument("--cache", type=Path, help="directory to keep the testsuite in (a temporary one)")
    parser.add_argument("--python2", help="the Python 2.7 to use (python2.7 on PATH, or pyenv's)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="clients side by side (one a core)")
    parser.add_argument("--limit", type=float, default=3600, help="seconds after which to give up (3600)")
    parser.add_argument("--url", help="test the server at this URL instead of one of ours")
    options = parser.parse_args(command_line)
    if options.jobs < 1:
        parser.error("--jobs: at least 1")
    return options


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the suite; the exit status: 0 when every case passed, 1 when one did not, 2 when the rig could not run."""
    options = arguments(command_line)
    try:
        with contextlib.ExitStack() as cleanup:
            cache = options.cache or Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="autobahn-")))
            return run(options, cache.resolve(), cleanup)
    except RigError as error:
        print(f"autobahn: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, cache: Path, cleanup: contextlib.ExitStack) -> int:
    """Install, serve, fuzz and judge; the exit status."""
    name = "url" if options.url else f"{options.server}-{'pure' if options.pure else 'compiled'}"
    build = options.url or check_build(options.pure)
    python2 = install_suite(cache, options.python2)
    patterns = options.cases.split(",")
    cases = [case for case in suite_cases(python2) if any(fnmatch.fnmatchcase(case, pattern) for pattern in patterns)]
    if not cases:
        raise RigError(f"no case matches {options.cases!r}")
    report = (options.report or ROOT / "reports" / "autobahn" / name).resolve()
    if report.exists() and any(report.iterdir()) and not (report / "index.json").exists():
        raise RigError(f"{report} holds something else than a report: not emptying it")
    shutil.rmtree(report, ignore_errors=True)
    report.mkdir(parents=True)
    (report / "index.json").write_text("{}")  # marks the directory as a report, also if this run is cut short

    log = report / "server.log"
    url = options.url or cleanup.enter_context(echo_server(options.server, options.pure, log))
    jobs = min(options.jobs, len(cases))
    print(f"autobahn: {len(cases)} cases against {name} ({build}) at {url}, {jobs} at a time", flush=True)
    started = time.monotonic()
    fuzz(python2, url, name, cases, jobs, report, options.limit)
    seconds = time.monotonic() - started
    cleanup.close()  # stops the server, so that its log is whole

    failed = judge(cases, read_index(report, name), report)
    errors = server_errors(log)
    if errors:
        print(f"autobahn: {len(errors)} lines of {log} tell of an error:", *errors[:20], sep="\n    ")
    print(f"autobahn: {name}, {seconds:.0f} s, report in {report}")
    print(f"autobahn: {len(cases) - len(failed)} passed, {len(failed)} failed", flush=True)
    return 1 if failed or errors else 0


if __name__ == "__main__":
    sys.exit(main())
