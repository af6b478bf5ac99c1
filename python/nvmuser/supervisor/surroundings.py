"""What an SPDK process finds when it starts: its configuration, a directory for DPDK, a module loaded beside it.

Owns files that end with the start. Which arguments the process gets is `nvmuser.supervisor.spdk`'s.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nvmuser.errors import SetupError
from nvmuser.model.objects import MAX_CONTROLLERS
from nvmuser.paths import StateDir
from nvmuser.toolchain import Spdk
from nvmuser.toolchain.rbd import find_module

log = logging.getLogger(__name__)

STARTUP = Path(__file__).with_name("startup.json")
"""SPDK's configuration before any call."""
_MEMORY_FS = Path("/dev/shm")


def startup(max_controllers: int, directory: Path) -> Path:
    """SPDK's configuration: ours, or, where it is to have room for another number of controllers, a copy with that.

    :raises OSError: the copy cannot be written.
    """
    if max_controllers in (0, MAX_CONTROLLERS):
        return STARTUP
    content = json.loads(STARTUP.read_text(encoding="ascii"))
    calls = [call for subsystem in content["subsystems"] for call in subsystem["config"]]
    (room,) = (call for call in calls if call["method"] == "nvmf_set_max_subsystems")
    # The discovery subsystem is one of them.
    room["params"]["max_subsystems"] = max_controllers + 1
    path = directory / STARTUP.name
    path.write_text(json.dumps(content), encoding="ascii")
    return path


@contextlib.contextmanager
def runtime_directory(state: StateDir) -> Iterator[dict[str, str]]:
    """The environment with a directory for DPDK, gone when the block ends.

    DPDK makes `dpdk/spdk_pid<N>` in $RUNTIME_DIRECTORY, else in /var/run or /tmp (`eal_create_runtime_dir`), uses it
    for nothing here (`--no-shconf`), and leaves it behind. In /tmp the parent would belong to the first user, and a new
    directory needs a block of what may be a full disk.
    """
    parent = _MEMORY_FS if os.access(_MEMORY_FS, os.W_OK) else state.run
    directory = tempfile.mkdtemp(prefix="nvmuser-", dir=parent)
    try:
        yield {"RUNTIME_DIRECTORY": directory}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def preloaded(spdk: Spdk) -> dict[str, str]:
    """The environment that loads the module for images in Ceph. Without it all other volumes are served; what needs it
    says so."""
    try:
        return {"LD_PRELOAD": str(find_module(spdk.prefix))}
    except SetupError as error:
        log.warning("%s", error)
        return {}
