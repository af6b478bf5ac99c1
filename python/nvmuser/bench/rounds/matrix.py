"""The jobs of a comparison: the short set that answers the question, and the full one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from nvmuser.bench.measure.fio import Job


@dataclass(frozen=True)
class Case:
    """One job, and in what guest."""

    job: Job
    guest_cpus: int = 1

    @property
    def poll(self) -> bool:
        """Whether the job needs a queue without interrupts."""
        return self.job.poll


@dataclass(frozen=True)
class Timing:
    """Seconds of each run: warm-up, which fio leaves out, and what is measured."""

    runtime: float = 2.0
    ramp: float = 1.0


def _case(rw: str, bs: str, depth: int, mode: str, cpus: int, timing: Timing) -> Case:
    """`mode`: `irq` and `poll` are io_uring, `libaio` is libaio (with interrupts, for it cannot poll)."""
    suffix = "" if cpus == 1 else f"-{cpus}cpu"
    job = Job(
        name=f"{rw}-{bs}-qd{depth}-{mode}{suffix}",
        rw=rw,
        bs=bs,
        iodepth=depth,
        ioengine="libaio" if mode == "libaio" else "io_uring",
        poll=mode == "poll",
        runtime=timing.runtime,
        ramp=timing.ramp,
        # One job a guest CPU, each with the depth: more CPUs are there to do more.
        numjobs=cpus,
    )
    return Case(job, cpus)


def short(timing: Timing) -> list[Case]:
    """4k random read and write at depths 1 and 32, with interrupts and polling."""
    return [
        _case(rw, "4k", depth, mode, 1, timing)
        for rw, depth, mode in product(("randread", "randwrite"), (1, 32), ("irq", "poll"))
    ]


def full(timing: Timing) -> list[Case]:
    """All of random, sequential and mixed; 4k and 128k; depths 1, 8, 32; three modes of submission; 1 and 2
    CPUs.
    """

    def cases() -> Iterator[Case]:
        for cpus, bs, rw in product((1, 2), ("4k", "128k"), ("randread", "randwrite", "randrw", "read", "write", "rw")):
            for depth, mode in product((1, 8, 32), ("irq", "poll", "libaio")):
                yield _case(rw, bs, depth, mode, cpus, timing)

    return list(cases())
