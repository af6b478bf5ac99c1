"""The machine on which something was measured, and how quiet it was.

Owns reading /proc and /sys for what changes a benchmark, and the idle spin. Versions of SPDK, QEMU and the
guest come from the code that started them.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_SLICES = 60
_SLICE_SECONDS = 0.004


def _line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _field(path: str, name: str) -> str | None:
    for line in (_line(path) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


@dataclass(frozen=True)
class Environment:
    """`noise_before` and `noise_after` are shares of CPU time that others took while we only span."""

    cpu_model: str
    cpus: int
    memory_bytes: int
    kernel: str
    governor: str | None
    hypervisor: bool
    hugepages_total: int
    hugepages_free: int
    hugepage_bytes: int
    load_average: float
    noise_before: float | None = None
    noise_after: float | None = None

    @property
    def noise(self) -> float | None:
        """The worse noise of both."""
        return max((value for value in (self.noise_before, self.noise_after) if value is not None), default=None)

    def to_json(self) -> dict[str, object]:
        """The fields, and `noise`."""
        return {**asdict(self), "noise": self.noise}

    def begun(self) -> dict[str, object]:
        """What is known before anything is measured: how quiet it was before, and nothing of afterwards."""
        return {name: value for name, value in asdict(self).items() if name != "noise_after"}


def describe(environment: Mapping[str, Any]) -> str:
    """The machine in a line, from a result's `environment`."""
    virtual = ", a virtual machine" if environment.get("hypervisor") else ""
    return f"{environment['cpu_model']}, {environment['cpus']} CPUs, kernel {environment['kernel']}{virtual}"


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The type of the file system that a directory is on."""
    directory, depth, found = path.resolve(), 0, None
    for line in (_line(str(mounts)) or "").splitlines():
        place, _, source = line.partition(" - ")
        point = Path(place.split()[4].replace("\\040", " "))
        # The longest is the nearest; of two at one place the later one hides the other.
        if directory.is_relative_to(point) and len(point.parts) >= depth:
            depth, found = len(point.parts), source.split()[0]
    return found


def look() -> Environment:
    """What this machine is at this moment. Takes no measurable time and does not spin."""
    meminfo = "/proc/meminfo"
    return Environment(
        cpu_model=_field("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        governor=_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        hypervisor=" hypervisor" in (_field("/proc/cpuinfo", "flags") or ""),
        hugepages_total=int(_field(meminfo, "HugePages_Total") or 0),
        hugepages_free=int(_field(meminfo, "HugePages_Free") or 0),
        hugepage_bytes=int((_field(meminfo, "Hugepagesize") or "0 kB").split()[0]) << 10,
        load_average=os.getloadavg()[0],
    )


def _work(rounds: int) -> float:
    start = time.perf_counter()
    total = 0
    for number in range(rounds):
        total += number
    return time.perf_counter() - start


def _polled(processes: Iterable[int]) -> set[int]:
    """CPUs to which SPDK has bound a reactor (lib/event/reactor.c names these threads so)."""
    found: set[int] = set()
    for pid in processes:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                if (thread / "comm").read_text().startswith("reactor_"):
                    found |= os.sched_getaffinity(int(thread.name))
    return found


def spin(beside: Iterable[int] = ()) -> float:
    """The share of time that this machine took away from a loop that should have had a CPU for itself; the
    worst CPU.

    The same work again and again, for about a quarter of a second on each CPU: 1 - fastest / mean. A quiet
    machine gives under 0.05. Blocks for as long, on purpose: run it in a thread where something else must go
    on.

    :param beside: processes of ours that go on meanwhile. CPUs that these poll are left out.
    """
    allowed = os.sched_getaffinity(0)
    rounds = 1000
    # The fastest of some: one that was interrupted would end the search too early.
    while min(_work(rounds) for _ in range(5)) < _SLICE_SECONDS:
        rounds *= 2
    worst = 0.0
    try:
        for cpu in sorted(allowed - _polled(beside) or allowed):
            os.sched_setaffinity(0, {cpu})
            slices = [_work(rounds) for _ in range(_SLICES)]
            worst = max(worst, 1 - min(slices) / (sum(slices) / len(slices)))
    finally:
        os.sched_setaffinity(0, allowed)
    return worst
