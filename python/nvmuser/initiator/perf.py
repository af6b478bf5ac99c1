"""The measuring loop, which runs in C: patterns at some depth for some seconds, and the latencies that it measured.

Owns the options and what is made of the counters. Several loads, each on a controller, may run in one loop, so that
clients do not compete for a CPU. Comparing is left to `nvmuser.bench.scenarios`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

from nvmuser.errors import HostError, UsageError
from nvmuser.initiator.commands import Opcode
from nvmuser.initiator.controller import Controller, Namespace
from nvmuser.initiator.environment import api, reason

PATTERNS = {"read": (100, False), "write": (0, False), "rw": (50, False)}
PATTERNS |= {f"rand{name}": (share, True) for name, (share, _) in PATTERNS.items()}
"""Name, as fio and spdk_nvme_perf have it: percentage of reads, and whether at random."""
FOLLOWERS = (Opcode.FLUSH, Opcode.DATASET_MANAGEMENT, Opcode.WRITE_ZEROES)
"""What may follow each write of a load; Dataset Management deallocates what was written."""
_SLICE_MS = 100
"""How long the loop runs without looking whether it was interrupted, or the controller is gone."""
_BUCKETS = 8192


@dataclass(frozen=True)
class PerfResult:
    """What the loop measured. Latencies are in microseconds, `seconds` without the warm-up, `size` in bytes.

    :param followed: how many of the commands followed a write (`Load`, `then`).
    :param histogram: upper bound of each filled bucket, and how many commands fell into it.
    """

    pattern: str
    depth: int
    size: int
    seconds: float
    ios: int
    errors: int
    followed: int
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
                return min(bound, self.max_us)
        return self.max_us

    def to_json(self) -> dict[str, Any]:
        """The fields by name, and `iops`."""
        return {**asdict(self), "iops": self.iops}


class Load:
    """Commands of `size` bytes on a queue of their own, `depth` at a time, each submitted when one has ended.

    Nothing happens but in `run`: what is in flight between two runs stays so. Close it, or use it as a context manager.

    :param then: the command that follows each write, for the same blocks: one of `FOLLOWERS`.
    :param rest_us: sleep so many microseconds when nothing has completed, where a CPU is not the loop's own; 0: poll.
    :raises UsageError: an unknown pattern, a depth that is not 1 to 1024, a size that is no number of blocks, or a
        command that cannot follow.
    :raises HostError: no queue, or no memory.
    """

    def __init__(
        self, controller: Controller, namespace: Namespace, *, pattern: str = "randread", depth: int = 32,
        size: int = 4096, then: Opcode | None = None, seed: int = 1, rest_us: int = 0,
    ) -> None:  # fmt: skip
        _check(namespace, pattern, depth, size, then)
        self.controller, self.pattern, self.depth, self.size = controller, pattern, depth, size
        self._ffi, self._lib = api()
        share, random = PATTERNS[pattern]
        options = self._ffi.new("struct nvmuser_perf_options *", {
            "depth": depth, "io_size": size, "read_percent": share, "random": random, "seed": seed,
            "then": self._lib.NVMUSER_NOTHING if then is None else then, "rest_us": rest_us,
        })  # fmt: skip
        self._perf = self._lib.nvmuser_perf_open(controller.pointer, namespace.handle(controller), options)
        if not self._perf:
            raise HostError(f"no queue or no memory for depth {depth} of {size} bytes{reason()}")

    @property
    def handle(self) -> Any:
        """The loop's own.

        :raises HostError: it is closed.
        """
        if self._perf is None:
            raise HostError(f"{self.controller.path}: the load is closed")
        return self._perf

    def reset(self) -> None:
        """Forget what was measured so far."""
        self._lib.nvmuser_perf_reset(self.handle)

    def result(self) -> PerfResult:
        """What was measured since the last reset.

        :raises HostError: no command has completed.
        """
        return _result(self._ffi, self._lib, self)

    def close(self) -> None:
        """Wait for what is in flight, and delete the queue. Idempotent."""
        if self._perf is not None:
            self._lib.nvmuser_perf_close(self._perf)
            self._perf = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def run(loads: Sequence[Load], seconds: float) -> None:
    """Run loads in one loop. Their controllers are not polled: the caller does so, to learn of one that went away.

    :raises HostError: the driver took no more commands.
    """
    ffi, lib = api()
    handles = [load.handle for load in loads]
    failed = lib.nvmuser_perf_run(ffi.new("struct nvmuser_perf *[]", handles), len(loads), max(1, round(seconds * 1e3)))
    if failed:
        raise HostError(f"the driver took no more commands: {os.strerror(-failed)}")


def measure(
    controller: Controller, namespace: Namespace, *, pattern: str = "randread", depth: int = 32, size: int = 4096,
    seconds: float = 1.0, warmup: float = 0.0, seed: int = 1, rest_us: int = 0,
) -> PerfResult:  # fmt: skip
    """Run one load to its end.

    :param warmup: seconds before that are not counted.
    :param rest_us: as of `Load`.
    :raises UsageError: an unknown pattern, a depth that is not 1 to 1024, or a size that is no number of blocks.
    :raises HostError: the queue could not be made, or no command completed.
    :raises HostConnectionError: the controller went away.
    """
    with Load(controller, namespace, pattern=pattern, depth=depth, size=size, seed=seed, rest_us=rest_us) as load:
        _run(load, warmup)
        load.reset()
        _run(load, seconds)
        return load.result()


def _check(namespace: Namespace, pattern: str, depth: int, size: int, then: Opcode | None) -> None:
    if pattern not in PATTERNS:
        raise UsageError(f"pattern {pattern!r}: choose among {', '.join(PATTERNS)}")
    if not 1 <= depth <= 1024:
        raise UsageError(f"a depth is 1 to 1024, not {depth}")
    if size <= 0 or size % namespace.block_size or size > namespace.size:
        raise UsageError(f"{size} bytes are no whole number of blocks ({namespace.block_size} bytes) of the namespace")
    if then is not None and then not in FOLLOWERS:
        raise UsageError(f"{then.name} follows no write: choose among {', '.join(each.name for each in FOLLOWERS)}")


def _run(load: Load, seconds: float) -> None:
    """Run in slices, between which an interrupt of the program is seen, and a controller that is gone."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            run([load], min(_SLICE_MS / 1000, left))
        finally:
            # That it is gone says more than that the driver took no more commands.
            load.controller.poll()


def _result(ffi: Any, lib: Any, load: Load) -> PerfResult:
    raw = ffi.new("struct nvmuser_perf_result *")
    lib.nvmuser_perf_result(load.handle, raw)
    bounds, counts = ffi.new("uint64_t[]", _BUCKETS), ffi.new("uint64_t[]", _BUCKETS)
    filled = lib.nvmuser_perf_histogram(load.handle, bounds, counts, _BUCKETS)
    us = 1e6 / raw.tick_hz
    if not raw.ios:
        raise HostError("no command completed in the time that was measured")
    return PerfResult(
        load.pattern, load.depth, load.size, raw.ticks / raw.tick_hz, raw.ios, raw.errors, raw.followed,
        raw.total / raw.ios * us, raw.min * us, raw.max * us,
        [(bounds[n] * us, counts[n]) for n in range(filled)],
    )  # fmt: skip
