"""The one rule for names: of volumes, pools, remotes, controllers, targets and guests."""

from __future__ import annotations

import re

from nvmuser.errors import UsageError

NAME_MAX = 63
NAME = f"[a-z0-9][a-z0-9._-]{{0,{NAME_MAX - 1}}}"
"""As a regular expression, of Python's and of JSON Schema's. 63 characters are what SPDK takes for a volume in a pool
(SPDK_LVOL_NAME_MAX in include/spdk/lvol.h is 64 with the terminating null), and what a label of DNS has. A controller's
name is part of a socket's path too, whose length is checked where the state directory is known."""

_NAME = re.compile(NAME)


def check_name(kind: str, name: str) -> None:
    """:raises UsageError: it is no name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{kind} name {name!r}: 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"
        )
