"""Everything that `nvmuser setup` provides, as a row of steps.

Owns the order only.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from rich.console import Console

from nvmuser.paths import cache_dir
from nvmuser.toolchain import accel, appliance, bindings, libvfio, older_qemu, qemu, rbd, recipe, spdk, spdk_build
from nvmuser.toolchain.appliance import Suite
from nvmuser.toolchain.steps import Reporter, Step, exclusive, run_steps

EXTRAS = ("rbd",)
"""What nobody needs who does not use it."""


def steps(
    guest_kernel: Suite = "trixie", older_qemus: Collection[older_qemu.Suite] = (), extras: Collection[str] = ()
) -> list[Step]:
    """The steps, with the guest's kernel of the given suite, older QEMUs of those, and which of the `EXTRAS`."""
    version = recipe.load().version
    return [
        Step("qemu", f"QEMU with {qemu.DEVICE}", qemu.is_done, qemu.install),
        *(
            Step(
                f"qemu-{suite}", f"{suite}'s QEMU", partial(older_qemu.is_done, suite), partial(older_qemu.fetch, suite)
            )
            for suite in older_qemus
        ),
        Step("libvfio", "libvfio.so", libvfio.is_done, libvfio.build),
        Step("guest-tools", "the guest's programs", appliance.tools_done, appliance.fetch_tools),
        Step(
            f"guest-kernel-{guest_kernel}",
            f"the guest's kernel ({guest_kernel})",
            partial(appliance.kernel_done, guest_kernel),
            partial(appliance.fetch_kernel, guest_kernel),
        ),
        Step(
            f"guest-{guest_kernel}",
            "the guest's initramfs",
            partial(appliance.is_done, guest_kernel),
            partial(appliance.build, guest_kernel),
        ),
        Step("accelerator", "the accelerator", accel.is_known, _find_accelerator),
        Step("spdk-source", f"SPDK {version}: source", spdk_build.fetched, spdk_build.fetch),
        Step("spdk", f"SPDK {version}", spdk.is_done, spdk_build.build),
        *(
            Step(
                f"binding-{binding.name}",
                f"the Python module {binding.name}",
                partial(bindings.is_done, binding),
                partial(bindings.build, binding),
            )
            for binding in bindings.ALL
        ),
        *(_RBD if "rbd" in extras else ()),
    ]


_RBD = (
    Step("rbd-source", "SPDK's module for volumes in Ceph: source", rbd.source_done, rbd.fetch_source),
    Step("rbd", "SPDK's module for volumes in Ceph", rbd.is_done, rbd.build),
)


def _find_accelerator(reporter: Reporter) -> None:
    reporter.update(f"booting a kernel under KVM, {accel.PROOF_SECONDS:.0f} s at most")
    answer = accel.accelerator()
    reporter.log.write_text(f"{answer}\n", encoding="utf-8")


def run(
    console: Console,
    guest_kernel: Suite = "trixie",
    older_qemus: Collection[older_qemu.Suite] = (),
    extras: Collection[str] = (),
) -> dict[str, float]:
    """Do what is not done yet; return the seconds of each step.

    :raises SetupError: a step failed. What was done stays, and running again goes on from there.
    """
    cache = cache_dir()
    row = steps(guest_kernel, older_qemus, extras)
    # All of them, so that a wrong NVMUSER_SPDK or NVMUSER_QEMU is reported before anything is done.
    if all([step.done() for step in row]):
        # Nothing to write: this also serves another user's cache that we may only read.
        return run_steps(row, cache / "log", console)
    with exclusive(cache, console):
        return run_steps(row, cache / "log", console)
