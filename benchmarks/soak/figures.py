"""The report of a soak, from what it wrote down."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["report"]

#: Seconds at the begin of a process's life that are not in its slope: caches, pools and the heap fill up.
WARM_UP = 900.0
#: Seconds of a life that a slope must rest on, to be judged. It is told of shorter ones too.
LONG_ENOUGH = 1800.0
#: KiB an hour that the standalone server may grow by.
MOST_SLOPE = 50.0
KIB = 1024

#: What the clients count that must not be.
FORBIDDEN = ("wrong echoes", "wrong", "stalled", "unexpected closes", "cut short by a reload")
TRACEBACK = "Traceback (most recent call last)"


@dataclass
class Life:
    """One process of a server, as long as it lived."""

    role: str
    pid: int
    samples: list[dict[str, Any]] = field(default_factory=list)
    idles: list[dict[str, Any]] = field(default_factory=list)
    end: str = "the end"

    @property
    def seconds(self) -> float:
        """How long it was seen."""
        return float(self.samples[-1]["time"] - self.samples[0]["time"])

    def slope(self, warm_up: float) -> tuple[float, float] | None:
        """KiB of RSS an hour, and the standard error of that, over the medians of each minute."""
        minutes: dict[int, list[float]] = {}
        begin = self.samples[0]["time"] + warm_up
        for sample in self.samples:
            if sample["time"] >= begin:
                minutes.setdefault(int((sample["time"] - begin) // 60), []).append(sample["rss"] / KIB)
        return fit([(minute / 60, median(values)) for minute, values in sorted(minutes.items())])

    def idle(self, name: str) -> tuple[Any, Any]:
        """A figure at the first and at the last idle point."""
        values = [value for sample in self.idles if (value := figure(sample, name)) is not None]
        return (values[0], values[-1]) if values else (None, None)


def figure(sample: dict[str, Any], name: str) -> Any:
    """A figure of a sample; None for one of the application's that it had not written yet."""
    return sample[name] if name in sample else sample.get("look", {}).get(name)


def fit(points: list[tuple[float, float]]) -> tuple[float, float] | None:
    """The slope of the line of least squares, and its standard error; None for too few points."""
    count = len(points)
    if count < 4:
        return None
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return slope, (rest / (count - 2) / spread) ** 0.5


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lives(samples: list[dict[str, Any]], events: list[dict[str, Any]]) -> list[Life]:
    """The servers' processes, in the order of their births."""
    idle_times = [event["time"] for event in events if event["event"] == "idle"]
    found: dict[tuple[int, int], Life] = {}
    for sample in samples:
        idle = any(0 <= at - sample["time"] < 2 for at in idle_times)
        for pid, entry in sample["processes"].items():
            if entry["role"] in ("worker", "standalone"):
                life = found.setdefault((int(pid), entry["born"]), Life(entry["role"], int(pid)))
                life.samples.append({"time": sample["time"], **entry})
                if idle:
                    life.idles.append({"time": sample["time"], **entry})
    for event in events:
        if event["event"] in ("kill", "hup"):
            for life in found.values():
                if life.pid in event["pids"] and life.samples[0]["time"] < event["time"]:
                    life.end = {"kill": "SIGKILL", "hup": "reload"}[event["event"]]
    return list(found.values())


def cpu(samples: list[dict[str, Any]]) -> dict[str, float]:
    """The cores that each role kept busy, over the whole time."""
    used: Counter[str] = Counter()
    last: dict[tuple[str, int], float] = {}
    for sample in samples:
        for pid, entry in sample["processes"].items():
            before = last.get((pid, entry["born"]), 0.0)
            used[entry["role"]] += entry["cpu"] - before
            last[pid, entry["born"]] = entry["cpu"]
    length = samples[-1]["time"] - samples[0]["time"] or 1.0
    return {role: seconds / length for role, seconds in used.items()}


def log_figures(path: Path) -> dict[str, Any]:
    """Lines and tracebacks of a log, and the kinds of its lines."""
    kinds: Counter[str] = Counter()
    lines = tracebacks = 0
    with path.open(errors="replace") as file:
        for line in file:
            lines += 1
            tracebacks += TRACEBACK in line
            # Without what differs: stamps, pids, addresses, and what peers wrote.
            kind = re.sub(r"^\[[^]]*\] \[\d+\] |^\S+:\d+: ", "", line.strip())
            kinds[re.sub(r"['\"].*|\d+", "#", kind)[:60]] += 1
    return {"lines": lines, "tracebacks": tracebacks, "kinds": kinds.most_common(20)}


def collect(folder: Path) -> dict[str, Any]:
    """All figures of a run."""
    samples, events = read(folder / "samples.jsonl"), read(folder / "events.jsonl")
    start = next(event for event in events if event["event"] == "start")
    all_lives = lives(samples, events)
    last = next((sample["clients"] for sample in reversed(samples) if sample["clients"]), {})
    short = samples[-1]["time"] - samples[0]["time"] < 2 * WARM_UP
    result: dict[str, Any] = {
        "machine": start["machine"],
        "options": start["options"],
        "began": start["time"],
        "hours": (samples[-1]["time"] - samples[0]["time"]) / 3600,
        "finished": any(event["event"] == "end" for event in events),
        "events": Counter(event["event"] for event in events),
        "clients": {name: {**entry["counts"], "parts": entry["parts"]} for name, entry in last.items()},
        "latency": {
            name: {
                key: median(values)
                for key in ("p50_ms", "p99_ms")
                if (values := [s["clients"][name][key] for s in samples if key in s["clients"].get(name, {})])
            }
            for name in last
        },
        "cpu": cpu(samples),
        "logs": {name: log_figures(folder / f"{name}.log") for name in ("worker", "standalone", "clients")},
        "lives": [],
    }
    for life in all_lives:
        warm_up = min(WARM_UP, life.seconds / 4) if life.role == "worker" or short else WARM_UP
        slope = life.slope(warm_up)
        result["lives"].append(
            {
                "role": life.role,
                "pid": life.pid,
                "minutes": life.seconds / 60,
                "end": life.end,
                "slope": slope and slope[0],
                "slope_error": slope and slope[1],
                "judged": life.role == "standalone" and life.seconds - warm_up >= LONG_ENOUGH,
                "rss_mib": [life.samples[0]["rss"] / KIB**2, life.samples[-1]["rss"] / KIB**2],
                "rss_most_mib": max(sample["rss"] for sample in life.samples) / KIB**2,
                "idle": {name: life.idle(name) for name in ("rss", "fds", "greenlets", "sessions")},
            }
        )
    result["failures"] = failures(result)
    return result


def failures(result: dict[str, Any]) -> list[str]:
    """What is not as it must be, in words."""
    told = []
    if not result["finished"]:
        told.append("the run is not at its end")
    for server, counts in result["clients"].items():
        told += [f"{server}: {counts[name]} {name}" for name in FORBIDDEN if counts.get(name)]
        if not counts.get("messages"):
            told.append(f"{server}: no message came back")
    for server, log in result["logs"].items():
        if log["tracebacks"]:
            told.append(f"{server}: {log['tracebacks']} tracebacks in its log")
    for life in result["lives"]:
        name = f"{life['role']} {life['pid']}"
        if life["judged"] and life["slope"] > MOST_SLOPE:
            told.append(f"{name}: RSS grows by {life['slope']:.0f} KiB an hour, more than {MOST_SLOPE:.0f}")
        # Residents of the two workers are spread anew after each kill, so theirs are compared less what is open.
        for what in ("fds", "greenlets"):
            first, last = life["idle"][what]
            open_first, open_last = life["idle"]["sessions"]
            if None not in (first, last, open_first, open_last) and last - open_last > first - open_first + 2:
                told.append(f"{name}: {what} at idle grew from {first} to {last}")
    if not any(life["role"] == "standalone" for life in result["lives"]):
        told.append("there is no standalone server")
    return told


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    machine, lines = result["machine"], []
    lines.append(
        f"{result['hours']:.2f} hours, geventws {machine['geventws']}, Python {machine['python']}, {machine['cpu']}, "
        f"{machine['cores']} cores, Linux {machine['kernel']}. "
        f"{result['events'].get('kill', 0)} workers killed, {result['events'].get('hup', 0)} reloads."
    )
    servers = list(result["clients"])
    lines += ["", f"| | {' | '.join(servers)} | must be |", f"|---|{'---|' * len(servers)}---|"]

    def row(name: str, values: list[str], bound: str = "") -> None:
        lines.append(f"| {name} | {' | '.join(values)} | {bound} |")

    def counted(name: str, bound: str = "") -> None:
        row(name, [f"{result['clients'][server].get(name, 0):,}" for server in servers], bound)

    counted("connects")
    counted("sessions")
    counted("messages")
    row("GiB echoed or pushed", [f"{result['clients'][server].get('bytes', 0) / KIB**3:.1f}" for server in servers])
    counted("pongs")
    counted("wrong echoes", "0")
    counted("wrong", "0")
    counted("stalled", "0")
    counted("unexpected closes", "0")
    counted("lost in a kill")
    counted("closed by a reload")
    counted("cut short by a reload", "0")
    counted("turned away in a reload")
    for key in ("p50_ms", "p99_ms"):
        row(f"{key[:3]} of small echoes, ms", [f"{result['latency'][server].get(key, 0):.1f}" for server in servers])
    logs = [result["logs"][server] for server in servers]
    row("log lines", [f"{log['lines']:,}" for log in logs])
    row("tracebacks", [str(log["tracebacks"]) for log in logs], "0")
    row("cores busy", [f"{result['cpu'].get(server, 0):.2f}" for server in servers])
    lines += ["", f"The clients kept {result['cpu'].get('clients', 0):.2f} cores busy.", ""]
    heads = ("process", "minutes", "until", "RSS slope, KiB/h", "RSS MiB, first to last (most)")
    heads += ("idle RSS MiB", "idle fds", "idle greenlets", "idle sessions")
    lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for life in result["lives"]:
        slope = "-" if life["slope"] is None else f"{life['slope']:,.0f} ± {life['slope_error']:,.0f}"
        if life["judged"]:
            slope = f"**{slope}** (at most {MOST_SLOPE:.0f})"
        rss = f"{life['rss_mib'][0]:.1f} to {life['rss_mib'][1]:.1f} ({life['rss_most_mib']:.1f})"
        idle = [
            "-" if first is None else f"{first / scale:{form}} to {last / scale:{form}}"
            for (first, last), scale, form in (
                (life["idle"]["rss"], KIB**2, ".1f"),
                *((life["idle"][name], 1, ".0f") for name in ("fds", "greenlets", "sessions")),
            )
        ]
        cells = [life["role"], f"{life['minutes']:.0f}", life["end"], slope, rss, *idle]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- FAILED: {failure}" for failure in result["failures"])]
    return "\n".join(lines).rstrip() + "\n"


def report(folder: Path) -> int:
    """Writes report.json and report.md, prints the latter; 1 where something is not as it must be."""
    result = collect(folder)
    (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    text = table(result)
    (folder / "report.md").write_text(text)
    print(text)
    return 1 if result["failures"] else 0
