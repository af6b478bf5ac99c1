"""What Prometheus reads: how this host, its targets, controllers, volumes, remotes and guests are at this moment.

Names and units are Prometheus' (seconds, bytes, `_total`). Counters of volumes are SPDK's own at the moment of the
scrape; how objects compare with what is wanted is a little older (`Host.fresh`). docs/monitoring.md has the table.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from starlette.responses import Response

from nvmuser import __version__
from nvmuser.api.histograms import Histograms, Latencies
from nvmuser.api.host import Host, Sample
from nvmuser.api.routing import Call, Endpoint
from nvmuser.api.watching import Watching
from nvmuser.errors import NvmuserError, RpcError
from nvmuser.guest.registry import registry
from nvmuser.hostfs.fences import Fence, Journal
from nvmuser.hostfs.space import file_systems
from nvmuser.model.desired import Desired
from nvmuser.model.objects import Volume
from nvmuser.model.placement import on
from nvmuser.paths import StateDir
from nvmuser.reconcile.space import pools
from nvmuser.reconcile.statistics import Statistics, collect
from nvmuser.rpc.client import Client
from nvmuser.supervisor import control

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_RPC_S = 5.0


@dataclass
class TargetSeen:
    """What one target answers."""

    reactors: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    rpc_s: float | None = None


@dataclass
class Seen:
    """Everything that one scrape shows."""

    desired: Desired
    facts: dict[str, Any]
    sample: Sample
    targets: dict[str, TargetSeen]
    guests: dict[str, bool]
    changes: int
    watchers: int
    latencies: Mapping[str, Latencies] = field(default_factory=dict)
    fences: Sequence[Fence] = ()


class Metrics:
    """Of one host."""

    def __init__(self, host: Host, watching: Watching, *, latencies: bool = False) -> None:
        """:param latencies: histograms of them are kept by SPDK, and shown."""
        self._host = host
        self._watching = watching
        self._with_latencies = latencies
        self._latencies = Histograms()

    def endpoint(self) -> Endpoint:
        """Where Prometheus reads."""
        return Endpoint(
            "GET", "/metrics", self.scrape, "show_metrics", "Show metrics, for Prometheus.",
            results={200: {"type": "string"}}, media_type="text/plain",
        )  # fmt: skip

    async def scrape(self, call: Call) -> Response:
        seen = await self._look()
        text = await asyncio.to_thread(exposition, seen)
        return Response(text, media_type=_TEXT)

    async def _look(self) -> Seen:
        host = self._host
        desired = await host.desired()
        try:
            facts = await host.ask("status")
        except NvmuserError:
            facts = {}
        sample = await host.fresh()
        async with control.spdk(host.state) as clients:
            parts = {name: on(desired, name) for name in clients}
            found = await asyncio.gather(*(_ask(rpc, parts[name]) for name, rpc in clients.items()))
            targets = dict(zip(clients, found, strict=True))
            if self._with_latencies:
                await self._latencies.update(clients, parts, {name: one.statistics for name, one in targets.items()})
        _, last = await asyncio.to_thread(host.store.event_bounds)
        guests = {one.name: one.running for one in await asyncio.to_thread(registry(host.state).list)}
        fences = await asyncio.to_thread(_fences, host.state)
        return Seen(desired, facts, sample, targets, guests, last, self._watching.count, self._latencies.seen, fences)


def _fences(state: StateDir) -> list[Fence]:
    with contextlib.suppress(NvmuserError):
        return Journal(state.fences).read()
    return []


async def _ask(rpc: Client, desired: Desired) -> TargetSeen:
    began = time.perf_counter()
    try:
        reactors = await rpc.call("framework_get_reactors", timeout=_RPC_S)
        answered = time.perf_counter() - began
        return TargetSeen(reactors, await collect(rpc, desired), answered)
    except RpcError:
        return TargetSeen()


def exposition(seen: Seen) -> bytes:
    """The text that Prometheus reads. Thousands of samples come with every scrape: the library's own writer takes
    three times as long."""
    parts = (_host, _targets, _reactors, _objects, _volumes, _controllers, _space, _others)
    lines = [line for part in parts for family in part(seen) for line in _written(family)]
    return ("\n".join(lines) + "\n").encode()


_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def _written(family: Metric) -> Iterator[str]:
    """Lines of the text format, version 0.0.4, in which a counter's name ends in `_total`, and information is a gauge
    whose name ends in `_info`."""
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    yield f"# HELP {family.name}{suffix} {family.documentation}"
    yield f"# TYPE {family.name}{suffix} {'gauge' if family.type == 'info' else family.type}"
    for sample in family.samples:
        labels = ",".join([f'{name}="{value.translate(_ESCAPES)}"' for name, value in sample.labels.items()])
        yield f"{sample.name}{{{labels}}} {sample.value!r}" if labels else f"{sample.name} {sample.value!r}"


def _gauge(name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Any]]) -> Metric:
    found = GaugeMetricFamily(f"nvmuser_{name}", text, labels=labels)
    for values, value in rows:
        if value is not None:
            found.add_metric(values, float(value))
    return found


def _counter(name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Any]]) -> Metric:
    found = CounterMetricFamily(f"nvmuser_{name}", text, labels=labels)
    for values, value in rows:
        if value is not None:
            found.add_metric(values, float(value))
    return found


def _host(seen: Seen) -> Iterator[Metric]:
    build = InfoMetricFamily("nvmuser_build", "Version of nvmuser.", labels=())
    build.add_metric((), {"version": __version__})
    yield build
    yield _gauge("supervisor_up", "Whether the supervisor answers.", (), [((), bool(seen.facts))])
    yield _gauge("problems", "What is wrong at this moment.", (), [((), len(seen.facts.get("errors", ())))])
    yield _counter("changes", "Changes of what is declared, as numbered in the log.", (), [((), seen.changes)])
    yield _gauge("api_watchers", "Who watches events at this API.", (), [((), seen.watchers)])


def _targets(seen: Seen) -> Iterator[Metric]:
    facts: Mapping[str, Mapping[str, Any]] = seen.facts.get("targets", {})

    def rows(field_: str) -> list[tuple[Sequence[str], Any]]:
        return [((name,), one[field_]) for name, one in facts.items()]

    label = ("target",)
    yield _gauge("target_up", "Whether the target answers.", label, rows("answers"))
    yield _gauge("target_ready", "Whether the target has everything that is wanted of it.", label, rows("ready"))
    standby = [((name,), one["standby"] is not None) for name, one in facts.items()]
    yield _gauge("target_standby", "Whether a standby is ready.", label, standby)
    yield _counter("target_restarts", "Times that the target was started again.", label, rows("restarts"))
    yield _gauge("target_startup_seconds", "How long its last start took.", label, rows("startup_s"))
    yield _gauge("target_memory_bytes", "Memory that it has taken.", label, rows("memory"))
    times = [((name,), one.rpc_s) for name, one in seen.targets.items()]
    yield _gauge("target_rpc_seconds", "How long a call to it took at this scrape.", label, times)


def _reactors(seen: Seen) -> Iterator[Metric]:
    busy: list[tuple[Sequence[str], Any]] = []
    idle: list[tuple[Sequence[str], Any]] = []
    for name, target in seen.targets.items():
        rate = target.reactors.get("tick_rate", 0)
        for one in target.reactors.get("reactors", ()) if rate else ():
            labels = (name, str(one["lcore"]))
            busy.append((labels, one["busy"] / rate))
            idle.append((labels, one["idle"] / rate))
    yield _counter("reactor_busy_seconds", "Time with something to do.", ("target", "core"), busy)
    yield _counter("reactor_idle_seconds", "Time without.", ("target", "core"), idle)


def _objects(seen: Seen) -> Iterator[Metric]:
    states = seen.sample.states()
    rows = [((one.kind, one.name), states.get(str(one.key)) == "in-sync") for one in seen.desired.wanted()]
    known = rows if seen.sample.drift else []
    yield _gauge("object_in_sync", "Whether it is as it was declared.", ("kind", "name"), known)
    foreign = len(seen.sample.drift.get("foreign", ())) if seen.sample.drift else None
    yield _gauge("foreign_objects", "Objects of SPDK that are not ours.", (), [((), foreign)])
    mirrors = seen.sample.drift.get("mirrors", ())
    missing = [((one["volume"],), len(one["missing"])) for one in mirrors]
    yield _gauge("mirror_missing_members", "Members that a mirror lacks.", ("volume",), missing)


_KINDS = (("read", "reads"), ("write", "writes"), ("unmap", "unmaps"))


def _volumes(seen: Seen) -> Iterator[Metric]:
    found = [one for target in seen.targets.values() for one in target.statistics.values()]
    label = ("volume",)
    for kind, plural in _KINDS:
        counters = [((one.volume,), getattr(one, kind)) for one in found]
        completed = [(labels, one.operations) for labels, one in counters]
        yield _counter(f"volume_{plural}_completed", f"{plural.capitalize()} that are done.", label, completed)
        moved = [(labels, one.bytes) for labels, one in counters]
        yield _counter(f"volume_{kind}_bytes", f"Bytes of these {plural}.", label, moved)
        spent = [(labels, one.latency_s) for labels, one in counters]
        yield _counter(f"volume_{kind}_time_seconds", f"Time that all {plural} together took.", label, spent)
    latency = HistogramMetricFamily("nvmuser_volume_latency_seconds", "How long operations took.", labels=label)
    for name, one in seen.latencies.items():
        latency.add_metric((name,), _cumulative(one.bounds, one.counts), one.total)
    if seen.latencies:
        yield latency
    there = {one.volume for one in found}
    opened = [one for one in seen.desired.volumes() if one.name in there]
    writable = [one for one in opened if not (one.snapshot_of or one.shared_ok)]
    text = "A volume that a target has open, by what of storage it is: that is to be so on one host alone."
    rows = [((one.name, _storage(seen.desired, one)), 1) for one in writable]
    yield _gauge("volume_open", text, ("volume", "storage"), rows)
    sizes = [((one.name,), one.size or None) for one in seen.desired.volumes()]
    yield _gauge("volume_size_bytes", "Size as declared.", label, sizes)


def _storage(desired: Desired, volume: Volume) -> str:
    """What it is in the same words on each host that reaches it."""
    if volume.remote:
        remote = next(one for one in desired.remotes() if one.name == volume.remote)
        return f"{remote.nqn} namespace {volume.remote_nsid}"
    if volume.cluster:
        return f"image {volume.pool_name}/{volume.image}"
    return f"volume {volume.uuid}"


def _controllers(seen: Seen) -> Iterator[Metric]:
    guests: Sequence[Mapping[str, Any]] = seen.facts.get("guests", ())
    connected = {guest["controller"] for guest in guests}
    label = ("controller",)
    names = [one.name for one in seen.desired.controllers()]
    yield _gauge("controller_connected", "Whether a guest is connected.", label,
                 [((name,), name in connected) for name in names])  # fmt: skip

    def rows(field_: str) -> list[tuple[Sequence[str], Any]]:
        return [((guest["controller"],), guest[field_]) for guest in guests]

    yield _counter("controller_recoveries", "Targets that this guest has survived.", label, rows("recoveries"))
    yield _counter("controller_messages", "Messages that the endpoint has passed.", label, rows("messages"))
    yield _gauge("controller_last_stall_seconds", "How long it waited at the last recovery.", label, rows("last_stall"))
    longest = rows("longest_stall")
    yield _gauge("controller_longest_stall_seconds", "How long it waited at most.", label, longest)
    stalls = HistogramMetricFamily(
        "nvmuser_controller_stall_seconds", "How long it waited at recoveries.", labels=label
    )
    for guest in guests:
        if counted := guest.get("stalls"):  # an endpoint of an earlier version does not count them
            buckets = _cumulative(counted["bounds"], counted["counts"])
            stalls.add_metric((guest["controller"],), buckets, counted["total"])
    yield stalls


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Buckets as Prometheus has them: of each bound, how many do not exceed it."""
    return list(zip((*map(repr, bounds), "+Inf"), map(float, itertools.accumulate(counts)), strict=True))


def _space(seen: Seen) -> Iterator[Metric]:
    found = [(("pool", name), one) for name, one in _pools(seen).items()]
    found += [(("filesystem", one.where.removeprefix("file system at ")), one) for one in
              file_systems(seen.desired.volumes())]  # fmt: skip
    for field_, text in (("total", "Bytes that there are."), ("free", "Bytes free."),
                         ("promised", "Bytes that volumes may still write.")):  # fmt: skip
        rows = [(labels, getattr(one, field_)) for labels, one in found]
        yield _gauge(f"space_{field_}_bytes", text, ("kind", "where"), rows)


def _pools(seen: Seen) -> Mapping[str, Any]:
    return pools(seen.desired, seen.sample.actual) if seen.sample.actual else {}


def _others(seen: Seen) -> Iterator[Metric]:
    paths = [((one["remote"], one["path"]), one["connected"]) for one in seen.sample.drift.get("remotes", ())]
    yield _gauge("remote_path_connected", "Whether a path to a remote has a connection.", ("remote", "path"), paths)
    guests = [((name,), running) for name, running in seen.guests.items()]
    yield _gauge("guest_up", "Whether a guest that nvmuser has started runs.", ("guest",), guests)
    fences = collections.Counter((one.cluster, "alive" if one.alive else "ended") for one in seen.fences)
    text = "Processes of ours that a Ceph cluster knows, or is to know no more."
    yield _gauge("cluster_clients", text, ("cluster", "state"), fences.items())
    if fleet := seen.facts.get("fleet"):
        name = ("fleet",)
        for field_, text in (
            ("followed", "Whether what the fleet wants is followed."),
            ("revision", "Revision of etcd up to which it is followed."),
            ("reported", "Revision of etcd up to which this host has reported what it has carried out."),
        ):
            yield _gauge(f"fleet_{field_}", text, name, [((fleet["name"],), fleet[field_])])
