"""`nvmuser api serve` as a process of its own, and tokens for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from nvmuser.paths import StateDir
from nvmuser.store import Store
from nvmuser.store.credentials import new_token
from nvmuser.supervisor.spdk import Options

SLEEPING = Options(profile="eco")
"""A target that sleeps while nobody asks it anything: nothing here is about speed."""
NVMUSER = (sys.executable, "-c", "from nvmuser.cli.main import main; main()")


@contextlib.contextmanager
def serving(state: StateDir, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Serve, and end it. Yields the process, and where it serves; one that was killed is no failure."""
    command = [*NVMUSER, "--state-dir", str(state.root), "api", "serve", *options]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as api:
        assert api.stdout
        lines = [api.stdout.readline() for _ in range(max(1, options.count("--listen")))]
        try:
            yield api, [line.removeprefix("serving at ").strip() for line in lines]
        except BaseException:
            api.kill()
            raise
        if api.poll() is None:
            api.terminate()
            assert api.wait(30) == 143


def token(state: StateDir, role: str) -> str:
    """A new token of this name and role."""
    secret, kept = new_token(role, role, 0)
    with Store(state.store) as store:
        store.add_credential(kept)
    return secret
