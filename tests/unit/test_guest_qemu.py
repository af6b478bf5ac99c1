"""QEMU's arguments and libvirt's XML for a guest; contradictions in a specification."""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvmuser.errors import GuestError, UsageError
from nvmuser.guest import cloud_hypervisor, libvirt, migration, spec
from nvmuser.guest.process import QemuProcess
from nvmuser.guest.qemu import Boot, Runtime, arguments, attachment, memory_backend, plain
from nvmuser.guest.spec import GIB, MIB, GuestSpec, check_sockets, image_format, reserved_memory, use_hugepages
from nvmuser.hostfs import hugepages
from nvmuser.hostfs.hugepages import PAGE, HugepagePool

SOCKETS = (Path("/run/a,b/vm1/cntrl"), Path("/run/a,b/vm2/cntrl"))
IMAGE = Path("/run/a,b/no-migration.vmdk")
RUNTIME = Runtime(Path("/run/vm/x,y"))
PLAIN = memory_backend(GuestSpec(), hugepages=False)
LISTENERS = {"console": 3, "agent": 4, "qmp": 5}
BOOT = Boot(accelerator="tcg", kernel=Path("/k"), initrd=Path("/i"))


def values(argv: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(argv) if name == option]


def devices(argv: list[str], driver: str) -> list[dict[str, Any]]:
    found = [json.loads(value) for value in values(argv, "-device")]
    return [device for device in found if device["driver"] == driver]


def test_each_controller_has_a_port_of_its_own_and_spare_ones_remain() -> None:
    argv = attachment(GuestSpec(sockets=SOCKETS, spare_ports=3), PLAIN, no_migration=IMAGE)
    ports, controllers = devices(argv, "pcie-root-port"), devices(argv, "vfio-user-pci")
    assert [device["socket"] for device in controllers] == [{"type": "unix", "path": str(path)} for path in SOCKETS]
    assert [device["bus"] for device in controllers] == ["port0", "port1"]
    assert [device["id"] for device in controllers] == ["nvmuser-vm1", "nvmuser-vm2"]
    assert len(ports) == 5
    assert len({port["addr"] for port in ports}) == len({port["chassis"] for port in ports}) == 5


def test_a_guest_on_qemus_own_client_has_a_node_that_blocks_migration() -> None:
    argv = attachment(GuestSpec(sockets=SOCKETS), PLAIN, no_migration=IMAGE)
    (node,) = map(json.loads, values(argv, "-blockdev"))
    assert node == migration.blocker(IMAGE)
    assert (node["driver"], node["file"]["filename"], len(node["node-name"])) == ("vmdk", str(IMAGE), 31)
    assert values(arguments(GuestSpec(sockets=SOCKETS), RUNTIME, BOOT, LISTENERS), "-blockdev") == [
        json.dumps(migration.blocker(RUNTIME.no_migration))
    ]
    # QEMU itself blocks vfio-pci, and without a controller there is nothing to lose.
    directories = (Path("/run/vfio/4"), Path("/run/vfio/9"))
    for guest in (GuestSpec(sockets=SOCKETS, directories=directories), GuestSpec()):
        assert values(attachment(guest, PLAIN, no_migration=IMAGE), "-blockdev") == []
    domain = libvirt.domain(GuestSpec(sockets=SOCKETS), name="vm1", hugepages=False, kvm=False, no_migration=IMAGE)
    arg = "{http://libvirt.org/schemas/domain/qemu/1.0}arg"
    passed = [argument.get("value") or "" for argument in ET.fromstring(domain).iter(arg)]
    assert passed[:2] == ["-blockdev", json.dumps(migration.blocker(IMAGE))]


def test_the_image_that_blocks_migration_is_for_every_qemu(tmp_path: Path) -> None:
    path = migration.image_beside([tmp_path / "guest/vm1/cntrl"])
    assert path == tmp_path / "guest/no-migration.vmdk"
    for _ in range(2):
        migration.write_image(path)
    assert path.stat().st_mode & 0o777 == 0o644
    text = path.read_text()
    assert text.startswith("# Disk DescriptorFile\n")
    # QEMU 11.1 aborts over an image without an extent.
    assert (len(text), 'RW 1 FLAT "no-migration.vmdk" 0\n' in text) == (512, True)
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()
    with pytest.raises(GuestError, match=r"no-migration\.vmdk: .*loses the disks"):
        migration.write_image(path)


def test_with_libvfio_controllers_are_the_kernels_devices() -> None:
    directories = (Path("/run/vfio/4"), Path("/run/vfio/9"))
    argv = attachment(GuestSpec(sockets=SOCKETS, directories=directories), PLAIN, no_migration=IMAGE)
    assert devices(argv, "vfio-user-pci") == []
    assert [(d["sysfsdev"], d["bus"], d["id"]) for d in devices(argv, "vfio-pci")] == [
        ("/run/vfio/4", "port0", "nvmuser-vm1"),
        ("/run/vfio/9", "port1", "nvmuser-vm2"),
    ]
    written = attachment(GuestSpec(sockets=SOCKETS, directories=directories), PLAIN, no_migration=IMAGE, form=plain)
    assert "vfio-pci,id=nvmuser-vm1,bus=port0,sysfsdev=/run/vfio/4" in values(written, "-device")


def test_plain_form() -> None:
    assert plain({"driver": "x", "on": True, "off": False, "n": 7, "path": "/a,b"}) == "x,on=on,off=off,n=7,path=/a,,b"


def test_ports_share_slots_by_functions_and_the_first_says_so() -> None:
    ports = devices(attachment(GuestSpec(spare_ports=32), PLAIN, no_migration=IMAGE), "pcie-root-port")
    assert [port["addr"] for port in ports][6:10] == ["11.2", "11.3", "12.0", "12.1"]
    assert all(port["multifunction"] == port["addr"].endswith(".0") for port in ports)


def test_few_ports_have_a_slot_each() -> None:
    ports = devices(attachment(GuestSpec(spare_ports=8), PLAIN, no_migration=IMAGE), "pcie-root-port")
    assert [port["addr"] for port in ports] == [f"{0x10 + number:x}.0" for number in range(8)]


@pytest.mark.parametrize("hugepages", [True, False])
def test_memory_is_shared(hugepages: bool) -> None:
    guest = GuestSpec(memory=512 * MIB)
    argv = attachment(guest, memory_backend(guest, hugepages=hugepages), no_migration=IMAGE)
    (memory,) = [json.loads(value) for value in values(argv, "-object")]
    assert memory["share"] is True
    assert memory["size"] == 512 * MIB
    assert memory.get("hugetlb", False) is hugepages
    assert values(argv, "-m") == ["512M"]


def test_commas_in_paths_are_only_commas() -> None:
    (console, *_) = values(arguments(GuestSpec(), RUNTIME, BOOT, LISTENERS), "-chardev")
    assert "logfile=/run/vm/x,,y/console.log" in console


def test_the_accelerator_is_the_one_that_works() -> None:
    assert values(arguments(GuestSpec(), RUNTIME, BOOT, LISTENERS), "-accel") == ["tcg,thread=multi"]
    assert values(arguments(GuestSpec(), RUNTIME, replace(BOOT, accelerator="kvm"), LISTENERS), "-cpu") == ["host"]


def test_the_appliances_command_line() -> None:
    argv = arguments(GuestSpec(append="nvme.poll_queues=1"), RUNTIME, BOOT, LISTENERS)
    assert values(argv, "-kernel") == ["/k"]
    assert values(argv, "-append")[0].split()[-1] == "nvme.poll_queues=1"


def test_an_image_boots_by_itself() -> None:
    argv = arguments(
        GuestSpec(image=Path("/disk.qcow2")),
        RUNTIME,
        Boot("tcg", image_format="qcow2"),
        LISTENERS,
    )
    (node,) = [json.loads(value) for value in values(argv, "-blockdev")]
    assert (node["driver"], node["file"]["filename"]) == ("qcow2", "/disk.qcow2")
    assert devices(argv, "virtio-blk-pci")[0]["bootindex"] == 1
    assert "-kernel" not in argv


def test_booting_from_a_controller() -> None:
    argv = arguments(GuestSpec(sockets=SOCKETS, boot_from=SOCKETS[1]), RUNTIME, Boot("tcg"), LISTENERS)
    assert [device.get("bootindex") for device in devices(argv, "vfio-user-pci")] == [None, 1]


def test_uefi_has_variables_of_its_own() -> None:
    argv = arguments(GuestSpec(firmware="uefi"), RUNTIME, replace(BOOT, uefi_code=Path("/code")), LISTENERS)
    code, variables = [json.loads(value) for value in values(argv, "-blockdev")]
    assert (code["read-only"], code["file"]["filename"]) == (True, "/code")
    assert (variables["read-only"], variables["file"]["filename"]) == (False, str(RUNTIME.uefi_vars))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus": 0}, "at least one CPU"),
        ({"memory": 100 * MIB}, "from 256 MiB on"),
        ({"memory": 512 * MIB + 4096}, "multiple of 2 MiB"),
        ({"sockets": SOCKETS[:1] * 2}, "given twice"),
        ({"spare_ports": 33}, "room for 32"),
        ({"sockets": SOCKETS, "directories": (Path("/run/vfio/1"),)}, "has a device directory"),
        ({"boot_from": Path("/x")}, "not one of the guest's"),
        ({"sockets": SOCKETS, "boot_from": SOCKETS[0], "image": Path("/x")}, "not from both"),
        ({"image": Path("/x"), "append": "quiet"}, "brings its own"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GuestSpec(**options)


@pytest.mark.parametrize(("wanted", "free", "expected"), [(None, 2, True), (None, 0, False), (False, 2, False)])
def test_which_memory(monkeypatch: pytest.MonkeyPatch, wanted: bool | None, free: int, expected: bool) -> None:
    monkeypatch.setattr(hugepages, "query_pool", lambda: HugepagePool(1024, free * GIB // PAGE))
    monkeypatch.setattr(spec, "available_memory", lambda: 2 * GIB)
    assert use_hugepages(GuestSpec(hugepages=wanted)) is expected


def test_not_enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugepages, "query_pool", lambda: HugepagePool(200, 128))
    monkeypatch.setattr(spec, "available_memory", lambda: 512 * MIB)
    with pytest.raises(GuestError, match="1024 MiB of memory wanted, 512 MiB are available"):
        use_hugepages(GuestSpec())
    with pytest.raises(GuestError, match=r"256 MiB are free: sysctl vm\.nr_hugepages=584, or use --no"):
        use_hugepages(GuestSpec(hugepages=True))


def test_pages_are_reserved_before_another_guest_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two guests that both found the pages free, the second gets 4 KiB pages, or the reason."""

    def taken(size: int) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(hugepages, "query_pool", lambda: HugepagePool(1024, 1024))
    monkeypatch.setattr(hugepages, "reserved", taken)
    with reserved_memory(GuestSpec()) as fd:
        assert fd is None
    asked = GuestSpec(hugepages=True)
    with pytest.raises(GuestError, match="no hugepages: Cannot allocate memory, or use"), reserved_memory(asked):
        pass


def test_qemu_inherits_reserved_memory() -> None:
    argv = arguments(GuestSpec(memory=512 * MIB), RUNTIME, Boot("tcg", 9), LISTENERS)
    (memory,) = (json.loads(value) for value in values(argv, "-object"))
    assert (memory["mem-path"], memory["size"], memory["share"]) == ("/proc/self/fd/9", 512 * MIB, True)


def test_a_socket_nobody_serves(tmp_path: Path) -> None:
    path = tmp_path / "cntrl"
    with pytest.raises(GuestError, match="no such controller socket"):
        check_sockets(GuestSpec(sockets=(path,)))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(GuestError, match="nobody answers"):
            check_sockets(GuestSpec(sockets=(path,)))
        listener.listen()
        check_sockets(GuestSpec(sockets=(path,)))


def test_image_formats(tmp_path: Path) -> None:
    (tmp_path / "q").write_bytes(b"QFI\xfb\0\0\0\3")
    (tmp_path / "r").write_bytes(bytes(512))
    assert (image_format(tmp_path / "q"), image_format(tmp_path / "r")) == ("qcow2", "raw")
    with pytest.raises(GuestError, match="No such file"):
        image_format(tmp_path / "none")


def test_libvirt_gets_shared_memory_and_the_devices() -> None:
    text = libvirt.domain(
        GuestSpec(sockets=SOCKETS, firmware="uefi"), name="vm1", hugepages=True, kvm=True, no_migration=IMAGE
    )
    root = ET.fromstring(text)
    access = root.find("memoryBacking/access")
    assert access is not None
    assert access.get("mode") == "shared"
    args = [arg.get("value") for arg in root.iter("{http://libvirt.org/schemas/domain/qemu/1.0}arg")]
    assert args[0::2] == ["-blockdev", "-device", "-device"]
    assert [json.loads(arg or "")["socket"]["path"] for arg in args[3::2]] == [str(path) for path in SOCKETS]
    assert len({json.loads(arg or "")["addr"] for arg in args[3::2]}) == 2


@pytest.mark.parametrize(
    "argument",
    [
        "intel-iommu",
        "intel-iommu,caching-mode=on",
        "driver=amd-iommu,intremap=on",
        "virtio-iommu-pci,addr=5",
        '{"driver": "virtio-iommu"}',
    ],
)
def test_an_iommu_is_refused_before_the_guest_starts(argument: str) -> None:
    """The guest would boot and have no disk, without a word from QEMU."""
    with pytest.raises(UsageError, match=r"IOMMU \([a-z-]+\) has no NVMe disk.*; start it without"):
        GuestSpec(qemu_args=("-device", argument))


def test_other_arguments_of_qemu_pass() -> None:
    GuestSpec(qemu_args=("-device", "virtio-rng-pci", "-device", '{"driver": "intel-hda"}', "-append", "{intel-iommu"))


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("qemu: hardware error: bad\nCPU #0:\nRAX=0\nRBX=0\nRCX=0\n", "qemu: hardware error: bad"),
        ("$ qemu-system-x86_64\nqemu-system-x86_64: warning: old\nqemu-system-x86_64: no\n", "qemu-system-x86_64: no"),
        ("**\nERROR:a.c:1:f: unreachable\nbacktrace\n1\n2\n", "ERROR:a.c:1:f: unreachable"),
        ("a\nb\nc\nd\n", "b | c | d"),
    ],
)
async def test_qemu_s_own_words_explain_its_end(tmp_path: Path, written: str, why: str) -> None:
    log = tmp_path / "log"
    log.write_text(written)
    process = QemuProcess.start(["true"], log, (), foreground=False)
    try:
        assert await process.wait_ended(60)
        assert process.why() == why
    finally:
        process.close()


def test_cloud_hypervisor_gets_shared_memory_and_the_devices() -> None:
    sockets = tuple(Path(str(path).replace(",", "")) for path in SOCKETS)
    spec = GuestSpec(cpus=2, memory=2 << 30, sockets=sockets)
    devices = ["--user-device", *(f"socket={path}" for path in sockets)]
    start = ["--cpus", "boot=2", "--memory", "size=2048M,shared=on"]
    assert cloud_hypervisor.attachment(spec, hugepages=False) == [*start, *devices]
    start[-1] += ",hugepages=on"
    assert cloud_hypervisor.attachment(spec, hugepages=True) == [*start, *devices]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (GuestSpec(sockets=SOCKETS, directories=SOCKETS), "--via libvfio"),
        (GuestSpec(sockets=SOCKETS, boot_from=SOCKETS[0]), "--boot-from"),
        (GuestSpec(sockets=SOCKETS, firmware="uefi"), "--uefi"),
        (GuestSpec(sockets=SOCKETS), "comma"),
    ],
)
def test_what_cloud_hypervisor_cannot_do_is_refused(spec: GuestSpec, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        cloud_hypervisor.attachment(spec, hugepages=False)
