"""Files with a secret for remotes: looked at before SPDK opens them. What is in them goes nowhere else."""

from __future__ import annotations

import os
import re
import stat

from nvmuser.errors import UsageError
from nvmuser.model.objects import Remote

_FORMS = {
    "dhchap_key": (re.compile(rb"DHHC-1:0[0-3]:[A-Za-z0-9+/=]+:\s*"), "DHHC-1:…: (`nvme gen-dhchap-key`)"),
    "dhchap_ctrlr_key": (re.compile(rb"DHHC-1:0[0-3]:[A-Za-z0-9+/=]+:\s*"), "DHHC-1:…: (`nvme gen-dhchap-key`)"),
    "psk": (re.compile(rb"NVMeTLSkey-1:0[12]:[A-Za-z0-9+/=]+:\s*"), "NVMeTLSkey-1:…: (`nvme gen-tls-key`)"),
}
"""The interchange formats of NVM Express; SPDK takes no others."""
_LONGEST = 4096


def check(remote: Remote) -> None:
    """Each file of a remote's keys can be used.

    :raises UsageError: one cannot; its content is not in the message.
    """
    for field in remote.keys:
        if (path := getattr(remote, field)) and (problem := _problem(path, field)):
            raise UsageError(f"remote {remote.name}: {field} {path}: {problem}")


def _problem(path: str, field: str) -> str:
    if not os.path.isabs(path):
        return "give an absolute path"
    try:
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            content = file.read(_LONGEST)
    except OSError as error:
        return str(error.strerror)
    if not stat.S_ISREG(info.st_mode):
        return "it is no file"
    if info.st_uid != os.geteuid():
        return f"it belongs to user {info.st_uid}; SPDK takes only its own user's: chown {os.geteuid()}"
    if info.st_mode & 0o077:
        return f"others may read it: chmod 600 {path}"
    form, example = _FORMS[field]
    return "" if form.fullmatch(content) else f"it does not hold one key of the form {example}"
