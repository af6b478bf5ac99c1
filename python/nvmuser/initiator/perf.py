"""The measuring loop, which runs in C: a pattern at a depth for some seconds, and the latencies that it measured.

Owns the options and what is made of the counters. Comparing it with others is left to `nvmuser.bench.scenarios.host`.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from nvmuser.errors import HostError, UsageError
from nvmuser.initiator.controller import Controller, Namespace
from nvmuser.initiator.environment import api, reason

PATTERNS = {"read": (100, False), "write": (0, False), "rw": (50, False)}
PATTERNS |= {f"rand{name}": (share, True) for name, (share, _) in PATTERNS.items()}
"""Name, as fio and spdk_nvme_perf have it: percentage of reads, and whether at random."""
_SLICE_MS = 100
"""How long the loop runs without looking whether it was interrupted, or the controller is gone."""
_BUCKETS = 8192


@dataclass(frozen=True)
class PerfResult:
    """What the loop measured. Latencies are in microseconds, `seconds` without the warm-up, `size` in bytes.

    :param histogram: upper bound of each filled bucket, and how many commands fell into it.
    """

    pattern: str
    depth: int
    size: int
    seconds: float
    ios: int
    errors: int
    mean_us: float
    min_us: float
    max_us: float
    histogram: list[tuple[float, int]] = field(repr=False)

    @property
    def iops(self) -> float:
        """Commands a second."""
        return self.ios / self.seconds

    def percentile(self, share: float) -> float:
        """The latency in microseconds that `share` percent of the commands did not exceed."""
        wanted = self.ios * share / 100
        seen = 0
        for bound, count in self.histogram:
            seen += count
            if seen >= wanted:
                return bound
        return self.max_us

    def to_json(self) -> dict[str, Any]:
        """The fields by name, and `iops`."""
        return {**asdict(self), "iops": self.iops}


def measure(
    controller: Controller, namespace: Namespace, *, pattern: str = "randread", depth: int = 32, size: int = 4096,
    seconds: float = 1.0, warmup: float = 0.0, seed: int = 1,
) -> PerfResult:  # fmt: skip
    """Run commands of `size` bytes to completion, `depth` at a time, each submitted when one has ended.

    :param warmup: seconds before that are not counted.
    :raises UsageError: an unknown pattern, a depth that is not 1 to 1024, or a size that is no number of blocks.
    :raises HostError: the queue could not be made, or no command completed.
    :raises HostConnectionError: the controller went away.
    """
    _check(namespace, pattern, depth, size)
    ffi, lib = api()
    share, random = PATTERNS[pattern]
    options = ffi.new("struct nvmuser_perf_options *", {
        "depth": depth, "io_size": size, "read_percent": share, "random": random, "seed": seed,
    })  # fmt: skip
    perf = lib.nvmuser_perf_open(controller.pointer, namespace.handle(controller), options)
    if not perf:
        raise HostError(f"no queue or no memory for depth {depth} of {size} bytes{reason()}")
    try:
        _run(lib, perf, controller, warmup)
        lib.nvmuser_perf_reset(perf)
        _run(lib, perf, controller, seconds)
        return _result(ffi, lib, perf, pattern, depth, size)
    finally:
        lib.nvmuser_perf_close(perf)


def _check(namespace: Namespace, pattern: str, depth: int, size: int) -> None:
    if pattern not in PATTERNS:
        raise UsageError(f"pattern {pattern!r}: choose among {', '.join(PATTERNS)}")
    if not 1 <= depth <= 1024:
        raise UsageError(f"a depth is 1 to 1024, not {depth}")
    if size <= 0 or size % namespace.block_size or size > namespace.size:
        raise UsageError(f"{size} bytes are no whole number of blocks ({namespace.block_size} bytes) of the namespace")


def _run(lib: Any, perf: Any, controller: Controller, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        failed = lib.nvmuser_perf_run(perf, max(1, min(_SLICE_MS, round(left * 1000))))
        controller.poll()
        if failed:
            raise HostError(f"the driver took no more commands: {os.strerror(-failed)}")


def _result(ffi: Any, lib: Any, perf: Any, pattern: str, depth: int, size: int) -> PerfResult:
    raw = ffi.new("struct nvmuser_perf_result *")
    lib.nvmuser_perf_result(perf, raw)
    bounds, counts = ffi.new("uint64_t[]", _BUCKETS), ffi.new("uint64_t[]", _BUCKETS)
    filled = lib.nvmuser_perf_histogram(perf, bounds, counts, _BUCKETS)
    us = 1e6 / raw.tick_hz
    if not raw.ios:
        raise HostError("no command completed in the time that was measured")
    return PerfResult(
        pattern, depth, size, raw.ticks / raw.tick_hz, raw.ios, raw.errors,
        raw.total / raw.ios * us, raw.min * us, raw.max * us,
        [(bounds[n] * us, counts[n]) for n in range(filled)],
    )  # fmt: skip
