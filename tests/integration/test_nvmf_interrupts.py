"""Interrupts of a guest without MSI: INTx is a level, and an eventfd is not (NVMe 1.4, section 7.5.1)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory
from raw_nvme import DOORBELL_BUFFERS, FLUSH, IDENTIFY, NQN, RawNvme, call, command, serve
from vfio_fds import eventfd, signals
from vfio_guest import Refusal

from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import SetIrqs
from nvmf_vfio.state.config_space import CONFIG
from nvmf_vfio.state.registers import Register

INTX = 0
PCI_COMMAND, PCI_STATUS, INTERRUPT_DISABLE, INTERRUPT_STATUS = 4, 6, 0x400, 0x8
OACS, DOORBELL_BUFFERS_SUPPORTED = 256, 0x100
INVALID_OPCODE = 0x01


class Line:
    """The client's end of INTx."""

    def __init__(self, raw: RawNvme) -> None:
        self.raw = raw
        self.event: Descriptor = eventfd()
        raw.client.interrupts([self.event], INTX)

    def raised(self) -> int:
        """Events since it was asked last. What was sent before has been heard when a register has been read."""
        self.raw.client.read(Register.CSTS, 4)
        return signals(self.event)

    def unmask(self) -> None:
        request = SetIrqs(SetIrqs.DATA_NONE | SetIrqs.UNMASK, INTX, 0, 1)
        self.raw.client.call(Command.DEVICE_SET_IRQS, request.pack())


@pytest.fixture(params=[False, True], ids=["interrupts", "polled"])
def raw(request: pytest.FixtureRequest, target_factory: TargetFactory, tmp_path: Path) -> Iterator[RawNvme]:
    target = target_factory.start(polled=request.param)
    raw = RawNvme(controller(target, tmp_path / "c"))
    raw.enable()
    yield raw
    raw.close()


def controller(target: BareTarget, directory: Path) -> Path:
    call(
        target,
        ("nvmf_create_transport", {"trtype": "VFIOUSER", "disable_mappable_bar0": True}),
        ("bdev_null_create", {"name": "n", "num_blocks": 1024, "block_size": 512}),
    )
    return serve(target, directory, "n", nqn=NQN)


def flushed(raw: RawNvme, count: int) -> None:
    """So many flushes have been completed; the host has looked at none."""
    queue = raw.queues[1]
    for _ in range(count):
        raw.put(command(FLUSH, 1), 1)
    raw.ring(1)
    last = (queue.head + count - 1) % queue.completions
    raw.until(lambda: raw.peek(queue.completion + 16 * last + 14, 1)[0] & 1 == queue.phase)


def test_one_event_until_it_is_unmasked(raw: RawNvme) -> None:
    line = Line(raw)
    raw.create_queue(interrupts=True)
    raw.until(lambda: line.raised() == 1)
    line.unmask()
    assert line.raised() == 0, "all that created the queue has been taken"

    flushed(raw, 3)
    raw.until(lambda: line.raised() == 1)
    assert raw.client.read(PCI_STATUS, 2, CONFIG) & INTERRUPT_STATUS
    raw.take(1)
    assert line.raised() == 0, "two completions are left, and it is asserted"
    line.unmask()
    raw.until(lambda: line.raised() == 1)
    raw.take(1)
    raw.take(1)
    line.unmask()
    assert line.raised() == 0
    assert not raw.client.read(PCI_STATUS, 2, CONFIG) & INTERRUPT_STATUS
    flushed(raw, 1)
    raw.until(lambda: line.raised() == 1)


def test_mask_registers(raw: RawNvme) -> None:
    line = Line(raw)
    raw.create_queue(interrupts=True)
    line.unmask()
    line.raised()
    raw.client.write(Register.INTMS, 4, 0x5)
    raw.client.write(Register.INTMC, 4, 0x4)
    assert raw.client.read(Register.INTMS, 4) == raw.client.read(Register.INTMC, 4) == 0x1
    line.unmask()
    flushed(raw, 2)
    assert line.raised() == 0
    raw.client.write(Register.INTMC, 4, 0x1)
    assert line.raised() == 1
    raw.client.write(Register.INTMS, 4, 0x1)
    raw.disable()
    assert raw.client.read(Register.INTMS, 4) == 0, "a controller reset clears it"


def test_an_eventfd_that_comes_late(raw: RawNvme) -> None:
    """Firmware polls, and its client has set up none."""
    raw.create_queue(interrupts=True)
    flushed(raw, 1)
    raw.client.read(Register.CSTS, 4)
    line = Line(raw)
    raw.until(lambda: line.raised() == 1)


def test_no_shadow_doorbells_with_intx(raw: RawNvme) -> None:
    """The host must write its heads to the BAR: a client takes INTx back when one is accessed."""

    def offered() -> int:
        return raw.fetch(IDENTIFY, cdw10=1)[OACS + 1] << 8 & DOORBELL_BUFFERS_SUPPORTED

    shadows = (raw.allocate(), raw.allocate())
    assert not offered()
    assert raw.admin(DOORBELL_BUFFERS, data=shadows).status == INVALID_OPCODE
    raw.client.write(PCI_COMMAND, 2, 0x6 | INTERRUPT_DISABLE, CONFIG)
    assert offered()
    assert raw.admin(DOORBELL_BUFFERS, data=shadows).status == 0


def test_an_eventfd_does_not_unmask(raw: RawNvme) -> None:
    """It would never be heard; a client that is refused unmasks by messages."""
    request = SetIrqs(SetIrqs.DATA_EVENTFD | SetIrqs.UNMASK, INTX, 0, 1)
    with eventfd() as held, pytest.raises(Refusal) as caught:
        raw.client.call(Command.DEVICE_SET_IRQS, request.pack(), [held])
    assert caught.value.errno == errno.EINVAL
