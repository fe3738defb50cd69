"""Hours of good and bad clients against both servers, to see what drifts: python soak.py --hours 2 --out FOLDER.

gunicorn with two geventws workers is reloaded and has workers killed; a standalone server with the same clients is
left alone for the whole time. All that is seen goes into FOLDER as it happens, and the report is made from that alone:
``--report FOLDER`` makes it again, of a run that goes on or was cut short, too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from figures import report  # noqa: E402
from machine import machine  # noqa: E402
from processes import free_port  # noqa: E402

#: Seconds between samples.
SAMPLE_EVERY = 5.0
#: Seconds of silence at an idle point: a look of the application falls into it.
IDLE = 15.0
#: The share of the time after which nobody is killed any more, so that workers too get a long life.
DISTURBED = 0.6
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Soak:
    """A run: its processes, and what it writes down."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out.resolve()
        self.stats = self.out / "stats"
        self.stats.mkdir(parents=True, exist_ok=True)
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        self._files: list[IO[Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Starts all processes, and ends them."""
        try:
            ports = {"worker": free_port(), "standalone": free_port()}
            gunicorn = f"-m gunicorn -k geventws.Worker -w {self.options.workers} --worker-connections 2000"
            gunicorn += (
                f" --graceful-timeout 10 --no-control-socket --chdir {HERE} -b 127.0.0.1:{ports['worker']} app:app"
            )
            self._start("worker", *gunicorn.split())
            self._start("standalone", str(HERE / "app.py"), str(ports["standalone"]))
            self.settle(
                lambda: len(self.workers()) == self.options.workers and len(list(self.stats.glob("*.json"))) > 2
            )
            options = ("--rate", str(self.options.rate / 2), "--seed", str(self.options.seed), "--out", str(self.out))
            servers = [f"{name}={port}" for name, port in ports.items()]
            self._start("clients", str(HERE / "churn.py"), *options, *servers, pipes=True)
            yield
        finally:
            for process in reversed(self.processes.values()):
                process.terminate()
            for process in self.processes.values():
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            for file in self._files:
                file.close()

    def _start(self, name: str, *arguments: str, pipes: bool = False) -> None:
        log = (self.out / f"{name}.log").open("a")
        self._files.append(log)
        self.processes[name] = subprocess.Popen(
            [sys.executable, *arguments],
            # Where there is no gunicorn.conf.py.
            cwd=HERE,
            env={
                **os.environ,
                "SOAK_STATS": str(self.stats),
                "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parents[1]))),
            },
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else log,
            stderr=log,
            text=True,
        )

    def settle(self, reached: Any) -> None:
        """Waits until something is so, for half a minute at most."""
        until = time.monotonic() + 30
        while not reached():
            if time.monotonic() > until:
                raise SystemExit(f"the servers do not start: look into {self.out}")
            time.sleep(0.2)

    def workers(self) -> list[int]:
        """The pids of gunicorn's workers."""
        master = self.processes["worker"].pid
        try:
            return [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def order(self, order: str, *pids: int) -> None:
        """Tells the clients, and waits until they know."""
        clients = self.processes["clients"]
        assert clients.stdin is not None
        assert clients.stdout is not None
        clients.stdin.write(" ".join([order, *map(str, pids)]) + "\n")
        clients.stdin.flush()
        if not clients.stdout.readline():
            raise SystemExit(f"the clients ended: look into {self.out / 'clients.log'}")

    def note(self, kind: str, **what: Any) -> None:
        """Writes an event down."""
        self._append("events.jsonl", {"time": time.time(), "event": kind, **what})

    def _append(self, name: str, line: dict[str, Any]) -> None:
        with (self.out / name).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def sample(self) -> None:
        """Writes down what each process holds."""
        pids = dict.fromkeys(self.workers(), "worker")
        pids[self.processes["standalone"].pid] = "standalone"
        pids[self.processes["worker"].pid] = "master"
        pids[self.processes["clients"].pid] = "clients"
        seen = {}
        for pid, role in pids.items():
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                fds = len(os.listdir(f"/proc/{pid}/fd"))
                cpu = (int(fields[11]) + int(fields[12])) / TICKS
                entry = {"role": role, "rss": int(fields[21]) * PAGE, "fds": fds, "cpu": cpu, "born": int(fields[19])}
                with suppress(OSError):
                    entry["look"] = json.loads((self.stats / f"{pid}.json").read_text())
                # One that has ended and was not reaped holds nothing.
                if entry["rss"]:
                    seen[pid] = entry
        clients = {}
        with suppress(OSError):
            clients = json.loads((self.out / "clients.json").read_text())
        self._append("samples.jsonl", {"time": time.time(), "processes": seen, "clients": clients})

    # -- The course of it

    def run(self) -> None:
        """Churn with idle points between, kills and reloads."""
        options = self.options
        length = options.hours * 3600
        began = time.monotonic()
        ends = began + length
        # A run shorter than the usual has everything too, in the same order.
        scale = min(1.0, length / 3600)
        every = {"kill": options.kill_every * 60 * scale, "hup": options.hup_every * 60 * scale}
        # The end of those that stop reading takes half a minute, so idle points must not follow one another closely.
        every["idle"] = max(90.0, options.idle_every * 60 * scale)
        due = {name: began + seconds for name, seconds in every.items()}
        self.note("start", options={name: str(value) for name, value in vars(options).items()}, machine=machine())
        self._rest()
        while (now := time.monotonic()) < ends:
            for name in due:
                if now >= due[name]:
                    due[name] += every[name]
                    if name == "idle" and now < ends - IDLE:
                        self._rest()
                    elif name != "idle" and now < began + length * DISTURBED:
                        self._disturb(name)
            self._watch()
            self.sample()
            time.sleep(SAMPLE_EVERY)
        self._rest()
        # The last counts, which say of the residents too that they went.
        self.order("stop")
        self.processes["clients"].wait(60)
        self.sample()
        self.note("end")

    def _rest(self) -> None:
        """An idle point."""
        self.order("pause")
        time.sleep(IDLE)
        self.sample()
        self.note("idle")
        self.order("go")

    def _disturb(self, how: str) -> None:
        workers = self.workers()
        if how == "kill":
            # Of the oldest: the other one gets its turn next time.
            self.order("kill", workers[0])
            self.note("kill", pids=workers[:1])
            with suppress(ProcessLookupError):
                os.kill(workers[0], signal.SIGKILL)
        else:
            self.order("hup", *workers)
            self.note("hup", pids=workers)
            self.processes["worker"].send_signal(signal.SIGHUP)
        # Not before the new ones are there: one order at a time.
        time.sleep(SAMPLE_EVERY)

    def _watch(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is not None:
                self.note("died", what=name, status=process.returncode)
                raise SystemExit(f"{name} ended with status {process.returncode}: look into {self.out}")


def main() -> int:
    """Runs or reports; 1 where something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("soak"), help="a folder for all that is written")
    parser.add_argument("--rate", type=float, default=100, help="connects a second, over both servers")
    parser.add_argument("--workers", type=int, default=2, help="gunicorn's")
    parser.add_argument("--kill-every", type=float, default=10, help="minutes between two SIGKILLs of a worker")
    parser.add_argument("--hup-every", type=float, default=15, help="minutes between two reloads")
    parser.add_argument("--idle-every", type=float, default=10, help="minutes between two idle points")
    parser.add_argument("--seed", type=int, default=1, help="of what the clients do")
    parser.add_argument("--report", type=Path, help="make the report of this folder, and run nothing")
    options = parser.parse_args()
    if options.report is not None:
        return report(options.report)
    if (options.out / "samples.jsonl").exists():
        parser.error(f"there is a run in {options.out} already")
    # Asked to end, it ends its processes, and there is no report.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    soak = Soak(options)
    with soak.running():
        soak.run()
    return report(options.out)


if __name__ == "__main__":
    sys.exit(main())
