"""The order of rounds, what is left out and why, what is written as it comes, and going on after an interruption."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_bench_report import measured

from nvmuser.bench.measure import environment
from nvmuser.bench.measure.progress import Silent
from nvmuser.bench.measure.runner import FioRun
from nvmuser.bench.report import analysis, records
from nvmuser.bench.report.result import Series
from nvmuser.bench.rounds import matrix, session
from nvmuser.bench.rounds.peers import Slot
from nvmuser.bench.rounds.session import Session, SessionPlan
from nvmuser.errors import GuestError, UsageError

CASES = [case for case in matrix.short(matrix.Timing()) if case.job.rw == "randread" and case.job.iodepth == 1]
IRQ, POLL = (case.job.name for case in CASES)


class Bench:
    """Slots without guests: what is measured on them is only noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
        self.output = output
        self.visits: list[tuple[str, str]] = []
        self.running: set[str] = set()
        self.broken: set[str] = set()
        self.closed: list[str] = []
        self.no_poll: set[str] = set()
        self.unsteady = ""
        self.interrupt_at: int | None = None
        monkeypatch.setattr(session.runner, "run", self._run)
        monkeypatch.setattr(session.versions, "look", self._versions)
        monkeypatch.setattr(session.environment, "spin", lambda: 0.01)
        monkeypatch.setattr(session, "accelerator", lambda: "tcg")

    async def _versions(self, _guest: object) -> dict[str, str]:
        return {"spdk": "26.01"}

    async def _run(self, guest: str, workload: Any, _devices: Sequence[str], **_: Any) -> FioRun:
        if self.interrupt_at == len(self.visits):
            raise KeyboardInterrupt
        self.visits.append((workload.name, guest))
        assert self.running == {guest}
        if guest in self.broken:
            raise GuestError("it went away")
        iops = [100.0] * 5 if guest != self.unsteady else [100.0, 200, 300, 400, 500]
        series = Series([0.0, 1, 2, 3, 4], iops, [1.0] * 5)
        job = replace(measured("randread"), name=workload.name, series=series)
        return FioRun([job], {"fio.json": str(len(self.visits)).encode()})

    @contextlib.asynccontextmanager
    async def open(self, name: str, _cpus: int) -> AsyncIterator[Slot]:
        if name == "absent":
            raise GuestError("not here")
        bench = self
        bench.running.add(name)

        class FakeSlot(Slot):
            async def pause(self) -> None:
                bench.running.discard(name)

            async def resume(self) -> None:
                bench.running.add(name)

        processes = {"target": [os.getpid()]}
        polled = name not in self.no_poll
        yield FakeSlot(name, name, "/dev/x", processes, polled=polled, hugepages=True)  # type: ignore[arg-type]
        self.closed.append(name)

    async def measure(self, plan: SessionPlan, *, resume: bool = False) -> records.Comparison:
        earlier = records.interrupted(self.output) if resume else None
        with records.Writer(self.output / records.FILE, append=resume) as writer:
            await Session(plan, self.open, self.output, writer, Silent(), earlier).run()
        return records.read(self.output)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    return Bench(monkeypatch, tmp_path)


async def test_jobs_are_interleaved_in_a_balanced_order(bench: Bench) -> None:
    found = await bench.measure(SessionPlan(CASES, ["a", "b", "c"], "a", rounds=2))
    assert [visit for visit in bench.visits if visit[0] == IRQ] == [(IRQ, name) for name in "abccba"]
    assert len(found.runs) == 12
    assert found.footer is not None
    assert found.base == "a"
    assert (bench.output / "fio" / "round2" / "c" / POLL / "fio.json").is_file()
    assert bench.closed == ["c", "b", "a"]


async def test_one_that_cannot_is_left_out_with_its_reason(bench: Bench) -> None:
    bench.broken, bench.no_poll = {"b"}, {"c"}
    found = await bench.measure(SessionPlan(CASES, ["a", "absent", "b", "c"], "a", rounds=2))
    assert found.peers == ["a", "c"]
    assert found.skipped["absent"] == "not here"
    assert "from round 1 on: it went away" in found.skipped["b"]
    assert "no polled queue that works" in found.skipped["c"]
    assert [visit for visit in bench.visits if visit[1] == "b"] == [(IRQ, "b")]
    assert (POLL, "c") not in bench.visits


async def test_the_header_tells_what_the_guests_were(bench: Bench) -> None:
    found = await bench.measure(SessionPlan(CASES, ["absent", "a", "b"], "a", rounds=1).with_files_on(Path("/dev/shm")))
    assert found.header["guest"] == {"cpus": [1], "memory_bytes": 512 << 20, "hugepages": True}
    assert found.header["peers_setup"].keys() == {"a", "b"}
    own = Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0")
    assert found.header["peers_setup"]["a"]["target"] == own
    assert found.header["settings"]["file_system"] == "tmpfs"
    assert found.skipped == {"absent": "not here"}


async def test_there_is_one_noise(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    spins = iter([0.05, 0.08, 0.02])
    monkeypatch.setattr(session.environment, "spin", lambda: next(spins))
    found = await bench.measure(SessionPlan(CASES, ["a", "b"], "a", rounds=2))
    summary = analysis.summary(found)
    assert summary["noise"] == 0.08
    assert {key: value for key, value in summary["environment"].items() if "noise" in key} == {"noise_before": 0.05}


async def test_an_unsteady_run_is_repeated_once_and_marked(bench: Bench) -> None:
    bench.unsteady = "b"
    found = await bench.measure(SessionPlan(CASES[:1], ["a", "b"], "a", rounds=1))
    assert bench.visits == [(IRQ, "a"), (IRQ, "b"), (IRQ, "b")]
    assert [(run.peer, run.steady, run.attempt) for run in found.runs] == [("a", True, 1), ("b", False, 2)]
    kept = bench.output / "fio" / "round1" / "b" / IRQ
    assert (kept / "fio.json").read_text() == "3"
    assert (kept / "attempt1" / "fio.json").read_text() == "2"


async def test_without_the_base_there_is_nothing_to_say(bench: Bench) -> None:
    bench.broken = {"a"}
    with pytest.raises(GuestError, match="went away"):
        await bench.measure(SessionPlan(CASES, ["a", "b"], "a"))
    with pytest.raises(UsageError, match="needs a"):
        SessionPlan(CASES, ["b"], "a")


async def test_an_interrupted_run_goes_on_where_it_was(bench: Bench) -> None:
    plan = SessionPlan(CASES, ["a", "b"], "a", rounds=2)
    bench.interrupt_at = 5
    with pytest.raises(KeyboardInterrupt):
        await bench.measure(plan)
    with (bench.output / records.FILE).open("a") as file:
        file.write('{"kind": "run", "rou')  # what a full disk leaves
    bench.running.clear()
    bench.interrupt_at = None
    assert records.read(bench.output).footer is None

    found = await bench.measure(plan, resume=True)
    assert len(found.runs) == len({(run.round, run.job, run.peer) for run in found.runs}) == 8
    # Five were measured; the fifth had no partner yet, so that both of that round are measured now.
    assert bench.visits[5:] == [(IRQ, "b"), (IRQ, "a"), (POLL, "b"), (POLL, "a")]
    assert found.footer is not None
    with pytest.raises(UsageError, match="is complete"):
        records.interrupted(bench.output)


async def test_other_settings_do_not_go_on(bench: Bench) -> None:
    bench.interrupt_at = 1
    with pytest.raises(KeyboardInterrupt):
        await bench.measure(SessionPlan(CASES, ["a", "b"], "a", rounds=2))
    bench.interrupt_at = None
    bench.running.clear()
    with pytest.raises(UsageError, match="differs in rounds"):
        await bench.measure(SessionPlan(CASES, ["a", "b"], "a", rounds=3), resume=True)


async def test_another_machine_does_not_go_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SessionPlan(CASES, ["a", "b"], "a", rounds=2)
    bench.interrupt_at = 1
    with pytest.raises(KeyboardInterrupt):
        await bench.measure(plan)
    bench.interrupt_at = None
    bench.running.clear()
    monkeypatch.setattr(environment.platform, "release", lambda: "9.9")
    with pytest.raises(UsageError, match=r"differs in environment.kernel \(.*, 9\.9\)"):
        await bench.measure(plan, resume=True)


async def test_no_round_is_begun_that_would_end_too_late(bench: Bench) -> None:
    found = await bench.measure(SessionPlan(CASES, ["a", "b"], "a", rounds=5, minutes=0))
    assert {run.round for run in found.runs} == {0}
    assert found.footer is not None
