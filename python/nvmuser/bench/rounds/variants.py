"""What could be set otherwise than we ship it: targets, and where the threads of QEMU run.

Owns the list, and how a variant becomes a booted guest on a bare target of its own (no endpoint: it costs
nothing for each I/O, and cannot serve mapped doorbells). `tune` measures them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from nvmuser.bench.rounds import peer_servers
from nvmuser.bench.rounds.peers import Slot, booted_slot, machine
from nvmuser.errors import UsageError
from nvmuser.guest import Guest, GuestSpec
from nvmuser.rpc import Client, methods
from nvmuser.supervisor.spdk import Options
from nvmuser.toolchain import find_spdk

BASE = "default"
GUEST_MEMORY = 384 << 20
_IDLE = 200
_EUI64 = "0011223344556677"


@dataclass(frozen=True)
class Variant:
    """One setting that differs from what is shipped. `what` describes it in a line."""

    name: str
    what: str
    transport: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of `nvmf_create_transport` that differ."""
    arguments: tuple[str, ...] = ()
    """Added to the target's command line."""
    every_core: bool = False
    """A reactor on each core that we may use, instead of one."""
    scheduler: str | None = None
    """SPDK's scheduler; None is the static one."""
    idle: int = 0
    """Controllers on the same target that no guest uses."""
    yielding: bool = False
    """The reactor has the scheduling class of what runs only when nothing else wants to (SCHED_IDLE)."""
    vcpus_apart: bool = False
    """Virtual CPUs may not run on the reactor's core."""
    main_beside: bool = False
    """QEMU's main thread, which raises interrupts, may only run on the reactor's core."""
    usual: bool = True
    """Measured when none is chosen; the others have shown little so far."""


VARIANTS = (
    Variant(BASE, "as shipped: profile throughput, shadow doorbells, coalesced interrupts"),
    Variant("mapped", "doorbells mapped into the guest (no survival then)", {"disable_mappable_bar0": False}),
    Variant("trapped-only", "doorbells trapped, no shadow doorbells", {"disable_shadow_doorbells": True}),
    Variant("plain-irq", "an interrupt for each completion (adaptive interrupts off)", {"disable_adaptive_irq": True}),
    Variant("no-wait", "an interrupt never waits for more completions", {"irq_coalescing_us": 0}),
    Variant("wait-500", "it waits up to 500 µs for them, not 200", {"irq_coalescing_us": 500}),
    Variant("any-number", "it waits for any number of them, not 16", {"irq_coalescing_entries": 0}),
    Variant("interrupt-mode", "no core is polled (profile eco)", arguments=("--interrupt-mode",)),
    Variant("every-core", "a reactor on every core", every_core=True),
    Variant("dynamic", "the same, SPDK's dynamic scheduler (profile balanced)", every_core=True, scheduler="dynamic"),
    Variant("queues-2", "two I/O queues a controller, not as many as it asks for", {"max_io_qpairs_per_ctrlr": 2}),
    Variant("depth-32", "queues of 32 entries", {"max_queue_depth": 32}),
    Variant("idle-200", f"{_IDLE} idle controllers beside it", idle=_IDLE),
    Variant(
        "idle-200-10ms",
        "the same, looked at every 10 ms (SPDK's own acceptor rate)",
        {"acceptor_poll_rate": 10_000},
        idle=_IDLE,
    ),
    Variant("apart", "virtual CPUs kept off the reactor's core", vcpus_apart=True),
    Variant(
        "beside",
        "the same, and QEMU's main thread on the reactor's core",
        vcpus_apart=True,
        main_beside=True,
        usual=False,
    ),
    Variant(
        "beside-yielding",
        "both: main thread on the reactor's core, reactor in SCHED_IDLE",
        yielding=True,
        vcpus_apart=True,
        main_beside=True,
        usual=False,
    ),
)


@contextlib.asynccontextmanager
async def open_variant(
    variant: Variant, cpus: int, backing: Path, directory: Path, *, hugepages: bool
) -> AsyncIterator[Slot]:
    """Start its target, boot its guest, find the disk. Both have hugepages, or neither.

    :raises NvmuserError: it cannot run here, with the reason.
    """
    directory.mkdir(parents=True, exist_ok=True)
    cores = tuple(sorted(os.sched_getaffinity(0))) if variant.every_core else Options().resolve_cores()
    async with contextlib.AsyncExitStack() as stack:
        options = Options(hugepages=hugepages, cores=cores)
        target = peer_servers.nvmf_target(find_spdk(), directory, options, variant.arguments)
        rpc, pid = await stack.enter_async_context(target)
        socket = await _configure(rpc, variant, backing, directory)
        spec = GuestSpec(**machine(cpus), memory=GUEST_MEMORY, sockets=(socket,), hugepages=hugepages)
        charged = {"target": [pid]}
        slot = await stack.enter_async_context(booted_slot(variant.name, spec, directory, "nvme*n*", charged, [pid]))
        await _place(variant, slot.guest, pid, set(cores))
        yield slot


async def _configure(rpc: Client, variant: Variant, backing: Path, directory: Path) -> Path:
    """The transport, one controller on a file, and its idle neighbours. Returns the socket for the guest."""
    shipped = methods.create_transport()
    if variant.scheduler:
        await rpc.call("framework_set_scheduler", {"name": variant.scheduler})
    await rpc.call(shipped.method, {**shipped.params, **variant.transport})
    await _controller(rpc, backing, directory / "c" / "0", 0)
    idle = [_controller(rpc, None, directory / "c" / str(number), number) for number in range(1, variant.idle + 1)]
    await asyncio.gather(*idle)
    return directory / "c" / "0" / "cntrl"


async def _controller(rpc: Client, backing: Path | None, directory: Path, number: int) -> None:
    directory.mkdir(parents=True)
    nqn = f"nqn.2026-11.org.nvmuser:tune{number}"
    requests = [methods.create_subsystem(nqn, f"TUNE{number}", number + 1, 1)]
    if backing is not None:
        disk = str(uuid.uuid4())
        requests.append(methods.aio_create("disk", str(backing), 512, disk))
        requests.append(methods.add_namespace(nqn, 1, "disk", uuid=disk, nguid=disk.replace("-", ""), eui64=_EUI64))
    requests.append(methods.add_listener(nqn, str(directory)))
    for request in requests:
        await rpc.call(request.method, request.params)


async def _place(variant: Variant, guest: Guest, target: int, cores: set[int]) -> None:
    """Where the threads run. They are asked for by QMP, since only QEMU knows which of its threads are CPUs."""
    others = os.sched_getaffinity(0) - cores
    if variant.vcpus_apart:
        if not others:
            raise UsageError("virtual CPUs cannot be kept apart: there is no other core")
        for cpu in cast(list[dict[str, Any]], await guest.qmp.execute("query-cpus-fast")):
            os.sched_setaffinity(cpu["thread-id"], others)
    if variant.main_beside:
        os.sched_setaffinity(guest.process.pid, cores)
    if variant.yielding:
        for thread in Path(f"/proc/{target}/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
