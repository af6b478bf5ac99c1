"""A device's interrupts: MSI, MSI-X and the pin INTA#."""

from __future__ import annotations

import pytest
from pci_device import Everything, off_loop
from vfio_fds import eventfd, signals
from vfio_guest import Client

from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import SetIrqs
from nvmuser.errors import DeviceError


@pytest.mark.parametrize(("index", "vectors"), [(1, 4), (2, 8)])
async def test_message_interrupts(
    device: Everything, client: Client, index: int, vectors: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert not device.trigger(1), "the guest has enabled none"
    assert caplog.records == [], "which is nothing to complain about"
    held = [eventfd() for _ in range(vectors)]
    await off_loop(client.interrupts, held, index)
    assert device.trigger(vectors - 1)
    assert device.trigger(0)
    assert [signals(descriptor) for descriptor in held] == [1, *[0] * (vectors - 2), 1]
    with pytest.raises(DeviceError):
        device.trigger(100)
    for descriptor in held:
        descriptor.close()


async def test_an_interrupt_pin_is_a_level(device: Everything, client: Client) -> None:
    def mask(action: int) -> None:
        client.call(Command.DEVICE_SET_IRQS, SetIrqs(SetIrqs.DATA_NONE | action, 0, 0, 1).pack())

    with eventfd() as line:
        await off_loop(client.interrupts, [line], 0)
        device.set_intx(True)
        device.set_intx(True)
        assert signals(line) == 1
        await off_loop(mask, SetIrqs.UNMASK)
        assert signals(line) == 1, "served, and still asserted"
        device.set_intx(False)
        await off_loop(mask, SetIrqs.UNMASK)
        assert signals(line) == 0
        await off_loop(mask, SetIrqs.MASK)
        device.set_intx(True)
        assert signals(line) == 0
        await off_loop(mask, SetIrqs.UNMASK)
        assert signals(line) == 1
