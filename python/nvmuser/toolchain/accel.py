"""Whether guests run on KVM or under software emulation.

/dev/kvm can be there, be usable to all appearances, and still no guest comes up (nested virtualisation done badly).
So a kernel is booted once under a time limit, and the answer is remembered for this user, host kernel, CPU and QEMU.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from pathlib import Path

from nvmuser.errors import SetupError
from nvmuser.paths import cache_dir
from nvmuser.toolchain import cpu, proc
from nvmuser.toolchain.appliance import Appliance, find_appliance
from nvmuser.toolchain.qemu import Qemu, find_qemu

PROOF_SECONDS = 10.0
"""A kernel prints its first line in well under a second where KVM works."""

_DEVICE = Path("/dev/kvm")
_FIRST_WORDS = "Linux version"


def accelerator() -> str:
    """`kvm` or `tcg`: remembered, or determined now (takes up to 10 s, and QEMU and the guest's kernel).

    :raises SetupError: there is nothing to try it with.
    """
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return "tcg"
    answers = _read()
    qemu = _some_qemu()
    if (key := _key(qemu)) not in answers:
        answers[key] = "kvm" if boots(qemu, find_appliance()) else "tcg"
        _write(answers)
    return answers[key]


def is_known() -> bool:
    """Whether `accelerator` would answer at once."""
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return True
    try:
        return _key(_some_qemu()) in _read()
    except SetupError:
        return False


def _some_qemu() -> Qemu:
    """The one that guests use; with libvfio that may be an older one, by $NVMUSER_QEMU."""
    try:
        return find_qemu()
    except SetupError:
        return find_qemu("vfio-pci")


class _Heard(Exception):
    """The kernel has printed its first line."""


def boots(qemu: Qemu, appliance: Appliance, kind: str = "kvm") -> bool:
    """Whether the guest's kernel prints its first line under this accelerator within the time limit."""

    def listen(line: str) -> None:
        if _FIRST_WORDS in line:
            raise _Heard

    arguments = [
        "-accel", kind, "-machine", "q35", "-cpu", "max", "-m", "256", "-nodefaults", "-display", "none",
        "-no-reboot", "-serial", "stdio", "-kernel", str(appliance.kernel),
        "-append", "console=ttyS0 earlyprintk=serial panic=-1",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        try:
            proc.run([*qemu.argv, *arguments], log=Path(scratch) / "log", on_line=listen, timeout=PROOF_SECONDS)
        except _Heard:
            return True
        except proc.CommandError:
            return False
    return False


def _key(qemu: Qemu) -> str:
    return f"{platform.release()} | {cpu.model()} | QEMU {qemu.version} | user {os.geteuid()}"


def _store() -> Path:
    return cache_dir() / "accelerator.json"


def _read() -> dict[str, str]:
    try:
        answers = json.loads(_store().read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    except OSError as error:
        raise SetupError(f"{_store()}: {error.strerror}: set NVMUSER_CACHE to a directory of yours") from error
    return dict(answers)


def _write(answers: dict[str, str]) -> None:
    temporary = _store().with_suffix(f".{os.getpid()}")
    try:
        temporary.write_text(json.dumps(answers, indent=2) + "\n", encoding="utf-8")
        temporary.replace(_store())
    except PermissionError:
        # Another user's cache, shared read-only: the answer is determined again next time.
        return
