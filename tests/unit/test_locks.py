"""A backing file that is open elsewhere: the process is named, however it holds its lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nvmuser.errors import ConflictError
from nvmuser.hostfs import locks

OFD = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
print("locked", flush=True)
sys.stdin.read()
"""
ENDED = """
import fcntl, os, subprocess, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
heir = subprocess.Popen([sys.executable, "-c", "print('locked', flush=True); input()"], pass_fds=[fd])
print(heir.pid, flush=True)
os._exit(0)
"""


def test_an_ofd_lock(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    command = [sys.executable, "-c", OFD, str(tmp_path / "disk")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        with pytest.raises(ConflictError, match=rf"open elsewhere already \(open in process {holder.pid}, python"):
            locks.check_free(str(tmp_path / "disk"))
        holder.stdin.close()


def test_a_lock_whose_taker_has_ended(tmp_path: Path) -> None:
    """As the target's are, which the supervisor took for it."""
    (tmp_path / "disk").write_bytes(bytes(512))
    command = [sys.executable, "-c", ENDED, str(tmp_path / "disk")]
    taker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert taker.stdout is not None
    assert taker.stdin is not None
    said = {taker.stdout.readline().strip(), taker.stdout.readline().strip()}
    (heir,) = said - {"locked"}
    taker.wait()
    with pytest.raises(ConflictError, match=rf"open elsewhere already \(open in process {heir}, python"):
        locks.check_free(str(tmp_path / "disk"))
    taker.stdin.close()
    taker.stdout.read()  # until the heir has ended
    taker.stdout.close()
