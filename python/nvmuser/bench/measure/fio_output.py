"""What fio wrote: its JSON (`json+`, with every histogram bin), its logs over time, its estimate while it
runs.

Reading only. Numbers of a mixed job are made from the histograms of both directions, not by averaging
percentiles.
"""

from __future__ import annotations

import errno
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any

from nvmuser.bench.report.result import Direction, JobResult, Latency, Series
from nvmuser.errors import GuestError

DIRECTIONS = ("read", "write", "trim")

_ESTIMATE = re.compile(
    r"\[(?P<bandwidth>(?:[rwt]=[^],]+,?)+)\]\[(?P<iops>(?:[rwt]=[\d.]+[kMG]?,?)+) IOPS\]"
    r"(?:\[eta (?:(?P<d>\d+)d:)?(?:(?P<h>\d+)h:)?(?P<m>\d+)m:(?P<s>\d+)s\])?"
)
_RATE = re.compile(r"[rwt]=([\d.]+)([kMG]?)")
_SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class Estimate:
    """One line of `--eta`: the rate now and the seconds that fio thinks are left."""

    iops: float
    left: float | None


def parse_estimate(line: str) -> Estimate | None:
    """None for a line without a rate (starting, laying out, ending)."""
    match = _ESTIMATE.search(line)
    if match is None:
        return None
    iops = sum(float(number) * _SCALE[scale] for number, scale in _RATE.findall(match["iops"]))
    if match["m"] is None:
        return Estimate(iops, None)
    days, hours, minutes, seconds = (int(match[unit] or 0) for unit in "dhms")
    return Estimate(iops, ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds)


def load(text: str) -> dict[str, Any]:
    """fio's report; with `--status-interval` the last of its reports.

    :raises GuestError: there is none, which is what fio leaves when it refuses its job file.
    """
    decoder = json.JSONDecoder()
    report: dict[str, Any] | None = None
    position = text.find("{")  # fio prints warnings in front of its JSON.
    while position >= 0:
        try:
            report, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            break
        position = text.find("{", end)
    if report is None or "jobs" not in report:
        raise GuestError("fio gave no report")
    return report


def parse_log(text: str) -> list[tuple[float, float, int]]:
    """Rows of `--write_*_log`: seconds, value, direction (0 read, 1 write, 2 trim)."""
    rows = []
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) >= 3:
            rows.append((int(fields[0]) / 1000, float(fields[1]), int(fields[2])))
    return rows


def series(iops_log: str, lat_log: str, interval_ms: int, directions: Iterable[str]) -> Series:
    """IOPS (added up over directions and threads) and latency (weighted by them) in each interval.

    :param directions: which to count: a verifying job's reading back is not part of its measurement.
    """
    wanted = {DIRECTIONS.index(direction) for direction in directions}

    def buckets(text: str) -> dict[int, list[tuple[float, int]]]:
        found: dict[int, list[tuple[float, int]]] = defaultdict(list)
        for seconds, value, direction in parse_log(text):
            if direction in wanted:
                found[max(1, round(seconds * 1000 / interval_ms))].append((value, direction))
        return found

    iops, lat = buckets(iops_log), buckets(lat_log)
    times = sorted(iops.keys() & lat.keys())
    mean_lat = []
    for time in times:
        rates = [value for value, _ in iops[time]]
        delays = [value for value, _ in lat[time]]
        weights = rates if len(rates) == len(delays) and any(rates) else [1.0] * len(delays)
        mean_lat.append(sum(map(mul, weights, delays)) / sum(weights))
    return Series(
        t_s=[time * interval_ms / 1000 for time in times],
        iops=[sum(value for value, _ in iops[time]) for time in times],
        lat_ns=mean_lat,
    )


def bin_percentiles(bins: Mapping[int, int], percentiles: Sequence[float]) -> list[float]:
    """The value at or under which so many percent of the samples lie, as fio reads its own bins."""
    total = sum(bins.values())
    ordered = sorted(bins.items())
    found, seen, position = [], 0, -1
    for percentile in sorted(percentiles):
        rank = max(1, math.ceil(percentile / 100 * total))
        while seen < rank:
            position += 1
            seen += ordered[position][1]
        found.append(float(ordered[position][0]))
    order = sorted(range(len(percentiles)), key=lambda index: percentiles[index])
    return [value for _, value in sorted(zip(order, found, strict=True))]


def _histogram(direction: Mapping[str, Any]) -> Mapping[str, Any]:
    """Total latency where it has a histogram, completion latency where the job file asked for that
    instead.
    """
    blocks: list[Mapping[str, Any]] = [direction.get(key, {}) for key in ("lat_ns", "clat_ns")]
    return next((block for block in blocks if block.get("bins") or block.get("percentile")), blocks[0])


def latency(directions: Sequence[Mapping[str, Any]]) -> Latency:
    """One latency of several directions, by merging their histograms."""
    blocks = [block for block in map(_histogram, directions) if block.get("N")]
    count = sum(block["N"] for block in blocks)
    if not count:
        return Latency(*[math.nan] * 7)
    merged: dict[int, int] = defaultdict(int)
    for block in blocks:
        for value, samples in (block.get("bins") or {}).items():
            merged[int(value)] += samples
    wanted = (50.0, 90.0, 99.0, 99.9)
    if len(blocks) == 1 and blocks[0].get("percentile"):
        own = {round(float(key), 6): float(value) for key, value in blocks[0]["percentile"].items()}
        points = [own.get(percentile, math.nan) for percentile in wanted]
    else:
        points = [math.nan] * len(wanted)
    if merged and any(map(math.isnan, points)):
        points = bin_percentiles(merged, wanted)
    mean = sum(block["mean"] * block["N"] for block in blocks) / count
    p50, p90, p99, p99_9 = points
    return Latency(mean, p50, p90, p99, p99_9, min(b["min"] for b in blocks), max(b["max"] for b in blocks))


def job_result(report: Mapping[str, Any], index: int) -> JobResult:
    """The measurement of the report's job number `index`, without what fio cannot know (host CPU, series)."""
    job = report["jobs"][index]
    options = report.get("global options", {}) | job.get("job options", {})
    rw = options.get("rw") or options.get("readwrite") or "read"
    verify = options.get("verify")
    active = [name for name in DIRECTIONS if job.get(name, {}).get("total_ios")]
    verified = 0
    if verify and "read" in active and rw.split(":")[0] in ("write", "randwrite"):
        # What was read back; with --verify_only it is all there is.
        verified = job["read"]["total_ios"]
        active = [name for name in active if name != "read"] or ["read"]
    blocks = [job[name] for name in active]
    return JobResult(
        name=job["jobname"],
        rw=rw,
        bs=options.get("bs") or options.get("blocksize") or "4k",
        iodepth=int(options.get("iodepth", 1)),
        ioengine=options.get("ioengine", "psync"),
        poll=options.get("hipri") == "1",
        verify=verify,
        runtime_s=max((block["runtime"] for block in blocks), default=0) / 1000,
        total_ios=sum(block["total_ios"] for block in blocks),
        iops=sum(block["iops"] for block in blocks),
        bw_bytes=sum(block["bw_bytes"] for block in blocks),
        lat_ns=latency(blocks),
        directions={
            name: Direction(job[name]["total_ios"], job[name]["iops"], job[name]["bw_bytes"], latency([job[name]]))
            for name in active
        },
        verified_blocks=verified,
        verify_errors=_verify_errors(job),
        error=_error(job),
        fio_cpu_percent=job["usr_cpu"] + job["sys_cpu"],
    )


def _verify_errors(job: Mapping[str, Any]) -> int:
    """Number of wrong blocks. fio ends with status 0 when it continues after wrong blocks, so that only its
    counts show them.
    """
    if job.get("first_error", job["error"]) != errno.EILSEQ:
        return 0
    return max(1, int(job.get("total_err", 1)))


def _error(job: Mapping[str, Any]) -> str | None:
    code = int(job["error"])
    return None if code in (0, errno.EILSEQ) else f"{errno.errorcode.get(code, code)}"
