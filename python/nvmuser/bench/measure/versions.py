"""The versions that every result names: of ours, of SPDK and QEMU, and of what runs in the guest."""

from __future__ import annotations

from pathlib import Path

from nvmuser import __version__
from nvmuser.bench.measure.runner import Shell
from nvmuser.errors import SetupError
from nvmuser.toolchain import Spdk, find_qemu, find_spdk, proc, recipe


async def look(guest: Shell) -> dict[str, str | None]:
    """Ask the guest for its kernel and its fio: a user's own image has others than the appliance."""
    answer = await guest.run("uname -r && fio --version", timeout=60, check=True)
    kernel, fio = answer.stdout.decode(errors="replace").split()[:2]
    spdk = find_spdk()
    return {
        "nvmuser": __version__,
        "commit": commit(Path(__file__).parent),
        "spdk": spdk.version,
        "spdk_patches": patches(spdk),
        "qemu": find_qemu().version,
        "guest_kernel": kernel,
        "fio": fio,
    }


def commit(directory: Path) -> str | None:
    """The commit of the checkout whose files are in `directory`, with "+" when some were changed; None when they are
    installed, even into some other project's checkout.
    """
    try:
        proc.output(["git", "ls-files", "--error-unmatch", "."], timeout=10, cwd=directory)
        describe = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return proc.output(describe, timeout=10, cwd=directory).strip()
    except SetupError:
        return None


def patches(spdk: Spdk) -> str | None:
    """The key of the recipe, patches and all, of which this SPDK was built; None when set-up did not build it."""
    current = recipe.load()
    return current.key if spdk.prefix.name == f"spdk-{current.version}-{current.key}" else None
