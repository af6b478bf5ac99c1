"""`nvmuser csi serve` over a real deployment and its API, in a mount namespace of its own, and calls of it."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_process import NVMUSER, SLEEPING, serving

from nvmuser.csi.messages import CLASSES, PACKAGE, SERVICES
from nvmuser.paths import StateDir
from nvmuser.supervisor import daemon

NODE = "node1"
_SERVICE_OF = {call: service for service, calls in SERVICES.items() for call in calls}


@dataclass
class Driver:
    """A driver that runs.

    :param directory: for target paths.
    """

    state: StateDir
    directory: Path
    pid: int
    channel: Any
    published: list[tuple[str, Path]] = field(default_factory=list)

    def call(self, name: str, /, **fields: Any) -> Any:
        """The response.

        :raises grpc.RpcError: it is refused.
        """
        method = self.channel.unary_unary(
            f"/{PACKAGE}.{_SERVICE_OF[name]}/{name}",
            request_serializer=CLASSES[f"{name}Request"].SerializeToString,
            response_deserializer=CLASSES[f"{name}Response"].FromString,
        )
        return method(CLASSES[f"{name}Request"](**fields), timeout=60)

    def refusal(self, name: str, /, **fields: Any) -> str:
        """The code with which it is refused."""
        with pytest.raises(grpc.RpcError) as refused:
            self.call(name, **fields)
        assert refused.value.details()  # type: ignore[attr-defined]
        return str(refused.value.code().name)  # type: ignore[attr-defined]

    def publish(self, volume_id: str, target: Path, capability: Any, **fields: Any) -> None:
        self.published.append((volume_id, target))
        self.call(
            "NodePublishVolume", volume_id=volume_id, target_path=str(target), volume_capability=capability, **fields
        )

    def seen(self, path: Path) -> str:
        """What kind of thing a path is in the driver's mount namespace; empty: nothing."""
        try:
            mode = os.stat(f"/proc/{self.pid}/root{path}").st_mode
        except FileNotFoundError:
            return ""
        kinds = {"socket": stat.S_ISSOCK, "directory": stat.S_ISDIR, "file": stat.S_ISREG}
        return next(kind for kind, is_so in kinds.items() if is_so(mode))

    def clean(self) -> None:
        """Take everything away that a test has left."""
        for volume_id, target in self.published:
            self.call("NodeUnpublishVolume", volume_id=volume_id, target_path=str(target))
        self.published.clear()
        for entry in self.call("ListVolumes").entries:
            self.call("DeleteVolume", volume_id=entry.volume.volume_id)


def capability(access: str = "mount", mode: int = 1) -> Any:
    """A `VolumeCapability`."""
    kind = {"mount": CLASSES["MountVolume"], "block": CLASSES["BlockVolume"]}[access]
    return CLASSES["VolumeCapability"](access_mode=CLASSES["AccessMode"](mode=mode), **{access: kind()})


@contextlib.asynccontextmanager
async def driver(directory: Path) -> AsyncIterator[Driver]:
    """One with its deployment. The directory's name has to be short."""
    state = StateDir(directory / "s")
    (directory / "targets").mkdir()
    async with daemon.running(state, SLEEPING):
        with serving(state), _served(state, directory) as found:
            yield found


@contextlib.contextmanager
def _served(state: StateDir, directory: Path) -> Iterator[Driver]:
    rights = ["--user", "--map-root-user"] if os.geteuid() else []
    place = f"unix://{directory}/csi.sock"
    argv = [*NVMUSER, "--state-dir", str(state.root), "csi", "serve", "--endpoint", place, "--node-id", NODE]
    argv = ["unshare", *rights, "--mount", *argv]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("serving at unix:")
            with grpc.insecure_channel(f"unix:{directory}/csi.sock") as channel:
                yield Driver(state, directory / "targets", process.pid, channel)
        except BaseException:
            process.kill()
            raise
        process.terminate()
        assert process.wait(30) == 143
