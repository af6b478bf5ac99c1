"""The unit by which systemd runs a supervisor, and keeps what must outlive it (`nvmuser.supervisor.fd_store`).

Owns its text only: the administrator installs it. For an ordinary user it is a system unit that runs as that user.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from nvmuser.paths import StateDir, cache_dir

_UNIT = """\
[Unit]
Description=NVMe controllers for virtual machines, {state}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
{user}Environment="NVMUSER_CACHE={cache}"
ExecStart="{program}" --state-dir "{state}" target start --foreground{options}
ExecStop="{program}" --state-dir "{state}" target stop --yes
# Target and endpoint go on without their supervisor; what guests need of the endpoint, systemd keeps.
Restart=always
KillMode=process
FileDescriptorStoreMax=4096
LimitNOFILE=infinity

[Install]
WantedBy=multi-user.target
"""


_API_UNIT = """\
[Unit]
Description=API of nvmuser, {state}
After=nvmuser.service

[Service]
{user}Environment="NVMUSER_CACHE={cache}"
ExecStart="{program}" --state-dir "{state}" api serve{options}
# Its status when it has ended itself in good order, as it was asked to.
SuccessExitStatus=143
Restart=always
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
"""


def unit(state: StateDir, *, standby: bool) -> str:
    """The unit of a state directory (systemd.service(5)), for this very installation of nvmuser."""
    return _UNIT.format(**_places(state), options=" --standby" if standby else "")


def api_unit(state: StateDir, options: Sequence[str]) -> str:
    """The unit that serves the API of a state directory.

    :param options: words of `nvmuser api serve`.
    """
    quoted = "".join(' "' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"' for word in options)
    return _API_UNIT.format(**_places(state), options=quoted)


def _places(state: StateDir) -> dict[str, str]:
    program = Path(sys.executable).with_name("nvmuser")
    # Without this line systemd, as root, would make files that this user cannot use any more.
    user = f"User={pwd.getpwuid(os.geteuid()).pw_name}\n" if os.geteuid() else ""
    # A per cent sign begins one of systemd's specifiers.
    paths = {"state": state.root, "cache": cache_dir(), "program": program}
    return {name: str(path).replace("%", "%%") for name, path in paths.items()} | {"user": user}
