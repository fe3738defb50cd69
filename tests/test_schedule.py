"""The schedule: what wakes its greenlet, and what it keeps of calls that were taken back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import greenlet
import pytest
from gevent.event import Event

from geventws.schedule import Schedule

from .programs import PATIENCE


def nothing() -> None:
    """A call that nobody waits for."""


def runs_schedule(thing: Any) -> bool:
    return isinstance(getattr(getattr(thing, "_run", None), "__self__", None), Schedule)


class Wakings:
    """Counts how often a schedule's greenlet is gone on with."""

    def __init__(self) -> None:
        self._count = 0
        self.greenlet: Any = None
        self.of: Schedule | None = None

    def trace(self, event: str, greenlets: tuple[Any, Any]) -> None:
        """greenlet calls it for each switch."""
        # Of this one, and not of the hub's own, which sessions of other tests may have left calls with.
        if runs_schedule(greenlets[1]) and greenlets[1]._run.__self__ is self.of:
            self.greenlet = greenlets[1]
            self._count += 1

    def take(self) -> int:
        """The wakings since the last call, those that are due included."""
        # A waking by an event takes two turns of the hub: one to tell, one to switch.
        for _ in range(3):
            gevent.sleep(0)
        count, self._count = self._count, 0
        return count


@pytest.fixture
def wakings() -> Iterator[Wakings]:
    wakings = Wakings()
    before = greenlet.settrace(wakings.trace)
    yield wakings
    greenlet.settrace(before)
    if wakings.greenlet is not None:
        wakings.greenlet.kill()


@pytest.fixture
def schedule(wakings: Wakings) -> Schedule:
    """One whose greenlet sleeps until a call that is due in 100 seconds."""
    schedule = wakings.of = Schedule()
    schedule.after(100, nothing)
    assert wakings.take() == 1
    return schedule


@contextmanager
def called(schedule: Schedule, seconds: float) -> Iterator[None]:
    """Schedules a call, and waits for it behind the block."""
    done = Event()
    schedule.after(seconds, done.set)
    yield
    assert done.wait(PATIENCE)


def test_a_later_call_does_not_wake_it(schedule: Schedule, wakings: Wakings) -> None:
    for seconds in (101, 100, 200):
        schedule.after(seconds, nothing)
    assert wakings.take() == 0


def test_an_earlier_call_wakes_it_once(schedule: Schedule, wakings: Wakings) -> None:
    schedule.after(50, nothing)
    assert wakings.take() == 1
    schedule.after(60, nothing)
    assert wakings.take() == 0


def test_many_earlier_calls_wake_it_together(schedule: Schedule, wakings: Wakings) -> None:
    for seconds in range(90, 10, -1):
        schedule.after(seconds, nothing)
    assert wakings.take() == 1
    schedule.after(11.5, nothing)
    assert wakings.take() == 0


def test_it_is_woken_for_a_call_that_is_due_at_once(schedule: Schedule) -> None:
    with called(schedule, 0):
        pass
    with called(schedule, -1):
        pass


def test_a_call_that_is_taken_back_does_not_wake_it(schedule: Schedule, wakings: Wakings) -> None:
    entry = schedule.after(50, nothing)
    assert wakings.take() == 1
    schedule.cancel(entry)
    assert wakings.take() == 0
    # It still wakes at 50, so that these two are no business of now.
    schedule.after(60, nothing)
    assert wakings.take() == 0


def test_what_is_behind_a_call_that_was_taken_back_is_called(schedule: Schedule) -> None:
    calls: list[str] = []
    taken_back = [schedule.after(0.001 * number, lambda: calls.append("taken back")) for number in range(5)]
    with called(schedule, 0.005):
        for entry in taken_back:
            schedule.cancel(entry)
    assert not calls


def test_a_call_that_was_made_can_be_taken_back(schedule: Schedule) -> None:
    done = Event()
    entry = schedule.after(0, done.set)
    assert done.wait(PATIENCE)
    schedule.cancel(entry)
    schedule.cancel(entry)
    schedule.cancel(None)
    with called(schedule, 0):
        pass


def test_calls_come_in_their_order(schedule: Schedule) -> None:
    calls: list[int] = []
    for number in (3, 1, 4, 0, 2):
        schedule.after(0.001 * number, lambda number=number: calls.append(number))
    with called(schedule, 0.005):
        pass
    assert calls == [0, 1, 2, 3, 4]


def test_calls_may_schedule_others(schedule: Schedule, wakings: Wakings) -> None:
    done = Event()

    def call() -> None:
        # Earlier and later ones, while it is awake: it looks at all of them before it sleeps.
        schedule.after(10, nothing)
        schedule.after(0.001, done.set)

    schedule.after(0, call)
    assert done.wait(PATIENCE)
    wakings.take()
    schedule.after(20, nothing)
    assert wakings.take() == 0


def test_a_call_that_fails_is_logged_and_holds_up_nobody(schedule: Schedule, caplog: pytest.LogCaptureFixture) -> None:
    schedule.after(0, lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    with called(schedule, 0.001):
        pass
    assert [record.message for record in caplog.records] == ["a scheduled call failed"]


def test_it_goes_on_after_its_greenlet_was_killed(schedule: Schedule, wakings: Wakings) -> None:
    wakings.greenlet.kill()
    with called(schedule, 0):
        pass


def test_calls_that_are_taken_back_do_not_gather(schedule: Schedule) -> None:
    """As those of many short sessions would, in the time of one deadline."""
    kept = [schedule.after(50, nothing) for _ in range(10)]

    def count() -> int:
        return sum(type(thing) is type(kept[0]) for thing in gc.get_objects())

    before = count()
    for _ in range(1000):
        schedule.cancel(schedule.after(15, nothing))
    assert count() - before <= 120
