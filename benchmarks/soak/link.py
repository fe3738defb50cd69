"""A bad link: carries packets between two TUN devices, and loses, delays, reorders and holds up as it is told.

It does what the kernel's netem does, in a process of its own, so that a kernel without netem will do, and the same seed
loses the same packets. ``python link.py A B --loss 0.05 ...``; A and B are descriptors of open TUN devices.
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import select
import signal
import sys
import time
from itertools import count

#: The largest packet that a device gives.
PACKET = 65536


class Direction:
    """One way over the link."""

    def __init__(self, source: int, target: int, options: argparse.Namespace, seed: int) -> None:
        self.source = source
        self.target = target
        self._options = options
        self._random = random.Random(seed)
        self._due: list[tuple[float, int, bytes]] = []
        self._order = count()
        # When the last packet will have left the wire, and the bytes that wait for it.
        self._busy_until = 0.0
        self._queued: list[tuple[float, int]] = []
        self.carried = self.lost = self.reordered = self.overflowed = 0

    def take(self) -> None:
        """Reads what the device has, and decides what becomes of it."""
        options = self._options
        while True:
            try:
                packet = os.read(self.source, PACKET)
            except OSError:
                # Nothing there, or the device is down.
                return
            if self._random.random() < options.loss:
                self.lost += 1
                continue
            at = time.monotonic()
            if options.rate:
                while self._queued and self._queued[0][0] <= at:
                    heapq.heappop(self._queued)
                if sum(size for _, size in self._queued) + len(packet) > options.queue:
                    self.overflowed += 1
                    continue
                at = self._busy_until = max(at, self._busy_until) + len(packet) * 8 / options.rate
                heapq.heappush(self._queued, (at, len(packet)))
            if options.reorder and self._random.random() < options.reorder:
                # As netem does it: this one goes at once, past those that are under way.
                self.reordered += 1
            else:
                at += max(0.0, options.delay + self._random.uniform(-options.jitter, options.jitter))
            heapq.heappush(self._due, (at, next(self._order), packet))

    def give(self, now: float) -> None:
        """Delivers what is due."""
        while self._due and self._due[0][0] <= now:
            packet = heapq.heappop(self._due)[2]
            try:
                os.write(self.target, packet)
                self.carried += 1
            except OSError:
                # The device is down: a cut link.
                self.lost += 1

    def wait(self, now: float) -> float:
        """Seconds to the next delivery."""
        return max(0.0, self._due[0][0] - now) if self._due else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("devices", nargs=2, type=int)
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets, each way")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, each way")
    parser.add_argument("--jitter", type=float, default=0.0, help="seconds more or less than the delay, at random")
    parser.add_argument("--reorder", type=float, default=0.0, help="share of packets that are not delayed")
    parser.add_argument("--rate", type=float, default=0.0, help="bits a second, each way; 0: no limit")
    parser.add_argument("--queue", type=int, default=64 * 1024, help="bytes that wait where there is a rate")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    a, b = options.devices
    for device in (a, b):
        os.set_blocking(device, False)
    ways = [Direction(a, b, options, options.seed), Direction(b, a, options, options.seed + 1)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    poll = select.epoll()
    for device in (a, b):
        poll.register(device, select.EPOLLIN)
    try:
        while True:
            now = time.monotonic()
            poll.poll(min(way.wait(now) for way in ways))
            for way in ways:
                way.take()
                way.give(time.monotonic())
    finally:
        for name, way in zip(("there", "back"), ways, strict=True):
            print(
                f"{name}: {way.carried} packets carried, {way.lost} lost, {way.reordered} sent ahead, "
                f"{way.overflowed} dropped from the queue",
                flush=True,
            )


if __name__ == "__main__":
    main()
