"""The unit by which systemd runs a supervisor, and keeps what must outlive it (`nvmuser.supervisor.fd_store`).

Owns its text only: the administrator installs it. For an ordinary user it is a system unit that runs as that user.
"""

from __future__ import annotations

import os
import pwd
import sys
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


def unit(state: StateDir, *, standby: bool) -> str:
    """The unit of a state directory (systemd.service(5)), for this very installation of nvmuser."""
    program = Path(sys.executable).with_name("nvmuser")
    # Without this line systemd, as root, would make files that this user cannot use any more.
    user = f"User={pwd.getpwuid(os.geteuid()).pw_name}\n" if os.geteuid() else ""
    # A per cent sign begins one of systemd's specifiers.
    paths = {"state": state.root, "cache": cache_dir(), "program": program}
    quoted = {name: str(path).replace("%", "%%") for name, path in paths.items()}
    return _UNIT.format(**quoted, user=user, options=" --standby" if standby else "")
