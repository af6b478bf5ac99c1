"""Comparisons as JSON lines: written while they are measured, so that what was measured before an end is
kept.

The schema (docs/benchmarks.md): one `header` (what was compared, on what), then `skipped` (a peer that cannot
run here, and why) and `run` (one job on one peer in one round) in any order, and one `footer` when it came to
its end.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nvmuser.bench.measure.stats import Steadiness
from nvmuser.bench.report.result import JobResult, null_for_nan
from nvmuser.errors import UsageError, reason_of

SCHEMA = "nvmuser.bench.compare/1"
FILE = "runs.jsonl"


@dataclass(frozen=True)
class Run:
    """One measurement. `steady` is the verdict of the slope test, `attempt` is 2 when the first was not."""

    round: int
    job: str
    peer: str
    iops: float
    bw_bytes: float
    lat_ns: dict[str, float | None]
    guest_us_per_io: float | None
    host_us_per_io: float | None
    guest_percent: float | None
    host_percent: dict[str, float]
    steady: bool
    drift: float | None
    excursion: float | None
    attempt: int

    @classmethod
    def of(cls, job: JobResult, peer: str, number: int, steadiness: Steadiness, attempt: int) -> Self:
        """The record of a job that was measured on a peer.

        :param number: of the round, from 0.
        """
        return cls(
            round=number,
            job=job.name,
            peer=peer,
            iops=job.iops,
            bw_bytes=job.bw_bytes,
            lat_ns=dict(vars(job.lat_ns)),
            guest_us_per_io=job.cpu.guest_us_per_io,
            host_us_per_io=job.cpu.host_us_per_io,
            guest_percent=job.cpu.guest_percent,
            host_percent=job.cpu.host_percent,
            steady=steadiness.steady,
            drift=steadiness.drift,
            excursion=steadiness.excursion,
            attempt=attempt,
        )


@dataclass
class Comparison:
    """All that one file holds."""

    header: dict[str, Any]
    runs: list[Run] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    footer: dict[str, Any] | None = None

    @property
    def jobs(self) -> list[str]:
        """In the order in which they were first measured."""
        return list(dict.fromkeys(run.job for run in self.runs))

    @property
    def peers(self) -> list[str]:
        """Those with a run, in the order of the header."""
        return [peer for peer in self.header["peers"] if any(run.peer == peer for run in self.runs)]

    @property
    def base(self) -> str:
        """Whose ratios with the others are of interest."""
        return str(self.header.get("base", "endpoint"))

    def values(self, job: str, peer: str, name: str = "iops") -> dict[int, float]:
        """One number of each round: `iops`, `host_us_per_io`, or `lat_ns.p99`. Rounds without it are left
        out.
        """
        found: dict[int, float] = {}
        for run in self.runs:
            if (run.job, run.peer) != (job, peer):
                continue
            key, _, part = name.partition(".")
            value = getattr(run, key)[part] if part else getattr(run, key)
            if value is not None:
                found[run.round] = value
        return found

    @property
    def noise(self) -> float | None:
        """The worst idle spin: before, after each round, and before each time that it went on."""
        return max(self.spins, default=None)

    @property
    def spins(self) -> list[float]:
        """All of them. In a header there is the first alone, for the others come later."""
        before = self.header["environment"].get("noise_before")
        return [*([] if before is None else [before]), *(self.footer["noise"] if self.footer else [])]

    @property
    def unsteady(self) -> dict[str, int]:
        """How many runs of each job were not in a steady state, even when repeated."""
        counts: dict[str, int] = defaultdict(int)
        for run in self.runs:
            counts[run.job] += not run.steady
        return dict(counts)


class Writer:
    """Appends lines, each flushed: a context manager that owns the file."""

    def __init__(self, path: Path, *, append: bool = False) -> None:
        if append:
            _drop_torn_line(path)
        self._file = path.open("a" if append else "w", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def header(self, document: dict[str, Any]) -> None:
        """Write the first line: what is compared, and where."""
        self._line({"schema": SCHEMA, "kind": "header", **document})

    def skipped(self, peer: str, reason: str) -> None:
        """Write that a peer is left out."""
        self._line({"kind": "skipped", "peer": peer, "reason": reason})

    def run(self, run: Run) -> None:
        """Write one run."""
        self._line({"kind": "run", **vars(run)})

    def footer(self, document: dict[str, Any]) -> None:
        """Write the last line, without which a comparison counts as interrupted."""
        self._line({"kind": "footer", **document})

    def _line(self, document: dict[str, Any]) -> None:
        self._file.write(json.dumps(plain(document), allow_nan=False) + "\n")
        self._file.flush()


def _whole_lines(text: str) -> str:
    """Without a last line that was cut off."""
    return text[: text.rfind("\n") + 1]


def _drop_torn_line(path: Path) -> None:
    whole = _whole_lines(path.read_text(encoding="utf-8"))
    os.truncate(path, len(whole.encode()))


def plain(document: dict[str, Any]) -> dict[str, Any]:
    """As it will be when it has been written and read."""
    copy: dict[str, Any] = json.loads(json.dumps(null_for_nan(document)))
    return copy


def interrupted(directory: Path) -> Comparison:
    """What an interrupted comparison left, to go on with.

    :raises UsageError: nothing, or it came to its end.
    """
    found = read(directory)
    if found.footer is not None:
        raise UsageError(f"the comparison in {directory} is complete: leave --resume out, or choose another --output")
    return found


_MACHINE = ("cpu_model", "cpus", "kernel")


def _must_agree(header: Mapping[str, Any]) -> dict[str, Any]:
    """What must be alike for rounds of two runs to belong together, by the name of a fact."""
    environment = header["environment"]
    return {
        "accelerator": header["accelerator"],
        **{f"versions.{name}": version for name, version in header["versions"].items()},
        **{f"environment.{name}": environment.get(name) for name in _MACHINE},
        **{f"guest.{name}": value for name, value in header.get("guest", {}).items()},
        **{f"settings.{name}": value for name, value in header["settings"].items() if name != "rounds"},
    }


def _different(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """The first fact in which two differ, with both its values. One that only one of them has is a difference too."""
    for name in dict.fromkeys([*first, *second]):
        if first.get(name) != second.get(name):
            return f"{name} ({first.get(name)}, {second.get(name)})"
    return None


def check_same(earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """:raises UsageError: an interrupted run cannot go on as this one."""

    def whole(header: dict[str, Any]) -> dict[str, Any]:
        rounds = header["settings"].get("rounds")
        return {**_must_agree(header), "rounds": rounds, "peers": header.get("peers"), "jobs": header.get("jobs")}

    if what := _different(whole(earlier), whole(now)):
        raise UsageError(f"what was interrupted differs in {what}: go on with the same, or leave --resume out")


def read(path: Path) -> Comparison:
    """A comparison's file, or its directory.

    :raises UsageError: unreadable, or of another schema.
    """
    file = path / FILE if path.is_dir() else path
    try:
        text = _whole_lines(file.read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the comparison {file}: {reason_of(error)}") from None
    if not lines or not isinstance(lines[0], dict) or lines[0].get("schema") != SCHEMA:
        raise UsageError(f"{file} is not a result of `nvmuser bench compare` ({SCHEMA})")
    comparison = Comparison(lines[0])
    try:
        _fill(comparison, lines[1:])
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} holds a record that this nvmuser cannot read: {error}") from None
    return comparison


def _run(line: dict[str, Any]) -> Run:
    """:raises TypeError: it has other fields than we know."""
    known = {field.name for field in fields(Run)}
    if strange := sorted(line.keys() ^ known):
        raise TypeError(f"a run with {'an unknown' if strange[0] in line else 'no'} field '{strange[0]}'")
    return Run(**line)


def _fill(comparison: Comparison, lines: Sequence[dict[str, Any]]) -> None:
    runs: dict[tuple[int, str, str], Run] = {}
    for line in lines:
        kind = line.pop("kind")
        if kind == "run":
            run = _run(line)
            # Measured again after an interruption: the later one counts, its neighbours in time are the others'.
            runs[run.round, run.job, run.peer] = run
        elif kind == "skipped":
            comparison.skipped[line["peer"]] = line["reason"]
        elif kind == "footer":
            comparison.footer = line
    comparison.runs.extend(runs.values())


def hugepages_used(header: Mapping[str, Any]) -> str:
    """The guests' memory in words. Records without `guest` only hold what the machine had."""
    if "guest" in header:
        return "of all guests and targets" if header["guest"]["hugepages"] else "none used: 4 KiB pages"
    environment = header["environment"]
    pages = environment["hugepages_total"] * environment["hugepage_bytes"] >> 20
    return f"{pages} MiB on the machine, whether used is not recorded" if pages else "none: 4 KiB pages"


def merge(comparisons: Sequence[Comparison]) -> Comparison:
    """Several runs of the same comparison as one with all their rounds.

    :raises UsageError: they were not made alike, so that their rounds do not belong together.
    """
    first, *others = comparisons
    merged = Comparison(first.header, list(first.runs), dict(first.skipped), first.footer)
    for other in others:
        if what := _different(_must_agree(first.header), _must_agree(other.header)):
            raise UsageError(f"these comparisons differ in {what}: use `nvmuser bench diff`")
        start = 1 + max((run.round for run in merged.runs), default=-1)
        merged.runs += [replace(run, round=run.round + start) for run in other.runs]
        merged.skipped |= other.skipped
        if merged.footer is not None and other.footer is not None:
            merged.footer = {**merged.footer, "noise": merged.footer["noise"] + other.spins}
        else:
            merged.footer = None
    return merged
