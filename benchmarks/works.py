"""What is measured: each work is one way to run wsload."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WORKS", "Work"]


@dataclass(frozen=True)
class Work:
    """One row of the comparison."""

    name: str
    title: str
    #: wsload's mode and options, without host, port, path and durations.
    mode: str
    options: tuple[str, ...]
    #: What one unit of the rate is.
    unit: str = "messages"
    #: Whether permessage-deflate is offered, and the servers run with it.
    deflate: bool = False
    #: The route: an echo, or one that sends each message to all who are on it, by a topic or without.
    path: str = "/"
    #: Whether it goes over TLS.
    tls: bool = False
    #: Of idle connections: whether what counts is the CPU time of keeping them alive, and not their memory.
    pinged: bool = False


WORKS = {
    work.name: work
    for work in (
        Work("echo", "echo of 125 B text, 64 connections, 1 in flight", "echo", ("-c64", "-w1", "-s125")),
        Work("pipelined", "echo of 125 B text, 64 connections, 16 in flight", "echo", ("-c64", "-w16", "-s125")),
        Work(
            "fragments",
            "echo of 4 KiB text in 16 fragments, 64 connections, 1 in flight",
            "echo",
            ("-c64", "-w1", "-s4096", "-t16"),
        ),
        Work("64k", "echo of 64 KiB binary, 16 connections, 1 in flight", "echo", ("-c16", "-w1", "-s65536", "-b")),
        Work("4m", "echo of 4 MiB binary, 4 connections, 1 in flight", "echo", ("-c4", "-w1", "-s4194304", "-b")),
        Work(
            "sessions",
            "whole sessions: open, echo 125 B, close; 64 at a time",
            "connect",
            ("-c64", "-s125"),
            unit="sessions",
        ),
        Work(
            "deflate-1k",
            "deflate echo of 1 KiB text, 64 connections, 1 in flight",
            "echo",
            ("-c64", "-w1", "-s1024", "-z"),
            deflate=True,
        ),
        Work(
            "deflate-64k",
            "deflate echo of 64 KiB text, 16 connections, 1 in flight",
            "echo",
            ("-c16", "-w1", "-s65536", "-z"),
            deflate=True,
        ),
        Work(
            "tls",
            "echo of 125 B text over TLS, 64 connections, 1 in flight",
            "echo",
            ("-c64", "-w1", "-s125", "-T"),
            tls=True,
        ),
        Work(
            "publish",
            "125 B text to 500 subscribers; what counts is us/delivery, as the client is the limit",
            "publish",
            ("-c500", "-s125"),
            unit="deliveries",
            path="/publish",
        ),
        Work(
            "publish-10k",
            "125 B text to 10,000 subscribers; what counts is us/delivery",
            "publish",
            ("-c10000", "-s125"),
            unit="deliveries",
            path="/publish",
        ),
        Work(
            "publish-deflate",
            "1 KiB text, deflated, to 500 subscribers; what counts is us/delivery",
            "publish",
            ("-c500", "-s1024", "-z"),
            unit="deliveries",
            deflate=True,
            path="/publish",
        ),
        Work(
            "topic",
            "125 B text published on a topic of 500 subscribers; what counts is us/delivery",
            "publish",
            ("-c500", "-s125"),
            unit="deliveries",
            path="/topic",
        ),
        Work(
            "topic-10k",
            "125 B text published on a topic of 10,000 subscribers; what counts is us/delivery",
            "publish",
            ("-c10000", "-s125"),
            unit="deliveries",
            path="/topic",
        ),
        Work("idle", "memory of 10,000 idle connections", "hold", ("-c10000",), unit="connections"),
        Work(
            "pinged",
            "CPU time of 10,000 idle connections that the server pings every 20 s",
            "hold",
            ("-c10000",),
            unit="connections",
            pinged=True,
        ),
    )
}
