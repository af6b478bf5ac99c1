"""The schema of `result.json`: one run of jobs in one guest, and all that must be known to repeat it.

Owns the names of the keys (documented in docs/benchmarks.md) and reading them back. Numbers that could not be
measured are null: a result never holds NaN, which JSON does not know.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nvmuser.errors import UsageError, reason_of

SCHEMA = "nvmuser.bench.result/1"


@dataclass(frozen=True)
class Latency:
    """Nanoseconds from submission to completion."""

    mean: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    min: float
    max: float


@dataclass(frozen=True)
class Direction:
    """Reads or writes of a job: I/Os, I/Os a second, and what else fio reports of them."""

    total_ios: int
    iops: float
    bw_bytes: float
    lat_ns: Latency


@dataclass(frozen=True)
class Series:
    """The same run over time; `t_s` is the end of each interval."""

    t_s: list[float]
    iops: list[float]
    lat_ns: list[float]


@dataclass(frozen=True)
class Cpu:
    """What a job cost. 100 percent is one CPU; `host_percent` is by process (qemu, target, endpoint)."""

    guest_percent: float | None = None
    guest_us_per_io: float | None = None
    host_percent: dict[str, float] = field(default_factory=dict)
    host_us_per_io: float | None = None


@dataclass(frozen=True)
class JobResult:
    """What fio reported of one job. Times in nanoseconds where the name has `ns`, rates per second."""

    name: str
    rw: str
    bs: str
    iodepth: int
    ioengine: str
    poll: bool
    verify: str | None
    runtime_s: float
    total_ios: int
    iops: float
    bw_bytes: float
    lat_ns: Latency
    directions: dict[str, Direction]
    verified_blocks: int
    verify_errors: int
    error: str | None
    fio_cpu_percent: float
    cpu: Cpu = Cpu()
    series: Series = Series([], [], [])

    @property
    def wrong(self) -> str | None:
        """Why this job must not be believed: an I/O error, a wrong block, blocks that were never read
        back.
        """
        if self.error:
            return f"I/O error {self.error}"
        if self.verify_errors:
            return f"{self.verify_errors} wrong block{'' if self.verify_errors == 1 else 's'}"
        written = self.directions.get("write")
        if self.verify and written and self.verified_blocks < written.total_ios:
            return f"only {self.verified_blocks} of {written.total_ios} blocks were read back"
        return None


@dataclass(frozen=True)
class Result:
    """One run. `versions` has at least spdk, qemu, guest_kernel, fio."""

    created: str
    accelerator: str
    versions: dict[str, str | None]
    environment: dict[str, Any]
    guest: dict[str, Any]
    jobs: list[JobResult]

    @property
    def verify_errors(self) -> int:
        """Wrong blocks over all jobs."""
        return sum(job.verify_errors for job in self.jobs)

    @property
    def wrong(self) -> list[str]:
        """What went wrong, a line for each job; empty when nothing did."""
        return [f"{job.name}: {job.wrong}" for job in self.jobs if job.wrong]

    def to_json(self) -> dict[str, Any]:
        """The document of result.json."""
        document = {"schema": SCHEMA, **asdict(self), "verify_errors": self.verify_errors}
        cleaned: dict[str, Any] = null_for_nan(document)
        return cleaned

    def write(self, path: Path) -> None:
        """Write result.json.

        :raises OSError: there is no room, or no permission.
        """
        path.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Result:
        """:raises UsageError: unreadable, or not a result of this schema."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the result {path}: {reason_of(error)}") from None
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise UsageError(f"{path} is not a result of `nvmuser bench` ({SCHEMA})")
        return cls(
            created=document["created"],
            accelerator=document["accelerator"],
            versions=document["versions"],
            environment=document["environment"],
            guest=document["guest"],
            jobs=[_job(job) for job in document["jobs"]],
        )


def null_for_nan(value: Any) -> Any:
    """A document with null in place of what JSON cannot express."""
    if isinstance(value, dict):
        return {key: null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _latency(document: dict[str, Any]) -> Latency:
    return Latency(**{key: math.nan if value is None else value for key, value in document.items()})


def _job(document: dict[str, Any]) -> JobResult:
    directions = {
        name: Direction(**(direction | {"lat_ns": _latency(direction["lat_ns"])}))
        for name, direction in document["directions"].items()
    }
    parts = {
        "lat_ns": _latency(document["lat_ns"]),
        "directions": directions,
        "cpu": Cpu(**document["cpu"]),
        "series": Series(**document["series"]),
    }
    return JobResult(**(document | parts))
