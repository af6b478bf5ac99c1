"""The programs of `nvmuser bench host`: their command lines for the same workload, and their results.

Command lines, configuration and the parsing of what was printed. `nvmuser.bench.scenarios.host` and `host_peers` run
them.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from nvmuser.errors import SetupError
from nvmuser.rpc.methods import Request
from nvmuser.supervisor.spdk import NO_TRACE
from nvmuser.toolchain import Spdk, proc

CLIENT_MIB = 256
"""DPDK's memory in each client, outside of hugepages: clients that are killed would keep those."""
BDEVPERF_MIB = 1024
"""It has the volume too, besides buffers for the largest size at the largest depth."""
ASYNC_DEPTH = 64

_TOTAL = re.compile(r"^\s*Total\s*:\s*(\d+\.\d+)", re.MULTILINE)
PATTERNS = ("read", "write", "randread", "randwrite")
"""What all of them call by the same name."""


@dataclass(frozen=True)
class HostWorkload:
    """:param cpu: where clients run; the target has another."""

    pattern: str
    depth: int
    size: int
    seconds: int
    cpu: int


def bdevperf(spdk: Spdk, work: HostWorkload, config: Path) -> list[str]:
    """No transport: the volume in the program itself."""
    return [
        str(spdk.binary("bdevperf")), "--json", str(config), "-m", f"[{work.cpu}]", "--no-huge",
        "-s", str(BDEVPERF_MIB), "--no-pci", "--no-rpc-server", "--disable-cpumask-locks",
        *NO_TRACE, *_workload(work),
    ]  # fmt: skip


def bdevperf_config(volume: Request) -> str:
    """The same call that makes the volume in the target."""
    call = {"method": volume.method, "params": dict(volume.params)}
    return json.dumps({"subsystems": [{"subsystem": "bdev", "config": [call]}]})


def spdk_nvme_perf(spdk: Spdk, work: HostWorkload, directory: Path, nqn: str) -> list[str]:
    """SPDK's own measuring program, on the controller whose socket is in `directory`."""
    # With its default subsystem name it would take the controller for a discovery service.
    return [
        str(spdk.binary("spdk_nvme_perf")), "-c", f"[{work.cpu}]", "--no-huge", "-s", str(CLIENT_MIB), *_workload(work),
        "-r", f"trtype:VFIOUSER traddr:{directory} subnqn:{nqn}",
    ]  # fmt: skip


def _workload(work: HostWorkload) -> list[str]:
    return ["-q", str(work.depth), "-o", str(work.size), "-w", work.pattern, "-t", str(work.seconds)]


def fio(spdk: Spdk, work: HostWorkload, directory: Path, nqn: str) -> list[str]:
    """fio with SPDK's plug-in, on the controller whose socket is in `directory`."""
    # fio takes a colon for the border between two files.
    name = f"trtype=VFIOUSER traddr={directory} subnqn={nqn} ns=1".replace(":", "\\:")
    return [
        str(spdk.binary("fio")), f"--ioengine={spdk.fio_plugin}", "--thread=1", "--name=host", f"--filename={name}",
        f"--rw={work.pattern}", f"--bs={work.size}", f"--iodepth={work.depth}", "--time_based=1",
        f"--runtime={work.seconds}", "--no_huge=1", f"--mem_size_mb={CLIENT_MIB}", f"--cpus_allowed={work.cpu}",
        "--norandommap=1", "--output-format=json",
    ]  # fmt: skip


def nvmuser(work: HostWorkload, directory: Path, *, awaited: bool, hugepages: bool = False) -> list[str]:
    """`nvmuser.initiator` in a process of its own: its loop in C, or 4 KiB reads that asyncio awaits."""
    loop = ("async", "randread", ASYNC_DEPTH, 4096) if awaited else ("perf", work.pattern, work.depth, work.size)
    arguments = map(str, (directory, work.cpu, work.seconds, *loop, *(("hugepages",) if hugepages else ())))
    return [sys.executable, "-m", "nvmuser.bench.scenarios.host_client", *arguments]


def compile_vhost_client(directory: Path) -> Path:
    """The client of a vhost-user-blk server, in hugepages.

    :raises SetupError: it does not compile.
    """
    out = directory / "vhost_client"
    source = Path(__file__).with_name("vhost_client.c")
    proc.run(["gcc", "-D_GNU_SOURCE", "-O2", "-Wall", source, "-o", out], log=directory / "gcc.log")
    return out


def vhost_client(program: Path, work: HostWorkload, socket: Path) -> list[str]:
    """A run of it."""
    arguments = map(str, (socket, work.cpu, work.seconds, work.pattern, work.depth, work.size))
    return [str(program), *arguments]


def total(text: str) -> float:
    """What bdevperf and spdk_nvme_perf end with.

    :raises SetupError: it is not there.
    """
    if not (found := _TOTAL.findall(text)):
        raise SetupError(f"no total in what was printed: {text.strip()[-200:]!r}")
    return float(found[-1])


def fio_iops(text: str) -> float:
    """:raises SetupError: this is no result of fio's, or it had errors."""
    try:
        job = json.loads(text[text.index("{") :])["jobs"][0]
    except (ValueError, KeyError, IndexError):
        raise SetupError(f"fio printed no result: {text.strip()[-200:]!r}") from None
    if job["error"]:
        raise SetupError(f"fio: error {job['error']}")
    return float(job["read"]["iops"] + job["write"]["iops"])
