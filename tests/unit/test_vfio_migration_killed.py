"""An endpoint that is killed while its guest migrates: its successor goes on from the same state."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from vfio_fds import until
from vfio_guest import Client, Driver
from vfio_migration import Qemu
from vfio_supervisor import endpoint_process
from vfio_target import FakeTarget

from nvmf_vfio.keeper.channel import HeldFds
from nvmf_vfio.protocol.migration import DeviceState
from nvmf_vfio.state.registers import CSTS_CFS, CSTS_RDY, OPC_ASYNC_EVENT_REQUEST

do = asyncio.to_thread
ALL = set(range((1 << 20) // 4096))


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    "state", [DeviceState.RUNNING, DeviceState.STOP, DeviceState.STOP_COPY, DeviceState.RESUMING], ids=str
)
async def test_killed_at_each_state(
    tmp_path: Path, fds: HeldFds, target: FakeTarget, state: DeviceState, live: bool
) -> None:
    target.logs = live
    async with endpoint_process(tmp_path, fds) as (_, supervisor):
        supervisor.begin(["a"])
        await supervisor.status()
        supervisor.send("target", state="ready")
        driver = Driver(Client(tmp_path / "guests" / "a" / "cntrl"))
        qemu = Qemu(driver.client)
        await do(driver.set_up)
        assert await do(driver.csts) == CSTS_RDY
        await do(driver.submit, OPC_ASYNC_EVENT_REQUEST, 5)
        if state is not DeviceState.RESUMING:
            await do(qemu.start_logging)
        if state is not DeviceState.RUNNING:
            await do(qemu.enter, state)
        document = await do(qemu.read_all) if state is DeviceState.STOP_COPY else b""
    try:
        async with endpoint_process(tmp_path, fds) as (_, supervisor):
            supervisor.begin(["a"])
            for report in ("drained", "ready"):
                supervisor.send("target", state=report)
            assert await do(qemu.state) is state
            assert await do(driver.csts) == CSTS_CFS | CSTS_RDY
            if state is DeviceState.RESUMING:
                await do(driver.client.call, 13)  # DEVICE_RESET: QEMU gives up
                return
            assert await do(qemu.dirty) == ALL, "what was written when the log was lost, nobody knows"
            if state is DeviceState.STOP_COPY:
                # Read from its beginning, perhaps a second time: the destination refuses that.
                assert await do(qemu.read_all) in (document, b"")
            else:
                await do(qemu.enter, DeviceState.STOP_COPY)
                assert await do(qemu.read_all)
            await do(qemu.enter, DeviceState.RUNNING)
            await do(qemu.stop_logging)
            await until(lambda: driver.completion(0)[1] == 5)
            assert supervisor.asked("a")[-1] == "take"
    finally:
        driver.close()
