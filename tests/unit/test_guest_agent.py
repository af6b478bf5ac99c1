"""The agent itself, compiled with sanitizers, on a pseudo terminal that stands for the serial port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import random
import signal
import subprocess
import tty
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import nvmuser.guest
from nvmuser.errors import UsageError
from nvmuser.guest.agent import Agent, AgentError, CommandFailed, CommandTimeout, GuestRebooted
from nvmuser.guest.frames import Decoder, Frame, encode

SOURCES = sorted((Path(nvmuser.guest.__file__).parent / "appliance/agent").glob("*.c"))


class SerialPort:
    """What QEMU is to the agent: a UNIX socket on one side, a tty on the other. One client at a time."""

    def __init__(self, program: Path, socket: Path) -> None:
        self.program = program
        self.socket = socket
        self._client: asyncio.StreamWriter | None = None
        self._pending = bytearray()

    async def __aenter__(self) -> SerialPort:
        self.master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        asyncio.get_running_loop().add_reader(self.master, self._from_guest)
        self._server = await asyncio.start_unix_server(self._serve, self.socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self.master)
        asyncio.get_running_loop().remove_writer(self.master)
        self._server.close()
        if self._client:
            self._client.close()
        os.close(self.master)
        os.close(self._slave)

    def start_agent(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([self.program, os.ttyname(self._slave)])

    def to_guest(self, data: bytes) -> None:
        self._pending += data
        asyncio.get_running_loop().add_writer(self.master, self._flush)

    def to_host(self, data: bytes) -> None:
        if self._client:
            self._client.write(data)

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._pending[: os.write(self.master, self._pending)]
        if not self._pending:
            asyncio.get_running_loop().remove_writer(self.master)

    def _from_guest(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.to_host(os.read(self.master, 65536))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._client = writer
        while data := await reader.read(65536):
            self.to_guest(data)
        writer.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent"
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    subprocess.run(["gcc", *flags, "-o", path, *SOURCES], check=True)
    return path


@pytest.fixture
async def port(program: Path, tmp_path: Path) -> AsyncIterator[SerialPort]:
    async with SerialPort(program, tmp_path / "agent.sock") as port:
        process = port.start_agent()
        try:
            yield port
        finally:
            assert process.poll() is None, "the agent died"
            process.kill()
            process.wait()


@pytest.fixture
async def agent(port: SerialPort) -> AsyncIterator[Agent]:
    async with await Agent.connect(port.socket) as agent:
        await agent.wait_boot(timeout=10)
        yield agent


async def test_boot_id_is_the_kernels(agent: Agent) -> None:
    assert agent.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def test_output_and_status(agent: Agent) -> None:
    result = await agent.run("echo out; echo err >&2; exit 7", timeout=10)
    assert (result.status, result.stdout, result.stderr) == (7, b"out\n", b"err\n")


async def test_a_signal_is_a_status_as_in_the_shell(agent: Agent) -> None:
    assert (await agent.run("kill -TERM $$", timeout=10)).status == 128 + signal.SIGTERM


async def test_binary_both_ways(agent: Agent) -> None:
    data = random.Random(1).randbytes(300_000) + bytes(range(256)) * 4 + bytes(3000)
    assert (await agent.run("cat", input=data, timeout=30)).stdout == data


async def test_put_and_get(agent: Agent, tmp_path: Path) -> None:
    path = str(tmp_path / "a 'quoted' name")
    await agent.put(path, b"\0\xff content")
    assert await agent.get(path) == b"\0\xff content"
    with pytest.raises(CommandFailed, match="No such file"):
        await agent.get(path + "x")


async def test_output_comes_while_the_command_runs(agent: Agent) -> None:
    async with agent.stream("echo first; read line; echo got $line") as process:
        pieces = aiter(process)
        assert (await anext(pieces)).data == b"first\n"
        await process.write(b"word\n")
        assert (await anext(pieces)).data == b"got word\n"
        assert await process.wait() == 0


async def test_commands_run_side_by_side(agent: Agent) -> None:
    async with agent.stream("read line") as waiting:
        results = await asyncio.gather(*(agent.run(f"echo {i}", timeout=20) for i in range(20)))
        assert [int(result.stdout) for result in results] == list(range(20))
        waiting.close_stdin()
        assert await waiting.wait() == 1


async def test_input_that_nobody_reads_blocks_only_its_own_command(agent: Agent) -> None:
    async with agent.stream("exec sleep 100") as idle:
        feeding = asyncio.create_task(idle.write(bytes(200_000)))
        assert (await agent.run("echo other", timeout=10)).stdout == b"other\n"
        assert not feeding.done()
        idle.kill(signal.SIGTERM)
        assert await idle.wait() == 128 + signal.SIGTERM
        await feeding


async def test_input_after_the_reader_closed_is_dropped(agent: Agent) -> None:
    result = await agent.run("exec <&-; sleep 0.2; echo done", input=bytes(100_000), timeout=10)
    assert (result.status, result.stdout) == (0, b"done\n")


async def test_a_deadline_kills_the_command_and_its_children(agent: Agent, tmp_path: Path) -> None:
    with pytest.raises(CommandTimeout, match=r"0\.5 s"):
        await agent.run(f"sleep 1000 & echo $! > {tmp_path}/pid; wait", timeout=0.5)
    child = int((tmp_path / "pid").read_text())
    # It is nobody's child here: that it has been killed says nothing of when it is gone (or a zombie).
    async with asyncio.timeout(30):
        with contextlib.suppress(OSError):
            while True:
                if not Path(f"/proc/{child}/cmdline").read_bytes():
                    break
                await asyncio.sleep(0.01)


async def test_leaving_a_stream_kills_its_command(agent: Agent) -> None:
    async with agent.stream("echo $$; exec sleep 1000") as process:
        pid = int((await anext(aiter(process))).data)
    assert not Path(f"/proc/{pid}").exists()


async def test_a_background_process_does_not_hold_up_the_end(agent: Agent) -> None:
    result = await agent.run("echo before; sleep 1000 & echo $!", timeout=5)
    before, pid = result.stdout.split()
    os.kill(int(pid), signal.SIGKILL)
    assert before == b"before"


async def test_a_flood_of_output_arrives_whole(agent: Agent) -> None:
    result = await agent.run("head -c 3000000 /dev/zero; echo end >&2", timeout=60)
    assert result.stdout == bytes(3_000_000)
    assert result.stderr == b"end\n"


async def test_more_commands_than_the_agent_takes(agent: Agent) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(32):
            await stack.enter_async_context(agent.stream("read line"))
        with pytest.raises(AgentError, match="could not start"):
            await agent.run("true", timeout=10)
    assert (await agent.run("true", timeout=10)).status == 0


async def test_a_command_that_does_not_fit(agent: Agent) -> None:
    with pytest.raises(UsageError, match="16384 bytes"):
        await agent.run("x" * 20_000)
    with pytest.raises(UsageError, match="null"):
        await agent.run("a\0b")


async def test_kernel_messages_on_the_line_break_nothing(agent: Agent, port: SerialPort) -> None:
    async def chatter() -> None:
        while True:
            port.to_host(b"[   12.345678] nvme nvme0: I/O tag 1 (1001) QID 1 timeout\r\n")
            await asyncio.sleep(0.001)

    data = random.Random(2).randbytes(200_000)
    noise = asyncio.create_task(chatter())
    # Noise inside a frame destroys it: that must be seen. Noise between frames must not matter.
    outcomes = []
    for _ in range(5):
        try:
            outcomes.append((await agent.run("cat", input=data, timeout=30)).stdout == data)
        except AgentError as error:
            outcomes.append("lost a part" in str(error))
    noise.cancel()
    assert all(outcomes)
    for _ in range(5):
        # What was destroyed last may be noticed only now.
        with contextlib.suppress(AgentError):
            assert (await agent.run("echo fine", timeout=10)).stdout == b"fine\n"
            return
    pytest.fail("the line never recovered")


@pytest.mark.parametrize("seed", range(10))
async def test_garbage_from_the_host_never_breaks_the_agent(agent: Agent, port: SerialPort, seed: int) -> None:
    source = random.Random(seed)
    for _ in range(100):
        kinds = [
            source.randbytes(source.randrange(400)),
            encode(Frame(source.choice([b"S", b"I", b"k", b"?"]), 0, source.randrange(3), source.randbytes(9))),
            encode(Frame(b"I", 0, 0, bytes(16384)))[: source.randrange(16384)],
            b"\xff" * source.randrange(40_000),
        ]
        port.to_guest(source.choice(kinds))
    for _ in range(100):
        # Each false frame among the garbage breaks the sequence: the running command reports that.
        with contextlib.suppress(AgentError):
            assert (await agent.run("echo alive", timeout=20)).stdout == b"alive\n"
            return
    pytest.fail("the agent never recovered")


async def test_frames_lost_on_the_way_to_the_guest_are_noticed(agent: Agent) -> None:
    async with agent.stream("cat") as process:
        agent._sequence += 1
        await process.feed(b"x")
        with pytest.raises(AgentError, match="lost a part of what was sent to the guest"):
            await process.collect()


async def test_a_new_session_ends_the_commands_of_the_last(port: SerialPort) -> None:
    async with await Agent.connect(port.socket) as first:
        await first.wait_boot(timeout=10)
        stream = first.stream("echo $$; exec sleep 1000")
        process = await stream.__aenter__()
        pid = int((await anext(aiter(process))).data)
        # As if this client had been killed: it says nothing, and the next one comes.
        port._client.transport.abort()  # type: ignore[union-attr]
        async with await Agent.connect(port.socket) as second:
            await second.wait_boot(timeout=10)
            assert (await second.run("true", timeout=10)).status == 0
            async with asyncio.timeout(10):  # it has been killed; its parent reaps it when it is scheduled
                while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110 (what it looks at knows no events)
                    await asyncio.sleep(0.01)
        with pytest.raises(AgentError, match="connection"):
            await process.collect()
        await stream.__aexit__(None, None, None)


async def test_a_new_agent_ends_what_ran(program: Path, tmp_path: Path) -> None:
    async with SerialPort(program, tmp_path / "agent.sock") as port:
        old = port.start_agent()
        async with await Agent.connect(port.socket) as agent:
            await agent.wait_boot(timeout=10)
            async with agent.stream("exec sleep 1000") as process:
                old.kill()
                old.wait()
                new = port.start_agent()
                with pytest.raises(GuestRebooted, match="agent again"):
                    await process.wait()
            await agent.wait_boot(timeout=10)
            assert (await agent.run("echo again", timeout=10)).stdout == b"again\n"
        new.kill()
        new.wait()


async def test_another_boot_is_waited_for(tmp_path: Path) -> None:
    """A guest in Python, for a boot id cannot be made in a real one without booting it."""
    boots = ["first", "second"]

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder()
        while data := await reader.read(4096):
            for frame in decoder.feed(data):
                if frame.kind == b"R":
                    boots.pop(0)
                session = frame.payload if frame.kind == b"H" else bytes(8)
                writer.write(encode(Frame(b"h", 0, 0, session + boots[0].encode())))
        writer.close()

    async with (
        await asyncio.start_unix_server(guest, tmp_path / "agent.sock"),
        await Agent.connect(tmp_path / "agent.sock") as agent,
    ):
        assert await agent.wait_boot(timeout=5) == "first"
        with pytest.raises(GuestRebooted, match="rebooted"):
            await agent.run("reboot", timeout=5)
        assert await agent.wait_boot("first", timeout=5) == "second"


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="No such file"):
        await Agent.connect(tmp_path / "agent.sock")


async def test_a_silent_guest(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with (
        await asyncio.start_unix_server(silent, tmp_path / "agent.sock"),
        await Agent.connect(tmp_path / "agent.sock") as agent,
    ):
        with pytest.raises(AgentError, match=r"no word .* within 0\.1 s"):
            await agent.wait_boot(timeout=0.1)
