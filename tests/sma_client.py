"""SPDK's own client of its Storage Management Agent, with stubs made of SPDK's own definitions."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc_tools import protoc

from nvmuser.paths import StateDir
from nvmuser.toolchain.spdk import find_spdk

_MANY = """
import json, runpy, sys, grpc
client = runpy.run_path(sys.argv[1])["Client"](sys.argv[2], int(sys.argv[3]))
for line in sys.stdin:
    request = json.loads(line)
    try:
        found = client.call(request["method"], request["params"])
    except grpc.RpcError as error:
        found = {"error": error.code().name, "details": error.details()}
    print(json.dumps(found), flush=True)
"""
"""Many calls by one process: its start takes longer than they do."""


def identity(text: str) -> str:
    """A volume's UUID as its requests have it."""
    return base64.b64encode(uuid.UUID(text).bytes).decode()


@dataclass
class SpdkClient:
    """:param home: where its modules are."""

    home: Path

    @classmethod
    def build(cls, home: Path) -> SpdkClient:
        share, package = find_spdk().prefix / "share/sma", home / "spdk/sma/proto"
        package.mkdir(parents=True)
        for directory in (home / "spdk", home / "spdk/sma", package):
            (directory / "__init__.py").touch()
        files = [path.name for path in share.glob("*.proto")]
        assert protoc.main(["", f"-I{share}", f"--python_out={package}", f"--grpc_python_out={package}", *files]) == 0
        return cls(home)

    @property
    def _program(self) -> Path:
        return find_spdk().prefix / "share/sma/sma-client.py"

    @property
    def _environment(self) -> dict[str, str]:
        # Stubs import one another without their package.
        return {**os.environ, "PYTHONPATH": f"{self.home}:{self.home / 'spdk/sma/proto'}"}

    def run(self, address: str, port: str, request: dict[str, Any]) -> Any:
        """One call by the program as it is."""
        command = [sys.executable, str(self._program), "-a", address, "-p", port]
        text = json.dumps(request)
        found = subprocess.run(
            command, input=text, env=self._environment, capture_output=True, text=True, check=True, timeout=60
        )
        return json.loads(found.stdout)

    @contextlib.contextmanager
    def many(self, place: str) -> Iterator[Calls]:
        """:param place: ADDRESS:PORT."""
        address, _, port = place.rpartition(":")
        command = [sys.executable, "-c", _MANY, str(self._program), address, port]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=self._environment) as process:
            try:
                yield Calls(process)
            finally:
                process.kill()


@dataclass
class Calls:
    """Answers as its client has them; of a call that is refused, `error` and `details`."""

    process: subprocess.Popen[str]

    def __call__(self, method: str, **params: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"method": method, "params": params}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def create(self, number: int) -> str:
        answer = self("CreateDevice", nvme={"physical_id": number, "virtual_id": 0})
        assert "handle" in answer, answer
        return str(answer["handle"])

    def delete(self, handle: str) -> Any:
        return self("DeleteDevice", handle=handle)

    def attach(self, handle: str, volume: str) -> Any:
        return self("AttachVolume", device_handle=handle, volume={"volume_id": identity(volume)})

    def detach(self, handle: str, volume: str) -> Any:
        return self("DetachVolume", device_handle=handle, volume_id=identity(volume))


@contextlib.contextmanager
def agent(state: StateDir, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`nvmuser sma serve`; yields the process, and where it serves."""
    command = [sys.executable, "-c", "from nvmuser.cli.main import main; main()", "--state-dir", str(state.root)]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([*command, "sma", "serve", *options], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        try:
            yield process, process.stdout.readline().removeprefix("serving at ").strip()
        finally:
            process.kill()
