"""Which SPDK a deployment runs: `target upgrade` may have chosen another than set-up's or the package's.

Owns the link that keeps the choice. It starts nothing.
"""

from __future__ import annotations

import os

from nvmuser.errors import SetupError
from nvmuser.paths import StateDir
from nvmuser.toolchain import Spdk, find_spdk
from nvmuser.toolchain.spdk import check_prefix, default_prefix


def chosen_spdk(state: StateDir) -> Spdk:
    """The SPDK of this deployment: $NVMUSER_SPDK's, else the one that `target upgrade` has chosen, else set-up's.

    :raises SetupError: it is not there, or will not do.
    """
    if "NVMUSER_SPDK" in os.environ or not state.spdk.is_symlink():
        return find_spdk()
    try:
        return check_prefix(state.spdk.readlink())
    except SetupError as error:
        raise SetupError(f"{error}; `target upgrade` chose it: remove {state.spdk} to go without") from None


def choose_spdk(state: StateDir, spdk: Spdk) -> None:
    """Have later starts use it too.

    :raises OSError: that cannot be kept.
    """
    state.spdk.unlink(missing_ok=True)
    if spdk.prefix != default_prefix():
        state.spdk.symlink_to(spdk.prefix)
