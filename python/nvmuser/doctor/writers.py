"""A check of who else may write to volumes."""

from __future__ import annotations

from collections.abc import Iterator

from nvmuser.doctor.check import Finding
from nvmuser.paths import StateDir
from nvmuser.supervisor import control


def one_writer(state: StateDir) -> Iterator[Finding]:
    """No volume is shared with other hosts, as far as it was declared so."""
    volumes = control.load(state).volumes()
    shared = [volume.name for volume in volumes if volume.shared_ok]
    if shared:
        text = f"other hosts may write to {', '.join(shared)}, as declared (--shared-ok)"
        yield Finding("one writer", False, text, "delete the volume, and create it without --shared-ok")
    elif volumes:
        yield Finding("one writer", True, "volumes are ours alone")
