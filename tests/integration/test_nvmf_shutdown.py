"""A target that is ended while guests are there ends in good order."""

from __future__ import annotations

from pathlib import Path

import pytest
from bare_target import TargetFactory
from raw_nvme import RawNvme, call, serve
from vfio_fds import PATIENCE, memory

from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import DmaMap

GUESTS, MAPS = 4, 40


@pytest.mark.parametrize("polled", [False, True], ids=["interrupts", "polled"])
@pytest.mark.parametrize("behind", [2, 6, 14])
def test_ended_while_guests_change_their_memory_and_leave(
    target_factory: TargetFactory, tmp_path: Path, behind: int, polled: bool
) -> None:
    """Each map pauses the guest's subsystem.

    :param behind: so many maps have been sent when the target is told to end.
    """
    target = target_factory.start(polled=polled)
    call(target, ("nvmf_create_transport", {"trtype": "VFIOUSER", "disable_mappable_bar0": True}))
    guests = []
    for number in range(GUESTS):
        call(target, ("bdev_null_create", {"name": f"n{number}", "num_blocks": 1024, "block_size": 512}))
        path = serve(target, tmp_path / str(number), f"n{number}", nqn=f"nqn.2026-11.org.nvmuser:{number}")
        guests.append(RawNvme(path))
        guests[-1].enable()
        guests[-1].create_queue()
    with memory() as held:
        for count in range(MAPS):
            if count == behind:
                target.process.terminate()
            request = DmaMap(3, 0, (1 << 30) + count * 0x2000, 0x1000).pack()
            for guest in guests:
                try:
                    guest.client.send(Command.DMA_MAP, request, [held])
                except (BrokenPipeError, ConnectionResetError):
                    continue
    for guest in guests:
        guest.close()
    assert target.process.wait(PATIENCE) == 0, target.log.read_text()[-3000:]
