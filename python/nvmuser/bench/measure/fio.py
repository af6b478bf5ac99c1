"""fio jobs: what to measure, as the job file that fio reads, and the command that runs it.

Owns the job model and the options that every run of ours has (latency percentiles over the whole of
submission and completion, logs over time). Does not run anything (`runner`) and does not read fio's output
(`fio_output`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nvmuser.errors import UsageError, reason_of

MODES = ("read", "write", "randread", "randwrite", "randrw", "rw", "trim", "randtrim")
ENGINES = ("libaio", "io_uring", "psync", "sync")
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)

_LOG_INTERVAL_MS = 500
_POINTS = 20
"""Of a run and its warm-up over time, at least: the test for a steady state needs two in each of five windows."""

OUTPUT = "fio.json"
JOB_FILE = "job.fio"
ERRORS = "fio.err"
LOG_PREFIX = "log"

_SIZE = re.compile(r"^(\d+)([kmgt]?)(i?b)?$", re.IGNORECASE)
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


def parse_size(text: str) -> int:
    """`4k`, `256M`, `1GiB` in bytes; powers of 1024, as fio has them.

    :raises UsageError: not a size, or zero.
    """
    match = _SIZE.match(text.strip())
    if match is None or int(match[1]) == 0:
        raise UsageError(f"'{text}' is not a size: give a number with k, M or G, such as 4k or 256M")
    return int(match[1]) << (10 * " kmgt".index(match[2].lower() or " "))


def _duration(seconds: float) -> str:
    """fio has no fractions of a second, but milliseconds."""
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"{seconds * 1000:.0f}ms"


@dataclass(frozen=True)
class Job:
    """One measurement: a mode, a block size, a depth, for so long or over so much.

    A verifying job ends by its amount (`io_size`, else `size`) and never by the clock: fio skips the reading
    back when the run-time is over, and would report a verification that did not take place.

    :raises UsageError: the options contradict each other.
    """

    name: str
    rw: str
    bs: str = "4k"
    iodepth: int = 1
    ioengine: str = "libaio"
    runtime: float | None = None
    ramp: float = 0.0
    size: str | None = None
    io_size: str | None = None
    numjobs: int = 1
    rwmixread: int = 70
    verify: str | None = None
    poll: bool = False
    extra: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise UsageError(f"'{self.name}' is not a job name: letters, digits, dots, dashes, underscores, at most 64")
        if self.rw not in MODES:
            raise UsageError(f"'{self.rw}' is not a mode: one of {', '.join(MODES)}")
        if self.ioengine not in ENGINES:
            raise UsageError(f"'{self.ioengine}' is not an I/O engine that is measured: one of {', '.join(ENGINES)}")
        for value in filter(None, (self.bs, self.size, self.io_size)):
            parse_size(value)
        if not 1 <= self.iodepth <= 4096:
            raise UsageError(f"a depth of {self.iodepth} is not possible: 1 to 4096")
        if self.numjobs < 1:
            raise UsageError(f"{self.numjobs} jobs cannot run: at least 1")
        if self.poll and self.ioengine != "io_uring":
            raise UsageError("polled queues are reached through io_uring only: use --ioengine io_uring")
        self._check_end()

    def _check_end(self) -> None:
        if self.verify and self.rw not in ("write", "randwrite"):
            raise UsageError(f"verifying needs a job that only writes (write, randwrite), not {self.rw}")
        if self.verify and self.runtime is not None:
            raise UsageError(
                "a verifying job ends by its amount: give a size and no run-time (fio would skip verifying)"
            )
        if self.runtime is not None and self.runtime <= 0:
            raise UsageError(f"a run-time of {self.runtime:g} s measures nothing")
        if self.runtime is None and not (self.size or self.io_size):
            raise UsageError("a job needs an end: a run-time or a size")

    @property
    def options(self) -> dict[str, str]:
        """The job's section in fio's words."""
        options = {
            "rw": self.rw,
            "bs": self.bs,
            "iodepth": str(self.iodepth),
            "ioengine": self.ioengine,
            "size": self.size,
            "io_size": self.io_size,
        }
        if self.rw in ("randrw", "rw"):
            options["rwmixread"] = str(self.rwmixread)
        if self.runtime is not None:
            options |= {"time_based": "1", "runtime": _duration(self.runtime)}
        if self.ramp:
            options["ramp_time"] = _duration(self.ramp)
        if self.numjobs > 1:
            options |= {"numjobs": str(self.numjobs), "group_reporting": "1"}
        if self.poll:
            options["hipri"] = "1"
        if self.verify:
            # Go on after a wrong block, so that all of them are counted.
            options |= {
                "verify": self.verify,
                "do_verify": "1",
                "verify_state_save": "0",
                "continue_on_error": "verify",
            }
        return {key: value for key, value in options.items() if value is not None} | dict(self.extra)

    def workload(self) -> Workload:
        """The job file with this job alone."""
        lines = [f"[{self.name}]", *(f"{key}={value}" for key, value in self.options.items())]
        seconds = None if self.runtime is None else self.runtime + self.ramp
        return Workload(self.name, "\n".join(lines) + "\n", seconds, writes=self.rw not in ("read", "randread"))


@dataclass(frozen=True)
class Workload:
    """A job file for one run of fio: made from a `Job`, or given by the user.

    :param seconds: how long it runs, where that is known beforehand.
    :param writes: it may change the device's data.
    """

    name: str
    text: str
    seconds: float | None = None
    writes: bool = True

    @property
    def interval_ms(self) -> int:
        """Width of a point in the series over time: wide enough to cost next to nothing, and enough of
        them.
        """
        if self.seconds is None:
            return _LOG_INTERVAL_MS
        return min(_LOG_INTERVAL_MS, max(1, int(self.seconds * 1000 / (_POINTS))))

    @classmethod
    def from_file(cls, path: Path) -> Workload:
        """:raises UsageError: unreadable, or no job in it."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the fio job file {path}: {reason_of(error)}") from None
        sections = re.findall(r"^\s*\[([^]]+)\]", text, re.MULTILINE)
        if not [name for name in sections if name.lower() != "global"]:
            raise UsageError(f"{path} holds no fio job: it needs a section such as [randread]")
        modes = re.findall(r"^\s*(?:rw|readwrite)\s*=\s*(\S+)", text, re.MULTILINE)
        # fio's default mode is read, so a file without a mode writes nothing.
        writes = any(mode.split(":")[0] not in ("read", "randread") for mode in modes)
        name = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem) or "job"
        return cls(name, text, writes=writes)

    def on(self, devices: Sequence[str]) -> Workload:
        """The same with the devices and our own options set in front, where the file's own words override
        them.
        """
        header = {
            "filename": ":".join(devices),
            "direct": "1",
            "thread": "1",
            "lat_percentiles": "1",
            "clat_percentiles": "0",
            "percentile_list": ":".join(f"{percentile:g}" for percentile in PERCENTILES),
            "log_avg_msec": str(self.interval_ms),
            "write_iops_log": LOG_PREFIX,
            "write_lat_log": LOG_PREFIX,
        }
        lines = ["[global]", *(f"{key}={value}" for key, value in header.items())]
        return replace(self, text="\n".join(lines) + "\n\n" + self.text)


def command() -> list[str]:
    """fio on `JOB_FILE` in the working directory: JSON with all bins into `OUTPUT`, its estimate every second
    to stdout.

    The estimate (`--eta`) and not `--status-interval` serves for progress: fio computes it anyway, while a
    status report formats every histogram in the guest that is being measured.
    """
    return [
        "fio",
        "--output-format=json+",
        f"--output={OUTPUT}",
        "--eta=always",
        "--eta-newline=1s",
        JOB_FILE,
    ]
