"""What runs in a guest that moves: writes that are verified on two disks, and reads into memory that is compared.

What a disk reads is not written by the guest's CPUs: only the device's log of pages brings it along. It goes into the
pages of files in the guest's cache, and into buffers that are compared before they are read into again (reader.c).

Everything is started in the guest's background, and looked at when it is over: a session with the agent ends with each
move. Owns two disks of the guest; the first has a file system on its beginning.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nvmuser.errors import GuestError
from nvmuser.toolchain import proc

MIB = 1 << 20
DISK = 64 * MIB
"""Bytes that each disk has to have."""
_SYSTEM_MIB, WRITTEN_MIB = 24, 20
_FILES = 20
DISKS = ("/dev/nvme0n1", "/dev/nvme1n1")

_WRITE = (
    f"(fio --output-format=json --output=/tmp/fio.json --direct=1 --ioengine=io_uring --bs=4k --iodepth=32 --fsync=32 "
    f"--rw=randwrite --offset={_SYSTEM_MIB}m --size={WRITTEN_MIB}m --rate=,{{rate}} --verify=crc32c --verify_fatal=1 "
    "--allow_mounted_write=1 --allow_file_create=0 {jobs} > /tmp/fio.log 2>&1; touch /tmp/written) > /dev/null 2>&1 &"
)
_READ = (
    f"(for i in $(seq {_FILES}); do cat /mnt/$i > /dev/null; sleep {{pause}}; done; touch /tmp/read) > /dev/null 2>&1 &"
)
"""Each into pages that the guest keeps: those that a device writes while memory is copied are compared afterwards."""

_COMPARE = (
    "rm -f /tmp/stop; (/tmp/reader {disk} read /tmp/stop > /tmp/wrong 2>&1; touch /tmp/compared) > /dev/null 2>&1 &"
)


class Run(Protocol):
    """Runs a shell command in the guest, wherever it is now; returns what it prints, or raises GuestError."""

    async def __call__(self, command: str, *, input: bytes = b"") -> str: ...


@dataclass(frozen=True)
class Seen:
    """What a guest has seen of one round.

    :ivar io_errors: jobs that ended with an error other than a wrong block.
    :ivar bad_blocks: blocks that did not have what was written.
    :ivar memory_mismatches: pages of buffers, and files, that are not in memory as they were read.
    :ivar stall: the longest that an I/O took, in seconds.
    """

    io_errors: int
    bad_blocks: int
    memory_mismatches: int
    stall: float


class Migrant:
    """The load of one guest.

    :param run: see `Run`.
    :param disks: the guest's names of its two disks.
    """

    def __init__(self, run: Run, disks: tuple[str, str] = DISKS) -> None:
        self._run = run
        self._disks = disks

    async def prepare(self) -> None:
        """Make the file system, and files with known sums in it; on the other disk, blocks with known patterns."""
        program = await asyncio.to_thread(compile_reader)
        await self._run(f"cat > /tmp/reader; chmod +x /tmp/reader; /tmp/reader {self._disks[1]} write", input=program)
        await self._run(
            f"mkfs.ext4 -q -F {self._disks[0]} {_SYSTEM_MIB}m && mkdir -p /mnt && "
            f"mount {self._disks[0]} /mnt && cd /mnt && "
            f"for i in $(seq {_FILES}); do dd if=/dev/urandom of=$i bs=1M count=1 2>/dev/null || exit 1; done && "
            f"md5sum $(seq {_FILES}) > /tmp/sums && sync"
        )

    async def begin(self, *, rate: str = "3m", pause: float = 0.3) -> None:
        """Begin a round.

        :param rate: bytes a second that each disk is written with at most, as fio has it.
        :param pause: seconds between two files.
        """
        await self._run("rm -f /tmp/written /tmp/read /tmp/compared /tmp/fio.json; echo 3 > /proc/sys/vm/drop_caches")
        jobs = " ".join(f"--name={name[5:]} --filename={name}" for name in self._disks)
        await self._run(_WRITE.format(rate=rate, jobs=jobs))
        await self._run(_READ.format(pause=pause))
        await self._run(_COMPARE.format(disk=self._disks[1]))

    async def finish(self) -> Seen:
        """Wait for the end of the round, and look.

        :raises GuestError: it does not end.
        """
        await self._run(
            "for i in $(seq 900); do [ -e /tmp/written -a -e /tmp/read ] && exit 0; sleep 0.2; done; exit 1"
        )
        output = await self._run("cat /tmp/fio.json")
        try:
            jobs = json.loads(output[output.index("{") :])["jobs"]
        except ValueError as error:
            raise GuestError(
                f"fio has said no JSON, but: {output[:200]!r}; {await self._run('cat /tmp/fio.log')}"
            ) from error
        wrong = await self._number("cd /mnt && md5sum -c /tmp/sums 2>/dev/null | grep -vc ': OK$' || true")
        wrong += await self._number(
            "touch /tmp/stop; for i in $(seq 300); do [ -e /tmp/compared ] && break; sleep 0.1; done; cat /tmp/wrong"
        )
        return Seen(
            io_errors=sum(_failed(job) for job in jobs) + len(self._disks) - len(jobs),
            bad_blocks=sum(job["error"] == _WRONG for job in jobs),
            memory_mismatches=wrong,
            stall=max(job[kind]["lat_ns"]["max"] for job in jobs for kind in ("write", "sync", "read")) / 1e9,
        )

    async def _number(self, command: str) -> int:
        answer = (await self._run(command)).strip()
        if not answer.isdecimal():
            raise GuestError(f"what compares the guest's memory has said {answer!r}")
        return int(answer)

    async def end(self) -> bool:
        """Unmount. Returns whether the file system is whole."""
        checked = f"cd /; umount /mnt && fsck.ext4 -fn {self._disks[0]} > /dev/null 2>&1 && echo whole || echo damaged"
        return (await self._run(checked)).strip() == "whole"


def compile_reader() -> bytes:
    """The program that reads into buffers and compares them, for any guest of this architecture.

    :raises SetupError: it does not compile.
    """
    source = Path(__file__).with_name("reader.c")
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "reader"
        proc.run(
            ["gcc", "-D_GNU_SOURCE", "-O2", "-Wall", "-static", "-s", source, "-o", out],
            log=Path(directory) / "gcc.log",
        )
        return out.read_bytes()


_WRONG = 84
"""EILSEQ: with `verify_fatal` a job ends at its first wrong block."""


def _failed(job: dict[str, Any]) -> bool:
    """Whether a job ended with an error, or did less than it was to do."""
    done = [job[kind]["io_bytes"] for kind in ("write", "read")]
    return job["error"] != _WRONG and (job["error"] != 0 or done != [WRITTEN_MIB * MIB] * 2)
