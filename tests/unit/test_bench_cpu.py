"""The guest's CPU time, from logs of real runs (under emulation, one CPU)."""

from __future__ import annotations

import pytest

from nvmuser.bench.measure import cpu

# Of each: seconds since the guest's start, and /proc/stat; the middle line and the next are inside the run.
DEPTH_1 = """\
cpus 1
4.11 cpu  45 0 301 0 0 0 2 0 0 0
5.13 cpu  70 0 323 10 35 0 2 0 0 0
6.14 cpu  78 0 343 10 87 0 2 0 0 0
6.62 cpu  81 0 352 19 103 0 2 0 0 0
"""
DEPTH_32 = """\
cpus 1
8.91 cpu  115 0 532 35 103 0 4 0 0 0
9.92 cpu  138 0 569 45 105 0 4 0 0 0
10.94 cpu  158 0 609 45 107 0 4 0 0 0
11.33 cpu  166 0 619 51 107 0 4 0 0 0
"""


@pytest.mark.parametrize(
    ("log", "start", "end", "share", "fio"),
    [(DEPTH_1, 5.13, 6.14, 0.485, 0.323), (DEPTH_32, 9.92, 10.94, 0.98, 0.882)],
    ids=["depth-1", "depth-32"],
)
def test_a_guest_uses_at_least_what_its_fio_uses(log: str, start: float, end: float, share: float, fio: float) -> None:
    used = cpu.used(cpu.guest_samples(log), start, end)
    assert used == pytest.approx(share, abs=0.005)
    assert used > fio


def test_every_cpu_of_the_guest_counts() -> None:
    log = "cpus 2\n1.00 cpu 0 0 0 100 0 0 0 0 0 0\n2.00 cpu 0 0 0 150 0 0 0 0 0 0\n"
    assert cpu.used(cpu.guest_samples(log), 1, 2) == pytest.approx(1.5)


@pytest.mark.parametrize("log", ["", "1.00 cpu 0 0 0 100 0 0 0 0 0 0\n", "cpus 1\n1.00 cpu 0 0"])
def test_a_log_that_was_cut_off_tells_nothing(log: str) -> None:
    assert cpu.guest_samples(log) == []
