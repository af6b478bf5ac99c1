"""Guests of the appliance's programs and a whole kernel of Debian's: with a network, NVMe-oF's target and LIO.

Owns where the kernel is: in the cache, to which it is fetched (110 MB) for the first test that wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvmuser.paths import cache_dir
from nvmuser.toolchain import appliance, apt, artifact, cpio, initramfs
from nvmuser.toolchain.steps import Reporter

BASE = "trixie"
"""The release whose other suites have the same mirror: its packages, where a suite has none."""
OLDER = "crc32c_generic"
"""A module that newer kernels have built in under another name."""
PYTHON = ("libexpat1", "libpython3.13-minimal", "python3-minimal", "python3.13-minimal", "zlib1g")
LEFT_OUT = (
    "./usr/lib/modules/*/kernel/drivers/gpu",
    "./usr/lib/modules/*/kernel/drivers/media",
    "./usr/lib/modules/*/kernel/sound",
    "./usr/share",
)


def _fetched(suite: str, reporter: Reporter) -> Path:
    directory = cache_dir() / f"test-kernel-{suite}"
    if artifact.read_manifest(directory):
        return directory
    private = apt.PrivateApt(cache_dir() / f"apt/test-kernel-{suite}", tuple(dict.fromkeys((suite, BASE))))
    private.update(reporter)
    image = next(name for name in private.depends("linux-image-amd64") if name.startswith("linux-image-"))
    version = image.removeprefix("linux-image-")
    # Newer ones have the kernel and its modules in packages beside.
    wanted = {image, *(name for name in private.depends(image) if name.endswith(version))}
    packages = private.fetch_packages(sorted(wanted), reporter, alone=True)
    with artifact.assembling(directory) as root:
        apt.unpack(packages, root, reporter, leave_out=LEFT_OUT)
        artifact.write_manifest(root, kernel=version)
    artifact.remove(private.root)
    return directory


def unpack_python(directory: Path) -> None:
    """Unpack a small Python for such a guest, into its root."""
    reporter = Reporter(directory.with_name("python.log"))
    private = apt.PrivateApt(directory.with_name("apt"), (BASE,))
    private.update(reporter)
    apt.unpack(private.fetch_packages(PYTHON, reporter, alone=True), directory, reporter, leave_out=LEFT_OUT)
    artifact.remove(private.root)


def boot_arguments(suite: str, modules: Sequence[str], directory: Path, overlay: Path | None = None) -> tuple[str, ...]:
    """QEMU's, for a guest with the kernel of a suite and these modules beside the usual ones.

    :param directory: gets its initramfs.
    :param overlay: what else is in it.
    """
    reporter = Reporter(directory / "kernel.log")
    kernel = _fetched(suite, reporter)
    facts = artifact.read_manifest(kernel)
    assert facts
    usual = [name for name in initramfs.MODULES if name != OLDER or any(kernel.rglob(f"{OLDER}.ko*"))]
    parts = initramfs.Parts(appliance.tools_dir(), kernel, facts["kernel"], appliance.guest_files(), (*usual, *modules))
    initramfs.build(parts, directory / "initrd.img", reporter)
    if overlay:
        with (directory / "initrd.img").open("ab") as archive:
            cpio.write_archive(overlay, archive)
    places = (kernel / f"boot/vmlinuz-{facts['kernel']}", kernel / f"usr/lib/modules/{facts['kernel']}/vmlinuz")
    image = next(place for place in places if place.exists())
    return ("-kernel", str(image), "-initrd", str(directory / "initrd.img"))
