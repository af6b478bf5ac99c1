"""What `nvmuser setup` provides keeps its promises, and the fakes of tests/unit/test_toolchain_*.py look like it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvmuser.errors import SetupError
from nvmuser.paths import packaged_dir
from nvmuser.toolchain import (
    Appliance,
    Qemu,
    Spdk,
    accel,
    accelerator,
    apt,
    artifact,
    cpio,
    find_appliance,
    find_qemu,
    find_spdk,
    proc,
    qemu,
)
from nvmuser.toolchain import spdk as spdk_module

BOOT_SECONDS = 90.0
built_here = pytest.mark.skipif(packaged_dir() is not None, reason="packages have neither headers nor symbols")


@pytest.fixture(scope="module")
def spdk() -> Spdk:
    return find_spdk()


@pytest.fixture(scope="module")
def own_qemu() -> Qemu:
    return find_qemu()


@pytest.fixture(scope="module")
def guest() -> Appliance:
    return find_appliance()


@pytest.mark.parametrize(
    "name",
    ["nvmf_tgt", "spdk_tgt", "spdk_nvme_perf", "spdk_nvme_identify", "bdevperf", "fio", "spdk_dd", "spdk_trace_record"],
)
def test_every_program_finds_its_libraries_in_the_prefix(spdk: Spdk, name: str) -> None:
    listing = proc.output(["ldd", spdk.binary(name)])
    assert "not found" not in listing
    ours = [line for line in listing.splitlines() if "libspdk" in line or "librte" in line or "vfio-user" in line]
    assert all(f"=> {spdk.prefix}/" in line for line in ours)


def test_the_libraries_find_each_other_without_a_program(spdk: Spdk) -> None:
    for name in ("lib/libspdk_nvmf.so", "lib/libvfio-user.so", "lib/fio/spdk_nvme", "lib/fio/spdk_bdev"):
        assert "not found" not in proc.output(["ldd", spdk.prefix / name])
    assert spdk.fio_plugin == spdk.prefix / "lib/fio/spdk_nvme"


@built_here
def test_headers_for_the_bindings_are_there(spdk: Spdk) -> None:
    for name in ("spdk/nvme.h", "spdk/env.h", "vfio-user/libvfio-user.h"):
        assert (spdk.prefix / "include" / name).is_file()


def test_nothing_in_the_prefix_names_the_build_tree(spdk: Spdk) -> None:
    listing = proc.output(["readelf", "-d", spdk.binary("nvmf_tgt")])
    paths = re.findall(r"R(?:UN)?PATH\)\s+Library \w+: \[(.*)\]", listing)
    assert paths == ["$ORIGIN/../lib"]


def test_fio_loads_the_plug_in(spdk: Spdk) -> None:
    text = proc.output([spdk.binary("fio"), "--enghelp=spdk"], env={"LD_PRELOAD": str(spdk.fio_plugin)})
    assert "enable_wrr" in text


@pytest.fixture
def rpc_socket(spdk: Spdk, tmp_path: Path) -> Iterator[Path]:
    """A target of our own, without hugepages, as any user may start it."""
    path = tmp_path / "rpc.sock"
    with (tmp_path / "target.log").open("wb") as log:
        arguments = ["--no-huge", "--no-pci", "-s", "512", "-m", "0x1", "--disable-cpumask-locks", "-r", str(path)]
        environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
        process = subprocess.Popen(
            [spdk.binary("nvmf_tgt"), *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            yield path
        finally:
            process.kill()
            process.wait()


def call(path: Path, method: str, **params: Any) -> Any:
    """One RPC, asked again until the target listens."""
    deadline = time.monotonic() + 30
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            try:
                connection.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, "the target never listened"
                threading.Event().wait(0.05)
                continue
            request = {"jsonrpc": "2.0", "id": 1, "method": method, **({"params": params} if params else {})}
            connection.sendall(json.dumps(request).encode())
            reply = b""
            while True:
                reply += connection.recv(65536)
                try:
                    return json.loads(reply)
                except json.JSONDecodeError:
                    continue


def test_the_target_starts_and_has_the_vfio_user_transport(rpc_socket: Path) -> None:
    created = call(rpc_socket, "nvmf_create_transport", trtype="VFIOUSER", disable_mappable_bar0=True)
    assert created["result"] is True
    transports = call(rpc_socket, "nvmf_get_transports")["result"]
    assert [transport["trtype"] for transport in transports] == ["VFIOUSER"]


def test_a_prefix_by_name_is_checked_like_this(spdk: Spdk) -> None:
    assert spdk_module.check_prefix(spdk.prefix) == spdk


@built_here
def test_the_prefix_still_works_elsewhere(spdk: Spdk, tmp_path: Path) -> None:
    (tmp_path / "moved/bin").mkdir(parents=True)
    (tmp_path / "moved/lib").symlink_to(spdk.prefix / "lib")
    shutil.copy(spdk.binary("nvmf_tgt"), tmp_path / "moved/bin")
    assert spdk_module.check_prefix(tmp_path / "moved").version == spdk.version


def test_qemu_has_the_device(own_qemu: Qemu) -> None:
    assert qemu.has_device(own_qemu.argv)
    major, minor = (int(part) for part in own_qemu.version.split(".")[:2])
    assert (major, minor) >= (10, 1)
    assert "qemu-img" in proc.output([*own_qemu.tool("qemu-img"), "--version"])
    assert own_qemu.firmware is not None
    assert own_qemu.uefi_vars is not None


def test_a_qemu_without_the_device_is_told(own_qemu: Qemu) -> None:
    assert not qemu.has_device((*own_qemu.tool("qemu-img"),))
    with pytest.raises(SetupError, match="NVMUSER_QEMU"):
        qemu.host_qemu("/bin/true", os.environ["PATH"])


def test_the_accelerator_is_proved_by_what_works_everywhere(
    own_qemu: Qemu, guest: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof by which KVM is judged succeeds where a kernel does come up; emulated, that takes longer."""
    assert accelerator() in ("kvm", "tcg")
    monkeypatch.setattr(accel, "PROOF_SECONDS", BOOT_SECONDS)
    assert accel.boots(own_qemu, guest, "tcg")


def test_a_guest_boots_and_its_programs_and_modules_work(own_qemu: Qemu, guest: Appliance, tmp_path: Path) -> None:
    """With an /init of the test appended: tests/guest tests the appliance's own."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "init").write_text(
        "#!/bin/sh\nmount -t proc p /proc; mount -t devtmpfs d /dev; exec 2>&1\n"
        "for m in nvme virtio_blk ext4 loop gpio-pci-idio-16; do modprobe $m || echo BROKEN $m; done\n"
        "for p in fio nvme gpiodetect lsblk; do $p --version || echo BROKEN $p; done\n"
        "dd if=/dev/zero of=/disk bs=1M count=16; mkdir /m\n"
        "mkfs.ext4 -q /disk && mount -o loop /disk /m || echo BROKEN ext4\n"
        "echo RELEASE $(uname -r); echo ALL DONE; poweroff -f\n"
    )
    (root / "init").chmod(0o755)
    combined = tmp_path / "initrd"
    with combined.open("wb") as out:
        out.write(guest.initrd.read_bytes())
        cpio.write_archive(root, out)
    command: list[str | Path] = [
        *own_qemu.argv, "-accel", accelerator(), "-machine", "q35", "-cpu", "max", "-m", "512", "-nodefaults",
        "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", guest.kernel, "-initrd", combined,
        "-append", "console=ttyS0 quiet panic=-1",
    ]  # fmt: skip
    seen: list[str] = []
    proc.run(command, log=tmp_path / "console", on_line=seen.append, timeout=BOOT_SECONDS)
    text = "\n".join(seen)
    assert "ALL DONE" in text
    assert "BROKEN" not in text
    assert f"RELEASE {guest.kernel_version}" in text
    assert guest.fio_version in text


def test_the_host_s_mirror_is_found() -> None:
    mirror = apt.host_mirror()
    assert re.match(r"\w+:", mirror.uri)
    assert all(Path(keyring).is_file() for keyring in mirror.keyrings)


def test_the_manifest_says_what_was_built(spdk: Spdk) -> None:
    if "NVMUSER_SPDK" in os.environ:
        pytest.skip("NVMUSER_SPDK: somebody else's build has no manifest")
    facts = artifact.read_manifest(spdk.prefix)
    assert facts is not None
    assert facts["version"] == spdk.version
    assert len(facts["patches"]) >= 3
