"""What Python costs a device: a register's round trip against the same device in C, on the same library.

Owns both devices, each in a process of its own, and the client, which is bare: a prepared message, and its reply. What
a guest adds to that (a trap, QEMU) would only blur the comparison. `nvmuser.pci` owns how devices are served.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmf_vfio.protocol.header import Command, Flag, Header
from nvmf_vfio.protocol.messages import RegionAccess
from nvmf_vfio.protocol.version import Version
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.rounds.alternate import alternate
from nvmuser.errors import DeviceError
from nvmuser.pci import Bar, Identity, PciDevice, Server, Space
from nvmuser.toolchain import bindings, find_spdk, proc

_BAR = 2
_START_SECONDS = 20.0
_REPLY_SECONDS = 10
_TIMEVAL = struct.pack("@ll", _REPLY_SECONDS, 0)


class Board(PciDevice):
    """As gpio_device.c."""

    identity = Identity(0x494F, 0x0DC8)
    bars = (Bar(_BAR, 0x100, space=Space.IO),)
    intx = True

    def __init__(self) -> None:
        self.outputs = 0

    def read(self, bar: int, offset: int, size: int) -> int:
        """The outputs at offset 0, else 0."""
        return self.outputs if offset == 0 else 0

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Set the outputs, at offset 0."""
        if offset == 0:
            self.outputs = value


@dataclass(frozen=True)
class GpioResult:
    """Medians of each round, in microseconds for one register; a round of one device follows one of the other."""

    python: tuple[float, ...]
    c: tuple[float, ...]

    @property
    def python_us(self) -> float:
        """The median over the rounds, in microseconds."""
        return statistics.median(self.python)

    @property
    def c_us(self) -> float:
        """The median over the rounds, in microseconds."""
        return statistics.median(self.c)

    @property
    def ratio(self) -> float:
        """The median over the rounds of Python's time over C's."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.python, self.c, strict=True))

    def to_json(self) -> dict[str, Any]:
        """`gpio_ratio`, both medians, and the rounds."""
        rounds = {"python_us": list(self.python), "c_us": list(self.c)}
        return {"gpio_ratio": self.ratio, "python_us": self.python_us, "c_us": self.c_us, "rounds": rounds}


async def measure(*, rounds: int = 7, accesses: int = 4000, progress: Progress | None = None) -> GpioResult:
    """Run both devices, and access their registers alternately: half of the accesses read, half write.

    :raises SetupError: nvmuser_vfu is not there, or the C device does not compile.
    :raises DeviceError: a device did not start, or did not answer.
    """
    bindings.load(bindings.VFU)
    client_cpu, device_cpu = _cpus()
    with tempfile.TemporaryDirectory(prefix="nvmuser-gpio-") as scratch:
        directory = Path(scratch)
        commands = {
            "python": [sys.executable, "-m", "nvmuser.bench.scenarios.gpio", str(directory / "python.sock")],
            "c": [str(_compile(directory)), str(directory / "c.sock")],
        }
        async with AsyncExitStack() as stack:
            pool = ThreadPoolExecutor(1, initializer=os.sched_setaffinity, initargs=(0, client_cpu))
            stack.enter_context(pool)
            clients: dict[str, Callable[[int], Awaitable[float]]] = {}
            loop = asyncio.get_running_loop()

            def round_trips(client: _Client) -> Callable[[int], Awaitable[float]]:
                return lambda _round: loop.run_in_executor(pool, client.round_trip, accesses)

            for name, command in commands.items():
                await stack.enter_async_context(_running(command, device_cpu))
                clients[name] = round_trips(stack.enter_context(_Client(Path(command[-1]))))
            times = await alternate(clients, rounds, progress, what="a register in Python and in C, ")
    return GpioResult(tuple(times["python"]), tuple(times["c"]))


def _cpus() -> tuple[set[int], set[int]]:
    """One for the client, one for whichever device is at work: the same for both of them."""
    cpus = sorted(os.sched_getaffinity(0))
    return {cpus[0]}, {cpus[-1]}


def _compile(directory: Path) -> Path:
    spdk, out = find_spdk().prefix, directory / "gpio_device"
    source = Path(__file__).with_name("gpio_device.c")
    library = bindings.library_dir(bindings.VFU, spdk)
    proc.run(
        ["gcc", "-D_GNU_SOURCE", "-O2", "-Wall", f"-I{spdk / 'include'}", source, "-o", out, f"-L{library}",
         f"-Wl,-rpath,{library}", "-lvfio-user"],
        log=directory / "gcc.log",
    )  # fmt: skip
    return out


@asynccontextmanager
async def _running(command: Sequence[str], cpu: set[int]) -> AsyncIterator[None]:
    """A device, which prints `ready` when a client may connect."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        os.sched_setaffinity(process.pid, cpu)
        assert process.stdout is not None
        async with asyncio.timeout(_START_SECONDS):
            if await process.stdout.readline() != b"ready\n":
                raise DeviceError(f"{command[0]} did not start (its status: {await process.wait()})")
        yield
    except TimeoutError as error:
        raise DeviceError(f"{command[0]} did not start within {_START_SECONDS:g} s") from error
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class _Client:
    """A vfio-user client that can do nothing but access registers."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(os.fspath(path))
        # A timeout of Python's own would make the socket non-blocking, and cost a poll each time.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
        self._call(self._request(Command.VERSION, Version(0, 1).pack()), 4096)

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @staticmethod
    def _request(command: Command, body: bytes) -> bytes:
        return Header(1, command, Header.SIZE + len(body)).pack() + body

    def _call(self, request: bytes, room: int) -> bytes:
        self._socket.send(request)
        try:
            reply = self._socket.recv(room)
        except BlockingIOError as error:
            raise DeviceError(f"no reply within {_REPLY_SECONDS} s") from error
        header = Header.unpack(reply, limit=1 << 20)
        if header.size != len(reply) or header.flags & Flag.ERROR:
            raise DeviceError(f"a reply of {len(reply)} bytes, error {header.error}", header.error)
        return reply[Header.SIZE :]

    def round_trip(self, accesses: int) -> float:
        """The median time for a register, in microseconds."""
        write = self._request(Command.REGION_WRITE, RegionAccess(0, _BAR, 1, b"\x5a").pack())
        read = self._request(Command.REGION_READ, RegionAccess(0, _BAR, 1).pack())
        self._call(write, 4096)
        answer = self._call(read, 4096)
        if RegionAccess.unpack(answer, with_data=True).data != b"\x5a":
            raise DeviceError("the register does not hold what was written to it")
        times, room = [], Header.SIZE + len(answer)
        send, receive, now = self._socket.send, self._socket.recv, time.perf_counter_ns
        for _ in range(accesses // 2):
            began = now()
            send(write)
            receive(room)
            send(read)
            reply = receive(room)
            times.append(now() - began)
        if reply[Header.SIZE :] != answer:
            raise DeviceError("the register does not hold what was written to it")
        return statistics.median(times) / 2 / 1000


async def _main(path: Path) -> None:
    async with Server(Board(), path) as server:
        print("ready", flush=True)
        await server.wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
