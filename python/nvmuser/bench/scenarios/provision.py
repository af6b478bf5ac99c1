"""How fast the control plane is: provisioning, a second time, and restoring, beside doing without it.

Owns the targets that it starts. Every number is of one run on one machine: the ratios are what can be
compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvmuser.bench.measure.progress import Progress, Silent
from nvmuser.bench.rounds.alternate import alternate
from nvmuser.errors import TargetError, summary
from nvmuser.model import spec as specs
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired
from nvmuser.model.objects import AnyObject, Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.calls import Call
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.plan import plan
from nvmuser.rpc.client import WINDOW
from nvmuser.store import Store
from nvmuser.supervisor.spdk import Options, Target
from nvmuser.toolchain import Spdk

SAMPLE_CLIENT = 50
SAMPLE_RPC_PY = 5
_SIZE = 64 << 20


@dataclass(frozen=True)
class Provision:
    """Medians over the rounds. A ratio is that alternative's time over ours."""

    controllers: int
    rounds: int
    seconds: float
    per_second: float
    ratio_bare_pipeline: float
    ratio_spdk_client: float
    ratio_rpc_py: float
    reapply_s: float
    restore_s: float

    def to_json(self) -> dict[str, Any]:
        """All fields by their names."""
        return asdict(self)


async def provision(root: Path, spdk: Spdk, count: int, rounds: int, progress: Progress | None = None) -> Provision:
    """Measure the control plane with `count` controllers.

    :param root: a short path for states and sockets; its owner removes it.
    :raises TargetError: a target did not start, or refused something.
    """
    shown = progress or Silent()

    async def ours(number: int) -> tuple[float, ...]:
        state = StateDir(root / f"o{number}")
        return *await _ours(state, spdk, count), await _restored(state, spdk)

    async def bare(number: int) -> tuple[float, ...]:
        return (await _bare(StateDir(root / f"b{number}"), spdk, count),)

    found = await alternate({"nvmuser": ours, "a bare pipeline": bare}, rounds, shown)
    seconds, again, restored = map(statistics.median, zip(*found["nvmuser"], strict=True))
    [bare_seconds] = map(statistics.median, zip(*found["a bare pipeline"], strict=True))
    shown.step("PyPI's spdk")
    client = await _spdk_client(StateDir(root / "c"), spdk, min(count, SAMPLE_CLIENT))
    shown.step("rpc.py")
    rpc_py = await _rpc_py(StateDir(root / "r"), spdk, min(count, SAMPLE_RPC_PY))
    each = seconds / count
    return Provision(
        controllers=count,
        rounds=rounds,
        seconds=seconds,
        per_second=count / seconds,
        ratio_bare_pipeline=bare_seconds / seconds,
        ratio_spdk_client=client / each,
        ratio_rpc_py=rpc_py / each,
        reapply_s=again,
        restore_s=restored,
    )


def objects(count: int) -> tuple[AnyObject, ...]:
    """`count` controllers, each with a null volume."""
    volumes = [Volume(f"v{n}", "null", size=_SIZE, volatile=True) for n in range(count)]
    controllers = [Controller(f"c{n}", (Namespace(f"v{n}"),)) for n in range(count)]
    return (*volumes, *controllers)


@contextlib.asynccontextmanager
async def _target(state: StateDir, spdk: Spdk) -> AsyncIterator[Target]:
    """An empty target, killed in the end."""
    for directory in (state.run, state.logs):
        directory.mkdir(parents=True, exist_ok=True)
    target = await Target.start(state, spdk, Options(), 1)
    try:
        yield target
    finally:
        await target.process.kill()
        await target.close()


async def _ours(state: StateDir, spdk: Spdk, count: int) -> tuple[float, float]:
    """Declaring everything in an empty deployment, and applying the same again from a file."""
    async with _target(state, spdk) as target:
        with contextlib.closing(Engine(state, target.rpc)) as engine:
            change = Change(create=objects(count))
            began = time.perf_counter()
            outcome = await engine.change(change)
            first = time.perf_counter() - began
            if outcome.problems:
                raise TargetError(summary(outcome.problems))
            with Store(state.store) as store:
                text = specs.dump(specs.export(store.load()))
            began = time.perf_counter()
            with Store(state.store) as store:
                again = specs.difference(store.load(), specs.parse(text, "spec"), prune=True, wipe=False)
            outcome = await engine.reconcile()
            second = time.perf_counter() - began
            if again.keys or outcome.calls:
                raise TargetError(f"a second apply of the same file made {outcome.calls} calls")
    return first, second


async def _restored(state: StateDir, spdk: Spdk) -> float:
    """From when the new target answers until everything is there again."""
    async with _target(state, spdk) as target:
        with contextlib.closing(Engine(state, target.rpc)) as engine:
            began = time.perf_counter()
            outcome = await engine.reconcile()
            took = time.perf_counter() - began
    if outcome.problems:
        raise TargetError(summary(outcome.problems))
    return took


def _waves(state: StateDir, count: int) -> list[list[Call]]:
    """The calls that the engine makes, for the others to make too."""
    desired = next_desired(Desired(), Change(create=objects(count)), lambda volume: volume)
    return plan(desired, Actual(), state.target_dir).waves()


def _directories(state: StateDir, count: int) -> None:
    """Make the directories of the sockets, as every caller of SPDK has to."""
    for declared in objects(count):
        if isinstance(declared, Controller):
            state.target_dir(declared.name).mkdir(parents=True)


async def _bare(state: StateDir, spdk: Spdk, count: int) -> float:
    """What a script of twenty lines does: write requests, count replies, wave by wave."""
    waves = _waves(state, count)
    async with _target(state, spdk) as target:
        reader, writer = await asyncio.open_unix_connection(target.rpc_socket)
        began = time.perf_counter()
        _directories(state, count)
        for wave in waves:
            await _bare_wave(reader, writer, wave)
        took = time.perf_counter() - began
        writer.close()
    return took


async def _bare_wave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wave: list[Call]) -> None:
    waiting, in_flight = list(enumerate(wave)), 0
    buffer = b""
    while waiting or in_flight:
        while waiting and in_flight < WINDOW:
            number, call = waiting.pop(0)
            request = {"jsonrpc": "2.0", "id": number, "method": call.request.method}
            writer.write(json.dumps(request | {"params": call.request.params}).encode())
            in_flight += 1
        buffer += await reader.read(1 << 16)
        *replies, buffer = buffer.split(b"\n")
        for reply in replies:
            if "error" in json.loads(reply):
                raise TargetError(reply.decode())
        in_flight -= len(replies)


async def _spdk_client(state: StateDir, spdk: Spdk, count: int) -> float:
    """Seconds for each controller with PyPI's `spdk`, one call after the other."""
    from spdk.rpc.client import JSONRPCClient

    def run(socket: str, calls: list[tuple[str, Mapping[str, Any]]]) -> float:
        client = JSONRPCClient(socket)
        began = time.perf_counter()
        _directories(state, count)
        for method, params in calls:
            client.call(method, dict(params))
        return time.perf_counter() - began

    calls = [(call.request.method, call.request.params) for wave in _waves(state, count) for call in wave]
    async with _target(state, spdk) as target:
        return await asyncio.to_thread(run, str(target.rpc_socket), calls) / count


async def _rpc_py(state: StateDir, spdk: Spdk, count: int) -> float:
    """Seconds for each controller with one run of SPDK's command line for each call."""
    state.target_dir("x").parent.mkdir(parents=True)
    commands = [["nvmf_create_transport", "-t", "VFIOUSER"]]
    for n in range(count):
        nqn, directory = f"nqn.2026-11.org.example:{n}", state.target_dir(f"c{n}")
        directory.mkdir()
        commands += [
            ["bdev_null_create", f"v{n}", "64", "512"],
            ["nvmf_create_subsystem", nqn, "-a", "-s", f"S{n}"],
            ["nvmf_subsystem_add_ns", nqn, f"v{n}"],
            ["nvmf_subsystem_add_listener", nqn, "-t", "VFIOUSER", "-a", str(directory), "-s", "0"],
        ]

    def run(socket: str) -> float:
        began = time.perf_counter()
        for command in commands:
            argv = [sys.executable, "-m", "spdk.spdk_rpc", "-s", socket, *command]
            done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise TargetError(f"{' '.join(command)}: {done.stdout.strip() or done.stderr.strip()}")
        return time.perf_counter() - began

    async with _target(state, spdk) as target:
        return await asyncio.to_thread(run, str(target.rpc_socket)) / count
