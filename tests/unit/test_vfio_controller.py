"""The controller as its guest knows it: phases, registers, and the replay to a new target."""

import errno
import json
import os
from collections.abc import Iterator

import pytest
from vfio_fds import descriptors_open, eventfd, memory, signals
from vfio_guest import ACQ, ASQ

from nvmf_vfio.keeper.fd_store import FdStore, _encode
from nvmf_vfio.protocol.descriptors import Descriptor, close_all
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import DmaMap, RegionAccess, RegionWriteMulti, Reset, SetIrqs
from nvmf_vfio.protocol.version import Version
from nvmf_vfio.state.config_space import CONFIG
from nvmf_vfio.state.controller import Controller
from nvmf_vfio.state.lifecycle import Phase
from nvmf_vfio.state.memory import Refused
from nvmf_vfio.state.registers import BAR0, CSTS_CFS, CSTS_RDY, CSTS_SHST_COMPLETE, DOORBELLS, Register

EVENTFDS, ACTION = SetIrqs.DATA_EVENTFD, SetIrqs.TRIGGER
MIB = 1 << 20


class Guest:
    """A controller and the guest that talks to it."""

    def __init__(self) -> None:
        self.store = FdStore("test", lambda _name, _descriptor: None, lambda _name: None)
        self.controller = Controller()
        self.controller.target_ready()
        self.controller.remember(Version(0, 1, {}), [])

    @property
    def phase(self) -> Phase:
        return self.controller.phase

    def map(self, address: int = 0) -> None:
        self.controller.remember(DmaMap(3, 0, address, MIB), [self.store.push(memory())])

    def interrupts(self, held: list[Descriptor], start: int = 0, index: int = 2) -> None:
        request = SetIrqs(EVENTFDS | ACTION, index, start, len(held))
        try:
            self.controller.check(request, held)
        except Refused:
            close_all(held)
            raise
        self.controller.remember(request, [self.store.push(descriptor) for descriptor in held])

    def write(self, offset: int, data: bytes, region: int = BAR0) -> None:
        request = RegionAccess(offset, region, len(data), data)
        self.controller.check(request, [])
        self.controller.observe(request)
        self.controller.remember(request, [])

    def enable(self) -> None:
        self.write(Register.AQA, (7 << 16 | 7).to_bytes(4, "little"))
        self.write(Register.ASQ, ASQ.to_bytes(8, "little"))
        self.write(Register.ACQ, ACQ.to_bytes(8, "little"))
        self.write(Register.CC, b"\x01\x00\x46\x00")

    def disable(self) -> None:
        self.write(Register.CC, b"\x00\x00\x46\x00")

    def see_ready(self) -> None:
        self.controller.patch_read(RegionAccess(Register.CSTS, BAR0, 4), b"\1\0\0\0")

    def start_io(self) -> None:
        self.write(DOORBELLS + 8, b"\1\0\0\0")

    def csts(self) -> int:
        return int.from_bytes(self.controller.read(RegionAccess(Register.CSTS, BAR0, 4)), "little")

    def replayed(self) -> list[tuple[Command, object]]:
        """The replay to a new target, without descriptors."""
        replayed = []
        for command, body, descriptors in self.controller.replay():
            for descriptor in descriptors:
                descriptor.close()
            replayed.append((command, body))
        return replayed


@pytest.fixture
def guest() -> Iterator[Guest]:
    before = descriptors_open()
    guest = Guest()
    guest.map()
    yield guest
    guest.store.close()
    assert descriptors_open() == before


def test_a_disabled_controller_becomes_idle(guest: Guest) -> None:
    guest.controller.target_lost()
    assert guest.phase is Phase.IDLE
    assert guest.csts() == CSTS_RDY, "not drained"
    guest.controller.target_drained()
    assert guest.csts() == 0
    guest.controller.target_ready()
    assert guest.phase is Phase.LIVE


def test_a_controller_in_use_fails(guest: Guest) -> None:
    guest.enable()
    guest.see_ready()
    guest.start_io()
    guest.controller.target_lost()
    assert guest.phase is Phase.FAILED
    assert guest.csts() == CSTS_CFS | CSTS_RDY
    guest.controller.target_ready()
    assert guest.phase is Phase.FAILED, "until the guest resets it"
    guest.disable()
    assert guest.phase is Phase.IDLE


def test_a_controller_that_was_not_ready_yet_is_enabled_again(guest: Guest) -> None:
    guest.enable()
    guest.controller.target_lost()
    assert guest.phase is Phase.ENABLING
    assert guest.csts() == 0
    guest.controller.target_ready()
    assert guest.phase is Phase.LIVE


def test_a_driver_that_sets_its_controller_up_is_carried_on(guest: Guest) -> None:
    guest.enable()
    guest.see_ready()
    guest.controller.target_lost()
    assert guest.phase is Phase.STARTING
    assert guest.csts() == CSTS_RDY


def test_enabling_and_disabling_without_a_target(guest: Guest) -> None:
    guest.controller.target_lost()
    guest.controller.target_drained()
    guest.enable()
    assert guest.phase is Phase.ENABLING
    guest.disable()
    assert guest.phase is Phase.IDLE
    guest.enable()
    guest.controller.remember(Reset(), [])
    assert guest.phase is Phase.IDLE
    assert not list(guest.controller.replay_registers())


def test_shutdown_without_a_target_completes_when_drained(guest: Guest) -> None:
    guest.enable()
    guest.see_ready()
    guest.start_io()
    guest.controller.target_lost()
    guest.write(Register.CC, b"\x01\x40\x46\x00")
    assert not guest.csts() & CSTS_SHST_COMPLETE
    guest.controller.target_drained()
    assert guest.csts() & CSTS_SHST_COMPLETE


def test_another_loss_is_not_drained_either(guest: Guest) -> None:
    guest.controller.target_lost()
    guest.controller.target_ready()
    assert guest.controller.drained
    guest.controller.target_lost()
    assert not guest.controller.drained


@pytest.mark.parametrize("offset", range(0, 12))
@pytest.mark.parametrize("count", [1, 4, 8, 16])
def test_cap_to_is_the_longest_however_it_is_read(guest: Guest, offset: int, count: int) -> None:
    request = RegionAccess(offset, BAR0, count)
    patched = guest.controller.patch_read(request, bytes(count))
    guest.controller.target_lost()
    for data in (patched, guest.controller.read(request)):
        assert len(data) == count
        if offset <= 3 < offset + count:
            assert data[3 - offset] == 0xFF


@pytest.mark.parametrize("offset", [0xFFE, 0x1000, 0x100000, (1 << 64) - 8])
@pytest.mark.parametrize("region", [BAR0, CONFIG, 3, 200])
def test_reads_anywhere_have_the_length_that_was_asked(guest: Guest, offset: int, region: int) -> None:
    guest.controller.target_lost()
    assert guest.controller.read(RegionAccess(offset, region, 8)) == bytes(8)


def test_the_replay(guest: Guest) -> None:
    guest.map(1 << 30)
    with eventfd() as first, eventfd() as second, eventfd() as third:
        guest.interrupts([first.duplicate(), second.duplicate()])
        guest.interrupts([third.duplicate()], 5)
    guest.write(4, b"\6\4", CONFIG)
    guest.write(0x30, bytes(4), CONFIG)
    guest.write(4, b"\7\4", CONFIG)
    guest.enable()
    replayed = guest.replayed()
    assert [command for command, _ in replayed] == [Command.DMA_MAP] * 2 + [Command.DEVICE_SET_IRQS] * 2 + [
        Command.REGION_WRITE
    ] * 2
    assert replayed[2][1] == SetIrqs(EVENTFDS | ACTION, 2, 0, 2).pack()
    assert replayed[3][1] == SetIrqs(EVENTFDS | ACTION, 2, 5, 1).pack()
    assert replayed[4][1] == RegionAccess(0x30, CONFIG, 4, bytes(4)).pack(), "in the order of the last writes"
    assert replayed[5][1] == RegionAccess(4, CONFIG, 2, b"\7\4").pack()
    registers = [RegionAccess.unpack(body, with_data=True).offset for _, body, _ in guest.controller.replay_registers()]
    assert registers == [Register.AQA, Register.ASQ, Register.ACQ, Register.CC]


def test_interrupts_replaced_and_taken_away(guest: Guest) -> None:
    before = descriptors_open()
    guest.interrupts([eventfd() for _ in range(4)])
    guest.interrupts([eventfd()], 2)
    assert descriptors_open() == before + 4
    guest.controller.remember(SetIrqs(EVENTFDS | ACTION, 2, 1, 2), [])
    assert descriptors_open() == before + 2
    guest.controller.remember(SetIrqs(SetIrqs.DATA_NONE | ACTION, 2, 0, 0), [])
    assert descriptors_open() == before
    guest.controller.remember(SetIrqs(EVENTFDS | SetIrqs.MASK, 2, 0, 1), [guest.store.push(eventfd())])
    assert descriptors_open() == before


def test_the_admin_interrupt_is_vector_0_of_what_the_guest_uses(guest: Guest) -> None:
    with eventfd() as intx, eventfd() as msix:
        guest.interrupts([intx.duplicate()], 0, 0)
        guest.controller.interrupts.signal_admin()
        assert signals(intx) == 1
        guest.interrupts([msix.duplicate()], 0, 2)
        guest.controller.interrupts.signal_admin()
        assert (signals(intx), signals(msix)) == (0, 1)


def test_a_full_eventfd_does_not_block(guest: Guest) -> None:
    held = Descriptor(os.eventfd(0, os.EFD_CLOEXEC))
    os.eventfd_write(held.fileno(), (1 << 64) - 2)
    guest.interrupts([held])
    guest.controller.interrupts.signal_admin()


def test_what_is_refused(guest: Guest) -> None:
    check = guest.controller.check
    with memory() as held, eventfd() as event:
        for request, descriptors in (
            (DmaMap(3, 0, 1 << 30, MIB), [held, held]),
            (DmaMap(3, 0, 1 << 30, MIB), [event]),
            (DmaMap(3, 0, 0x1000, MIB), [held]),
            (SetIrqs(EVENTFDS | ACTION, 2, 0, 2), [event]),
            (SetIrqs(EVENTFDS | ACTION, 2, 0, 1), [held]),
            (SetIrqs(SetIrqs.DATA_NONE | ACTION, 2, 0, 1), [event]),
            (Reset(), [event]),
            (RegionAccess(0, CONFIG, 65, bytes(65)), []),
            (RegionAccess(4095, CONFIG, 2, bytes(2)), []),
        ):
            with pytest.raises(Refused):
                check(request, descriptors)


def test_interrupts_are_bounded(guest: Guest) -> None:
    with eventfd() as event:

        def fill() -> None:
            for index in range(5):
                for start in range(0, 2048, 16):
                    guest.interrupts([event.duplicate() for _ in range(16)], start, index)

        with pytest.raises(Refused) as caught:
            fill()
        assert caught.value.errno == errno.ENOSPC


def test_configuration_writes_are_bounded(guest: Guest) -> None:
    for offset in range(0, 4000):
        guest.write(offset, b"\1", CONFIG)
    assert len(guest.controller.config.writes) <= 512


def test_several_writes_in_one_message(guest: Guest) -> None:
    writes = (RegionAccess(Register.AQA, BAR0, 4, b"\7\0\7\0"), RegionAccess(Register.CC, BAR0, 4, b"\1\0\0\0"))
    guest.controller.remember(RegionWriteMulti(writes), [])
    assert guest.controller.cc == 1
    assert guest.controller.reg(Register.AQA) == 0x70007


def test_the_record_holds_everything(guest: Guest) -> None:
    guest.interrupts([eventfd(), eventfd()])
    guest.write(4, b"\6\4", CONFIG)
    guest.enable()
    guest.see_ready()
    guest.start_io()
    guest.controller.replies.add(Command.VERSION, b"x", b"y")
    document = json.loads(_encode(guest.controller.to_json()))
    successor = Controller()
    successor.load_json(document, dict(guest.store._stored))
    assert json.loads(_encode(successor.to_json())) == document
    successor.target_lost()
    assert successor.phase is Phase.FAILED


def test_a_write_over_the_end_of_the_registers(guest: Guest) -> None:
    for offset in (0x3C, 0x40, 0xFFC, (1 << 64) - 8):
        guest.write(offset, bytes(8))
    guest.write(0, b"\xff" * 12)
    assert guest.controller.reg(Register.CAP, 8) == 0, "CAP and VS cannot be written"
