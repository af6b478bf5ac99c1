"""The QEMUs of Debian 12 and 13, which have no vfio-user client: what libvfio is for, and tested with.

Owns where they come from (Debian's packages, unpacked into the cache) and how they are run. Nothing but tests needs
them; set-up fetches one when it is asked to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from nvmuser.errors import SetupError
from nvmuser.paths import cache_dir
from nvmuser.toolchain import apt, artifact, qemu
from nvmuser.toolchain.steps import Reporter

Suite = Literal["bookworm", "trixie"]
SUITES: tuple[Suite, ...] = get_args(Suite)

_PACKAGES = ("qemu-system-x86", "seabios")


def _artifact_dir(suite: Suite) -> Path:
    return cache_dir() / f"qemu-{suite}-{artifact.digest(*_PACKAGES, *qemu.LEAVE_OUT)}"


def find_older_qemu(suite: Suite) -> qemu.Qemu:
    """The QEMU of a Debian release.

    :raises SetupError: set-up has not fetched it.
    """
    root = _artifact_dir(suite)
    facts = artifact.read_manifest(root)
    if facts is None:
        raise SetupError(f"{suite}'s QEMU is not in {root.parent}: run `nvmuser setup --qemu {suite}`")
    return qemu.Qemu(qemu.unpacked_argv(root, qemu.BINARY), facts["version"], "cache")


def is_done(suite: Suite) -> bool:
    """Whether it is unpacked."""
    return artifact.read_manifest(_artifact_dir(suite)) is not None


def fetch(suite: Suite, reporter: Reporter) -> None:
    """Unpack it into the cache."""
    private = apt.PrivateApt(cache_dir() / f"apt/qemu-{suite}", (suite,))
    private.update(reporter)
    packages = private.fetch_packages(_PACKAGES, reporter)
    with artifact.assembling(_artifact_dir(suite)) as root:
        apt.unpack(packages, root, reporter, leave_out=qemu.LEAVE_OUT)
        artifact.write_manifest(root, version=qemu.version_of(qemu.unpacked_argv(root, qemu.BINARY)))
    artifact.remove(private.root)
