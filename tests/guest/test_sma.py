"""SPDK's own client of its Storage Management Agent drives `nvmuser sma serve`, and a running guest sees it: the steps
of SPDK's `test/sma/vfiouser_qemu.sh`. With libvfio, whose devices QEMU can unplug.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from sma_client import SpdkClient, agent

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.model.change import Change
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir
from nvmuser.supervisor import control

NQN = "nqn.2016-06.io.spdk:vfiouser-"
_LOOK = """
for i in $(seq 600); do
    seen=$(for s in /sys/class/nvme/*/subsysnqn; do [ -e $s ] && cat $s; done | sort -u | tr '\\n' ' ';
           for u in /sys/block/nvme*/uuid; do [ -e $u ] && cat $u; done | sort -u | tr '\\n' ' ')
    [ "$seen" = "{wanted}" ] && exit 0
    usleep 50000
done
echo "$seen" >&2; exit 1
"""
"""Wait until a guest has these subsystems and namespaces."""


async def nvmuser(state: StateDir, *words: str) -> None:
    program = [sys.executable, "-c", "from nvmuser.cli.main import main; main()", "--state-dir", str(state.root)]
    ended = await asyncio.to_thread(subprocess.run, [*program, *words], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.matrix
async def test_devices_and_volumes_come_and_go_in_a_guest(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("s")
    client = SpdkClient.build(root / "client")
    async with Deployment.start(root / "d") as deployment:
        state = deployment.state
        await control.submit(state, Change(create=(Volume("null0", size=8 << 20), Volume("null1", size=8 << 20))))
        first, second = (volume.uuid for volume in control.load(state).volumes())
        small = ("--memory", "512M", "--spare-ports", "2", "--via", "libvfio")
        await nvmuser(state, "guest", "start", "vm", *small)
        options = ("--qmp", str(state.run / "vm/vm/qmp.sock"), "--via", "libvfio")

        async def sees(*wanted: str) -> None:
            nqns = sorted(NQN + one for one in wanted if len(one) < 3)
            text = " ".join([*nqns, *sorted(one for one in wanted if len(one) > 3), ""]) if wanted else ""
            await nvmuser(state, "guest", "exec", "vm", _LOOK.format(wanted=text))

        try:
            local = ("--listen", "127.0.0.1:0", "--trust-loopback", *options)
            with agent(state, *local) as (_, place), client.many(place) as calls:
                await sees()
                devices = [await asyncio.to_thread(calls.create, number) for number in (0, 1)]
                await sees("0", "1")
                assert [await asyncio.to_thread(calls.create, number) for number in (0, 1)] == devices
                await sees("0", "1")
                assert await asyncio.to_thread(calls.attach, devices[0], first) == {}
                await sees("0", "1", first)
                assert await asyncio.to_thread(calls.attach, devices[1], second) == {}
                await sees("0", "1", first, second)
                assert await asyncio.to_thread(calls.detach, devices[0], second) == {}
                await sees("0", "1", first, second)
                assert await asyncio.to_thread(calls.detach, devices[0], first) == {}
                await sees("0", "1", second)
                assert await asyncio.to_thread(calls.detach, devices[1], second) == {}
                assert await asyncio.to_thread(calls.delete, devices[0]) == {}
                await sees("1")
                assert await asyncio.to_thread(calls.delete, devices[1]) == {}
                await sees()
                assert await asyncio.to_thread(calls.create, 42) == f"nvme:{NQN}42"
                await sees("42")
                assert await asyncio.to_thread(calls.delete, f"nvme:{NQN}42") == {}
                await sees()
        finally:
            await nvmuser(state, "guest", "stop", "vm")
