"""What topics across processes lose when Valkey or a worker is killed: python benchmarks/outage.py

Four workers of gunicorn with a Valkey, 100 topics, 400 subscribers and a publisher of each topic. Under 2,000 publishes
a second Valkey is killed and started again 5 seconds later, or one of the workers is killed. Each message has its
number, so that it is known whom it did not reach, and that is compared with what the workers have counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from crowd import Crowd, Subscriber
from installing import install_across, missing
from processes import ServerFailed
from report import environment, machine, write_json
from rooms import ROOM_CONTENDERS, start
from run import positive, two_cores
from valkey_server import Valkey, valkey_binary

__all__ = ["Account", "Line", "account", "judge_valkey", "judge_worker", "table"]

TOPICS = 100
SUBSCRIBERS = 400
#: Seconds: before the kill, until Valkey is back, and after that.
BEFORE, AWAY, AFTER = 3.0, 5.0, 5.0
#: Seconds within which all topics must be back.
BACK = 2.0
QUIET = 1.0


@dataclass(frozen=True)
class Line:
    """One figure, and whether it is as it should be; None where nothing is asked of it."""

    name: str
    value: str
    asked: str = ""
    met: bool | None = None


@dataclass
class Account:
    """Whom the messages reached. A place is a process and a topic that somebody there is subscribed to."""

    published: int = 0
    #: Pairs of a message and a place: of the publisher's own process, of others, and those of each that it missed.
    own: int = 0
    own_missed: int = 0
    elsewhere: int = 0
    elsewhere_missed: int = 0
    #: Messages that some place missed.
    missed: int = 0
    #: Pairs where some subscribers of a place got a message, and others not.
    torn: int = 0
    twice: int = 0
    altered: int = 0


def account(crowd: Crowd) -> Account:
    """Compares what was published with what the subscribers that are still connected got."""
    result = Account()
    places: dict[int, dict[int, list[Subscriber]]] = defaultdict(lambda: defaultdict(list))
    for subscriber in crowd.subscribers:
        result.twice += subscriber.twice
        result.altered += subscriber.altered
        if subscriber.alive:
            places[subscriber.topic][subscriber.process].append(subscriber)
    for publisher in crowd.publishers:
        result.published += publisher.published
        missed: set[int] = set()
        for process, here in places[publisher.topic].items():
            owed = set(range(min(each.since for each in here), publisher.published))
            by_none = owed - set[int]().union(*(each.got for each in here))
            by_some = set[int]().union(*(set(range(each.since, publisher.published)) - each.got for each in here))
            result.torn += len(by_some - by_none)
            missed |= by_none
            if process == publisher.process:
                result.own += len(owed)
                result.own_missed += len(by_none)
            else:
                result.elsewhere += len(owed)
                result.elsewhere_missed += len(by_none)
        result.missed += len(missed)
    return result


def judge_valkey(
    found: Account, counted: Mapping[str, int], ended: int, back: float | None, history: bool
) -> list[Line]:
    """What is to be said of an outage of Valkey; ``counted`` is the sum of the workers' statistics."""
    lines = [
        Line("sockets lost", f"{ended}", "0", ended == 0),
        Line(
            "all topics back after", "never" if back is None else f"{back:.2f} s", f"{BACK:g} s", (back or 99) <= BACK
        ),
        Line("published, by the client", f"{found.published:,}"),
        _same("published, by the workers", counted["published"], found.published),
        Line("got twice, altered, or by some of a process only", *_zero(found.twice + found.altered + found.torn)),
        Line("unsent: Redis was away", f"{counted['unsent']:,}"),
        Line("unconfirmed: on their way as it went", f"{counted['unconfirmed']:,}"),
        Line("gaps told, connections made again", f"{counted['gaps']:,}, {counted['reconnects']:,}"),
    ]
    if history:
        # What was unsent need not have had anybody to miss it.
        known = counted["unsent"] + counted["unconfirmed"]
        lines.append(_at_most("messages that any process missed, and counted ones", found.missed, known))
    else:
        # With a history what comes back to the publisher's own process is received as well.
        received = counted["received"] + counted["lost"]
        lines.append(_same("received in other processes + lost, as counted", received, found.elsewhere))
    return [
        *lines,
        Line("missed in the publisher's process", *_zero(found.own_missed)),
        Line("due in other processes", f"{found.elsewhere:,}"),
        _same("lost there, as counted; the clients missed as many", counted["lost"], found.elsewhere_missed),
    ]


def judge_worker(crowd: Crowd, killed: int, others: int) -> list[Line]:
    """What is to be said after a worker was killed; ``others`` is how many of the other workers' sockets ended."""
    missed, prefixes = 0, defaultdict[int, set[int]](set)
    living = [each for each in crowd.subscribers if each.alive and each.since == 0]
    for subscriber in living:
        publisher = crowd.publishers[subscriber.topic]
        if publisher.process == killed:
            # What it took before it died nobody knows; but no message may be missing between two that came.
            prefixes[subscriber.topic].add(len(subscriber.got))
            missed += max(subscriber.got, default=-1) + 1 - len(subscriber.got)
        else:
            missed += publisher.published - len(subscriber.got)
    uneven = sum(len(lengths) > 1 for lengths in prefixes.values())
    bad = sum(each.twice + each.altered for each in crowd.subscribers)
    return [
        Line("sockets of the other workers lost", f"{others}", "0", others == 0),
        Line("their subscribers", f"{len(living):,}"),
        Line("messages that these got", f"{sum(len(each.got) for each in living):,}"),
        Line("missed, of the other workers' publishers and before the last of its own", *_zero(missed)),
        Line("topics of its publishers that ended at different messages", *_zero(uneven)),
        Line("got twice, or altered", *_zero(bad)),
    ]


def _zero(value: int) -> tuple[str, str, bool]:
    return f"{value:,}", "0", value == 0


def _same(name: str, value: int, asked: int) -> Line:
    return Line(name, f"{value:,}", f"{asked:,}", value == asked)


def _at_most(name: str, value: int, bound: int) -> Line:
    return Line(name, f"{value:,}", f"at most {bound:,}", value <= bound)


def table(title: str, lines: Sequence[Line]) -> str:
    """The lines as Markdown."""
    rows = [f"**{title}**", "", "| | | asked | |", "|---|---|---|---|"]
    for line in lines:
        verdict = {None: "", True: "met", False: "**missed**"}[line.met]
        rows.append(f"| {line.name} | {line.value} | {line.asked} | {verdict} |")
    return "\n".join(rows)


class Outage:
    """The servers and their clients while something is killed."""

    def __init__(self, stack: ExitStack, binary: Path, history: bool, keeps: bool, rate: float, core: int) -> None:
        self.rate = rate
        self.valkey = stack.enter_context(Valkey(binary, core, keeps))
        contender = ROOM_CONTENDERS["geventws-history" if history else "geventws"]
        (self.server,) = start(stack, contender, self.valkey.url, core)
        self.crowd = Crowd(self.server.port, TOPICS)
        stack.callback(self.crowd.close)
        self.crowd.open(SUBSCRIBERS)
        _say(f"subscribers by worker: {dict(Counter(each.process for each in self.crowd.subscribers))}")

    def of_valkey(self, history: bool) -> list[Line]:
        """Kills Valkey and brings it back."""
        crowd = self.crowd
        crowd.run(BEFORE, self.rate)
        _say("Valkey is killed")
        self.valkey.kill()
        crowd.run(AWAY, self.rate)
        # In another thread, so that publishing goes on.
        returning = Thread(target=self.valkey.start)
        returning.start()
        while returning.is_alive():
            crowd.run(0.01, self.rate)
        returned = time.monotonic()
        crowd.listen_anew()
        _say("Valkey is back")
        crowd.run(AFTER, self.rate)
        crowd.run_until_quiet(QUIET)
        due = {
            (each.process, each.topic)
            for each in crowd.subscribers
            if each.process != crowd.publishers[each.topic].process
        }
        back = max(crowd.first[place] for place in due) - returned if due <= crowd.first.keys() else None
        return judge_valkey(account(crowd), self.counted(), len(crowd.ended), back, history)

    def of_worker(self) -> list[Line]:
        """Kills a worker with SIGKILL; its subscribers come back."""
        crowd = self.crowd
        crowd.run(BEFORE, self.rate)
        killed = crowd.subscribers[0].process
        victims = [each for each in crowd.subscribers if each.process == killed]
        sockets = len(victims) + sum(each.process == killed for each in crowd.publishers)
        _say(f"worker {killed} is killed")
        at = time.monotonic()
        os.kill(killed, signal.SIGKILL)
        for victim in victims:
            crowd.run(0.002, self.rate)
            crowd.subscribe(victim.topic)
        seconds = time.monotonic() - at
        crowd.run(AFTER, self.rate)
        crowd.run_until_quiet(QUIET)
        lines = judge_worker(crowd, killed, len(crowd.ended) - sockets)
        back = crowd.subscribers[-len(victims) :]
        owed = sum(crowd.publishers[each.topic].published - each.since for each in back if self._lives(each, killed))
        got = sum(sum(n >= each.since for n in each.got) for each in back if self._lives(each, killed))
        return [
            *lines,
            Line("its subscribers, and seconds until all were back", f"{len(back)}, {seconds:.2f} s"),
            Line("missed by these since", *_zero(owed - got)),
        ]

    def _lives(self, subscriber: Subscriber, killed: int) -> bool:
        return self.crowd.publishers[subscriber.topic].process != killed

    def counted(self) -> dict[str, int]:
        """The workers' statistics, added up."""
        one_of_each = {each.process: each for each in self.crowd.subscribers if each.alive}
        total: Counter[str] = Counter()
        for subscriber in one_of_each.values():
            told: dict[str, int] = json.loads(self.crowd.ask(subscriber))
            total.update({name: value for name, value in told.items() if name != "pid"})
        return defaultdict(int, total)


#: What it is called, whether the topics have a history, whether Valkey keeps its data, and what is done.
SCENARIOS: dict[str, tuple[str, bool, bool, Callable[[Outage], list[Line]]]] = {
    "valkey": ("Valkey is killed and back after 5 s", False, False, lambda outage: outage.of_valkey(False)),
    "valkey-history": ("The same with history=1000", True, False, lambda outage: outage.of_valkey(True)),
    "valkey-kept": ("The same, and Valkey has its data again", True, True, lambda outage: outage.of_valkey(True)),
    "worker": ("One of four workers is killed", False, False, lambda outage: outage.of_worker()),
}


def main() -> int:
    """Kills what the command line asks for and prints the tables; 1 where something is not as it should be."""
    options = _parse()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    install_across()
    binary = options.valkey or valkey_binary()
    ours = ROOM_CONTENDERS["geventws"]
    reason = "there is no Valkey" if binary is None else missing(ours.runtime, ours.check, ours.environment_for(""))
    if reason:
        _say(reason)
        return 2
    server_core, client_core = options.cores
    os.sched_setaffinity(0, {client_core})
    results: dict[str, Any] = {"environment": environment("requirements-across.txt", None), "scenarios": {}}
    failed = False
    print(machine(results["environment"]))
    for name in options.scenario:
        title, history, keeps, run = SCENARIOS[name]
        try:
            with ExitStack() as stack:
                outage = Outage(stack, binary, history, keeps, options.rate, server_core)
                lines = run(outage)
                published = sum(each.published for each in outage.crowd.publishers)
                lines.append(Line("published a second", f"{published / outage.crowd.seconds:,.0f}"))
        except (OSError, ServerFailed) as error:
            _say(f"{name}: FAILED: {error}")
            failed = True
            continue
        failed |= any(line.met is False for line in lines)
        print(f"\n{table(f'{title}, under {options.rate:,} publishes a second', lines)}", flush=True)
        results["scenarios"][name] = [vars(line) for line in lines]
    if options.json:
        write_json(options.json, results)
    return int(failed)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What topics across processes lose when Valkey or a worker is killed.")
    add = partial(parser.add_argument)
    add("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="what is killed (default: all)")
    add("--rate", type=positive, default=2000, metavar="N", help="publishes a second (default: 2000)")
    add("--json", type=Path, metavar="FILE", help="where to write the figures")
    add("--cores", type=two_cores, default=(0, 1), metavar="A,B", help="of servers and Valkey, and of the clients")
    add("--valkey", type=Path, metavar="FILE", help="a valkey-server or redis-server in place of the wheel's")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
