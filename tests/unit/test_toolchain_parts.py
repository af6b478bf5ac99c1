"""nvmuser.toolchain: which SPDK, QEMU and accelerator are chosen, with made-up programs in their place.

tests/integration/test_toolchain.py holds the same against the real ones.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from nvmuser.errors import SetupError
from nvmuser.paths import SETUP
from nvmuser.toolchain import (  # fmt: skip
    accel,
    appliance,
    artifact,
    cpio,
    find_libvfio,
    find_qemu,
    find_spdk,
    initramfs,
    libvfio,
    older_qemu,
    qemu,
    setup,
    spdk,
    steps,
)

WITH = 'echo \'name "vfio-user-pci", bus PCI, desc "VFIO over socket PCI device assignment"\''
WITHOUT = "echo 'name \"vfio-pci\", bus PCI'"


@pytest.fixture(scope="session")
def _tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host's programs, without a QEMU that may be among them."""
    directory = tmp_path_factory.mktemp("tools")
    for program in Path("/usr/bin").iterdir():
        if not program.name.startswith("qemu-"):
            (directory / program.name).symlink_to(program)
    return directory


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _tools: Path) -> None:
    """An empty cache, and nothing on PATH but what the fakes need."""
    monkeypatch.setenv("NVMUSER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{_tools}")
    monkeypatch.delenv("NVMUSER_QEMU", raising=False)
    monkeypatch.delenv("NVMUSER_SPDK", raising=False)


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def fake_qemu(path: Path, devices: str, version: str = "10.1.0") -> Path:
    return script(
        path, f'case "$1" in --version) echo "QEMU emulator version {version} (Debian)";; *) {devices};; esac'
    )


def test_nothing_set_up_names_the_way_out() -> None:
    with pytest.raises(SetupError, match=SETUP):
        find_qemu()
    with pytest.raises(SetupError, match=SETUP):
        find_spdk()
    with pytest.raises(SetupError, match=SETUP):
        appliance.find_appliance()
    with pytest.raises(SetupError, match="guest-kernel bookworm"):
        appliance.find_appliance("bookworm")
    with pytest.raises(SetupError, match=SETUP):
        find_libvfio()
    with pytest.raises(SetupError, match="nvmuser setup --qemu bookworm"):
        older_qemu.find_older_qemu("bookworm")


def test_the_qemu_on_path_is_used_when_it_has_the_device(tmp_path: Path) -> None:
    binary = fake_qemu(tmp_path / "bin/qemu-system-x86_64", WITH)
    found = find_qemu()
    assert (found.argv, found.version, found.origin) == ((str(binary),), "10.1.0", "PATH")


def test_a_qemu_on_path_without_the_device_is_passed_over(tmp_path: Path) -> None:
    fake_qemu(tmp_path / "bin/qemu-system-x86_64", WITHOUT)
    directory = qemu.artifact_dir(tmp_path / "cache")
    directory.mkdir(parents=True)
    artifact.write_manifest(directory, version="11.1.3")
    found = find_qemu()
    assert (found.version, found.origin) == ("11.1.3", "cache")
    libraries = directory / "usr/lib/x86_64-linux-gnu"
    # Not the modules of the one on PATH, which would end it.
    assert found.argv[:3] == ("env", f"QEMU_MODULE_DIR={libraries}/qemu", f"{libraries}/ld-linux-x86-64.so.2")
    assert found.tool("qemu-img")[-1] == str(directory / "usr/bin/qemu-img")


def test_the_qemu_that_is_asked_for_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu(tmp_path / "bin/qemu-system-x86_64", WITH)
    mine = fake_qemu(tmp_path / "mine/qemu", WITH, "11.0.1")
    script(tmp_path / "mine/qemu-img", "true")
    monkeypatch.setenv("NVMUSER_QEMU", str(mine))
    found = find_qemu()
    assert (found.version, found.origin) == ("11.0.1", "NVMUSER_QEMU")
    assert found.tool("qemu-img") == (str(tmp_path / "mine/qemu-img"),)


@pytest.mark.parametrize("named", ["absent", "without"])
def test_a_qemu_that_is_asked_for_and_will_not_do_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    fake_qemu(tmp_path / "bin/qemu-system-x86_64", WITH)
    fake_qemu(tmp_path / "without", WITHOUT)
    monkeypatch.setenv("NVMUSER_QEMU", str(tmp_path / named))
    with pytest.raises(SetupError, match="NVMUSER_QEMU"):
        find_qemu()
    with pytest.raises(SetupError, match="NVMUSER_QEMU"):
        qemu.is_done()


def test_with_libvfio_any_qemu_will_do_but_one_with_both_ways_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SetupError, match=SETUP):
        find_qemu("vfio-pci")
    fake_qemu(tmp_path / "bin/qemu-system-x86_64", WITHOUT, "7.2.0")
    assert find_qemu("vfio-pci").version == "7.2.0"
    cached = qemu.artifact_dir(tmp_path / "cache")
    cached.mkdir(parents=True)
    artifact.write_manifest(cached, version="11.1.0")
    assert find_qemu("vfio-pci").version == "11.1.0"
    named = fake_qemu(tmp_path / "mine", WITHOUT, "8.0.0")
    monkeypatch.setenv("NVMUSER_QEMU", str(named))
    assert find_qemu("vfio-pci").version == "8.0.0"
    with pytest.raises(SetupError, match="or --via libvfio"):
        find_qemu()


def test_libvfio_is_built_and_kept_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sources(mark: str) -> Path:
        root = tmp_path / mark
        root.mkdir()
        (root / "Makefile").write_text(f"all:\n\tmkdir -p $(OUT) && echo {mark} > $(OUT)/libvfio.so\n")
        return root

    first, second = sources("first"), sources("second")
    monkeypatch.setattr(libvfio, "source_dir", lambda: first)
    libvfio.build(steps.Reporter(tmp_path / "log"))
    assert libvfio.is_done()
    found = find_libvfio()
    assert found.read_text() == "first\n"
    assert sorted(path.name for path in found.parent.iterdir()) == ["libvfio.so", "nvmuser.json"]
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/other.so")
    assert libvfio.preload() == f"LD_PRELOAD={found}:/usr/lib/other.so"
    monkeypatch.setattr(libvfio, "source_dir", lambda: second)
    assert not libvfio.is_done()


def test_a_cache_whose_path_cannot_be_preloaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVMUSER_CACHE", str(tmp_path / "a b"))
    libvfio.build(steps.Reporter(tmp_path / "log"))
    with pytest.raises(SetupError, match="no path with a space"):
        find_libvfio()


def fake_spdk(prefix: Path, *, transport: bool) -> Path:
    script(prefix / "bin/nvmf_tgt", 'echo "SPDK v26.01 git sha1 abc"')
    library = prefix / "lib/libspdk_nvmf.so.22.0"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\x7fELF" + (spdk.TRANSPORT_SYMBOL if transport else b"spdk_nvmf_transport_tcp"))
    return prefix


def test_an_existing_spdk_with_the_transport_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVMUSER_SPDK", str(fake_spdk(tmp_path / "opt", transport=True)))
    found = find_spdk()
    assert (found.prefix, found.version) == (tmp_path / "opt", "26.01")
    assert found.binary("nvmf_tgt") == tmp_path / "opt/bin/nvmf_tgt"
    with pytest.raises(SetupError, match="bdevperf"):
        found.binary("bdevperf")
    with pytest.raises(SetupError, match="fio plug-in"):
        _ = found.fio_plugin


def test_an_existing_spdk_without_the_transport_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVMUSER_SPDK", str(fake_spdk(tmp_path / "opt", transport=False)))
    with pytest.raises(SetupError, match="without the vfio-user transport"):
        find_spdk()
    with pytest.raises(SetupError, match="without the vfio-user transport"):
        spdk.is_done()


def test_a_prefix_without_a_target_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVMUSER_SPDK", str(tmp_path))
    with pytest.raises(SetupError, match="no bin/nvmf_tgt"):
        find_spdk()


def test_the_built_spdk_is_found_by_its_recipe(tmp_path: Path) -> None:
    prefix = spdk.artifact_dir(tmp_path / "cache")
    assert prefix.name.startswith("spdk-26.01-")
    prefix.mkdir(parents=True)
    artifact.write_manifest(prefix, version="26.01")
    assert find_spdk().prefix == prefix


def test_without_kvm_guests_are_emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accel, "_DEVICE", tmp_path / "no-kvm")
    assert accel.accelerator() == "tcg"
    assert accel.is_known()


@pytest.mark.parametrize(
    ("output", "answer"), [("echo '[0.0] Linux version 6.12'; sleep 60", "kvm"), ("sleep 60", "tcg")]
)
def test_kvm_is_believed_only_after_a_kernel_spoke_and_then_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, answer: str
) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "_DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(accel, "PROOF_SECONDS", 0.5)
    monkeypatch.setattr(accel, "find_appliance", lambda: appliance.Appliance(tmp_path, tmp_path, "6.12", "fio-3.39"))
    (tmp_path / "cache").mkdir()
    binary = fake_qemu(tmp_path / "bin/qemu-system-x86_64", f"case $2 in help) {WITH};; *) {output};; esac")
    assert not accel.is_known()
    assert accel.accelerator() == answer
    assert accel.is_known()
    binary.write_text(binary.read_text().replace("sleep 60", "exit 1"))
    assert accel.accelerator() == answer


def test_kvm_is_tried_with_an_older_qemu_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no vfio-user-pci; guests reach their controllers by libvfio."""
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "_DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(accel, "find_appliance", lambda: appliance.Appliance(tmp_path, tmp_path, "6.12", "fio-3.39"))
    (tmp_path / "cache").mkdir()
    older = WITH.replace("vfio-user-pci", "vfio-pci")
    speaks = "echo '[0.0] Linux version 6.12'; sleep 60"
    named = fake_qemu(tmp_path / "named/qemu", f"case $2 in help) {older};; *) {speaks};; esac")
    monkeypatch.setenv("NVMUSER_QEMU", str(named))
    assert accel.accelerator() == "kvm"


def test_on_an_empty_machine_with_kvm_every_step_is_merely_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "_DEVICE", tmp_path / "kvm")
    assert [step.name for step in setup.steps() if step.done()] == []


def test_module_closure_holds_all_that_the_wanted_ones_need() -> None:
    dependencies = (
        "kernel/drivers/nvme/host/nvme.ko.xz: kernel/drivers/nvme/host/nvme-core.ko.xz kernel/lib/crc64.ko.xz\n"
        "kernel/drivers/nvme/host/nvme-core.ko.xz: kernel/lib/crc64.ko.xz\n"
        "kernel/lib/crc64.ko.xz:\n"
        "kernel/drivers/gpio/gpio-pci-idio-16.ko.xz:\n"
        "kernel/sound/snd.ko.xz:\n"
    )
    closure = initramfs.module_closure(
        dependencies, "kernel/drivers/virtio/virtio_pci.ko\n", ["nvme", "virtio-pci", "gpio_pci_idio_16"]
    )
    assert closure == [
        "kernel/drivers/gpio/gpio-pci-idio-16.ko.xz",
        "kernel/drivers/nvme/host/nvme-core.ko.xz",
        "kernel/drivers/nvme/host/nvme.ko.xz",
        "kernel/lib/crc64.ko.xz",
    ]
    with pytest.raises(SetupError, match="no module floppy"):
        initramfs.module_closure(dependencies, "", ["floppy"])


def test_the_archive_is_newc_and_always_the_same(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_bytes(b"12345")
    (root / "bin/tool").chmod(0o755)
    (root / "link").symlink_to("bin/tool")
    first, second = io.BytesIO(), io.BytesIO()
    cpio.write_archive(root, first)
    cpio.write_archive(root, second)
    assert first.getvalue() == second.getvalue()
    entries = unpack(first.getvalue())
    assert entries["bin/tool"] == (0o100755, b"12345", (0, 0))
    assert entries["link"] == (0o120777, b"bin/tool", (0, 0))
    assert entries["bin"][0] & 0o170000 == 0o040000
    assert entries["dev/console"] == (0o020600, b"", (5, 1))
    assert list(entries)[-1] == "TRAILER!!!"


def unpack(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    entries = {}
    at = 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        field = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + field[11] - 1].decode()
        at = (at + 110 + field[11] + 3) // 4 * 4
        entries[name] = (field[1], archive[at : at + field[6]], (field[9], field[10]))
        at = (at + field[6] + 3) // 4 * 4
    return entries


def test_a_damaged_memory_of_accelerators_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "_DEVICE", tmp_path / "kvm")
    fake_qemu(tmp_path / "bin/qemu-system-x86_64", WITH)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/accelerator.json").write_text('{"half')
    assert not accel.is_known()
    (tmp_path / "cache/accelerator.json").write_text(json.dumps({}))
    assert not accel.is_known()
