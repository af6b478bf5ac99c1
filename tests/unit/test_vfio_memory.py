"""Guest memory: bounds, overlaps, and guests that cut it short."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vfio_fds import descriptors_open, eventfd, memory

from nvmf_vfio.keeper.fd_store import FdStore, StoredFd
from nvmf_vfio.protocol.descriptors import Descriptor, is_eventfd, is_guest_memory
from nvmf_vfio.protocol.messages import DmaMap, DmaUnmap
from nvmf_vfio.state.memory import MAX_MAPS, GuestMemory, GuestMemoryError, Refused

PAGE = 0x1000


class Guest:
    """A table of maps, and a store of which nothing is expected."""

    def __init__(self) -> None:
        self.store = FdStore("test", lambda _name, _descriptor: None, lambda _name: None)
        self.memory = GuestMemory()

    def map(self, address: int, size: int, offset: int = 0, *, flags: int = 3, shared: bool = True) -> StoredFd | None:
        request = DmaMap(flags, offset, address, size)
        held = [memory(offset + size)] if shared else []
        try:
            self.memory.check_map(request, held)
            self.memory.check_room(request)
        except Refused:
            for descriptor in held:
                descriptor.close()
            raise
        kept = self.store.push(held[0]) if held else None
        self.memory.map(request, kept)
        return kept


@pytest.fixture
def guest() -> Iterator[Guest]:
    before = descriptors_open()
    guest = Guest()
    yield guest
    guest.store.close()
    assert descriptors_open() == before


def test_reads_what_was_written_at_the_maps_offset(guest: Guest) -> None:
    kept = guest.map(0x10000, 4 * PAGE, offset=2 * PAGE)
    assert kept
    guest.memory.write(0x10000 + PAGE - 2, b"abcd")
    assert guest.memory.read(0x10000 + PAGE - 2, 4) == b"abcd"
    assert os.pread(kept.descriptor.fileno(), 4, 3 * PAGE - 2) == b"abcd"


@given(st.integers(0, 16 * PAGE), st.binary(min_size=1, max_size=3 * PAGE))
def test_only_what_lies_in_one_map_is_touched(address: int, data: bytes) -> None:
    guest = Guest()
    guest.map(4 * PAGE, 4 * PAGE)
    guest.map(8 * PAGE, 2 * PAGE)
    end = address + len(data)
    if any(first * PAGE <= address and end <= last * PAGE for first, last in ((4, 8), (8, 10))):
        guest.memory.write(address, data)
        assert guest.memory.read(address, len(data)) == data
    else:
        with pytest.raises(GuestMemoryError):
            guest.memory.write(address, data)
        with pytest.raises(GuestMemoryError):
            guest.memory.read(address, len(data))
    guest.store.close()


@pytest.mark.parametrize("address", [(1 << 64) - 8, (1 << 64) - 1, 1 << 64, 1 << 70])
def test_addresses_that_wrap(guest: Guest, address: int) -> None:
    guest.map((1 << 64) - PAGE, PAGE)
    with pytest.raises(GuestMemoryError):
        guest.memory.read(address, 16)


def test_access_that_the_map_does_not_allow(guest: Guest) -> None:
    guest.map(0, PAGE, flags=DmaMap.READ)
    assert guest.memory.read(0, 4) == bytes(4)
    with pytest.raises(GuestMemoryError):
        guest.memory.write(0, b"x")


def test_memory_that_is_not_shared(guest: Guest) -> None:
    guest.map(0, PAGE, shared=False)
    with pytest.raises(GuestMemoryError):
        guest.memory.read(0, 4)


@pytest.mark.parametrize("size", [0, PAGE, PAGE + 100])
def test_memory_cut_short_after_it_was_mapped(guest: Guest, size: int) -> None:
    kept = guest.map(0, 16 * PAGE)
    assert kept
    os.ftruncate(kept.descriptor.fileno(), size)
    with pytest.raises(GuestMemoryError):
        guest.memory.read(8 * PAGE, 16)
    with pytest.raises(GuestMemoryError):
        guest.memory.write(8 * PAGE, b"abcd")
    with pytest.raises(GuestMemoryError):
        guest.memory.write(size - 2 if size else 0, b"abcd")


def test_memory_whose_size_is_no_multiple_of_a_page(guest: Guest) -> None:
    guest.map(0, PAGE + 100)
    guest.memory.write(PAGE + 90, b"abcd")
    assert guest.memory.read(PAGE + 90, 4) == b"abcd"


def test_memory_that_cannot_be_written(guest: Guest) -> None:
    with memory(PAGE) as held:
        read_only = Descriptor(os.open(f"/proc/self/fd/{held.fileno()}", os.O_RDONLY))
    guest.memory.map(DmaMap(3, 0, 0, PAGE), guest.store.push(read_only))
    with pytest.raises(GuestMemoryError):
        guest.memory.write(0, b"x")


def test_overlapping_maps_are_refused(guest: Guest) -> None:
    guest.map(4 * PAGE, 4 * PAGE)
    for address, size in ((4 * PAGE, PAGE), (7 * PAGE, 2 * PAGE), (3 * PAGE, 2 * PAGE), (0, 16 * PAGE)):
        with pytest.raises(Refused) as caught:
            guest.map(address, size)
        assert caught.value.errno == errno.EEXIST
    guest.map(8 * PAGE, PAGE)
    guest.map(3 * PAGE, PAGE)
    guest.map(4 * PAGE, 4 * PAGE)
    assert len(guest.memory.regions) == 3, "the same map again takes the place of the first"


def test_as_many_maps_as_a_target_takes(guest: Guest) -> None:
    for number in range(MAX_MAPS):
        guest.map(number * PAGE, PAGE)
    with pytest.raises(Refused) as caught:
        guest.map(MAX_MAPS * PAGE, PAGE)
    assert caught.value.errno == errno.ENOSPC


def test_unmapping_closes_the_descriptor(guest: Guest) -> None:
    before = descriptors_open()
    guest.map(0, PAGE)
    guest.map(PAGE, PAGE)
    guest.map(2 * PAGE, PAGE)
    guest.memory.unmap(DmaUnmap(0, 0, PAGE))
    assert descriptors_open() == before + 2
    guest.memory.unmap(DmaUnmap(DmaUnmap.ALL, 0, 0))
    assert descriptors_open() == before
    with pytest.raises(GuestMemoryError):
        guest.memory.read(0, 1)


def test_a_map_that_is_remembered_twice_keeps_its_descriptor(guest: Guest) -> None:
    kept = guest.map(0, PAGE)
    assert kept
    guest.memory.map(DmaMap(3, 0, 0, PAGE), kept.share())
    guest.memory.write(0, b"here")
    assert len(guest.memory.regions) == 1


def test_a_map_that_is_replaced_takes_no_room(guest: Guest) -> None:
    for number in range(MAX_MAPS):
        guest.map(number * PAGE, PAGE, shared=False)
    guest.memory.check_room(DmaMap(3, 0, 7 * PAGE, PAGE))
    with pytest.raises(Refused) as caught:
        guest.memory.check_room(DmaMap(3, 0, MAX_MAPS * PAGE, PAGE))
    assert caught.value.errno == errno.ENOSPC


def test_one_file_is_kept_once(guest: Guest) -> None:
    with memory(4 * PAGE) as held:
        kept = [guest.store.push(held.duplicate()) for _ in range(4)]
    assert all(other is kept[0] for other in kept)
    for number, other in enumerate(kept):
        guest.memory.map(DmaMap(3, number * PAGE, number * PAGE, PAGE), other)
    document = json.loads(guest.memory.to_json())
    again = GuestMemory()
    again.load_json(document, {kept[0].name: kept[0]})
    assert [region.map for region in again.regions] == [region.map for region in guest.memory.regions]
    guest.memory.unmap(DmaUnmap(DmaUnmap.ALL, 0, 0))
    again.write(3 * PAGE, b"kept")
    again.unmap(DmaUnmap(0, 0, 4 * PAGE))
    with pytest.raises(ValueError, match="closed"):
        kept[0].descriptor.fileno()


@pytest.mark.parametrize("kind", ["file", "directory", "pipe", "eventfd", "path"])
def test_descriptors_that_are_not_memory(guest: Guest, kind: str) -> None:
    request = DmaMap(3, 0, 0, PAGE)
    number = {
        "file": lambda: os.open(__file__, os.O_RDONLY),
        "directory": lambda: os.open("/dev/shm", os.O_RDONLY),
        "pipe": lambda: os.open("/proc/self/maps", os.O_RDONLY),
        "eventfd": lambda: eventfd().detach(),
        "path": lambda: os.open(__file__, os.O_PATH),
    }[kind]()
    with Descriptor(number) as held, pytest.raises(Refused) as caught:
        guest.memory.check_map(request, [held])
    assert caught.value.errno == errno.EINVAL


def test_memory_that_is_too_small_for_its_map(guest: Guest) -> None:
    with memory(PAGE) as held:
        for request in (DmaMap(3, 0, 0, 2 * PAGE), DmaMap(3, PAGE, 0, 1), DmaMap(3, (1 << 62), 0, PAGE)):
            with pytest.raises(Refused):
                guest.memory.check_map(request, [held])


def test_what_a_descriptor_is() -> None:
    with memory() as held, eventfd() as event:
        assert is_guest_memory(held)
        assert not is_eventfd(held)
        assert is_eventfd(event)
        assert not is_guest_memory(event)


def test_huge_pages(guest: Guest) -> None:
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    free = int((pool / "free_hugepages").read_text()) - int((pool / "resv_hugepages").read_text())
    if not free:
        pytest.skip("no huge pages are free")
    held = Descriptor(os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB))
    os.ftruncate(held.fileno(), 2 << 20)
    assert is_guest_memory(held)
    guest.memory.map(DmaMap(3, 0, 0, 2 << 20), guest.store.push(held))
    guest.memory.write(0x1234, b"huge")
    assert guest.memory.read(0x1234, 4) == b"huge"
