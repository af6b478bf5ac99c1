"""The versions that every result names: of ours, of SPDK and QEMU, and of what runs in the guest."""

from __future__ import annotations

from nvmuser import __version__
from nvmuser.bench.runner import Guest
from nvmuser.runtime import find_qemu, find_spdk


async def look(guest: Guest) -> dict[str, str]:
    """Asks the guest for its kernel and its fio: a user's own image has others than the appliance."""
    answer = await guest.run("uname -r && fio --version", timeout=60, check=True)
    kernel, fio = answer.stdout.decode(errors="replace").split()[:2]
    return {
        "nvmuser": __version__,
        "spdk": find_spdk().version,
        "qemu": find_qemu().version,
        "guest_kernel": kernel,
        "fio": fio,
    }
