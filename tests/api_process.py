"""`nvmuser api serve` as a process of its own, and tokens and certificates for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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


def certificate(directory: Path, name: str, *, ca: str = "") -> None:
    """A certificate for 127.0.0.1: NAME.pem and NAME.key.

    :param ca: name of the one that signs it; empty: itself.
    """
    key = directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    if ca:
        command += ["-CA", f"{directory}/{ca}.pem", "-CAkey", f"{directory}/{ca}.key"]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    else:
        # Python 3.13 asks it of an authority.
        command += ["-addext", "keyUsage=critical,keyCertSign,digitalSignature"]
    subprocess.run([*command, "-keyout", key, "-out", directory / f"{name}.pem"], check=True, capture_output=True)
