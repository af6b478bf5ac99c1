"""`nvmuser csi`: a driver of the Container Storage Interface, for Kubernetes."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

import click

from nvmuser.cli.groups import Group
from nvmuser.cli.options import read_token
from nvmuser.cli.present import run
from nvmuser.errors import UsageError
from nvmuser.extras import require_extra
from nvmuser.paths import StateDir


@click.group(cls=Group)
def csi() -> None:
    """The Container Storage Interface: volumes for pods that run virtual machines.

    \b
    nvmuser csi serve --endpoint unix:///csi/csi.sock
    """


@csi.command()
@click.option("--endpoint", metavar="PLACE", required=True, help="unix:///PATH, where kubelet and its helpers call.")
@click.option("--api", "url", metavar="URL", help="This node's API. Default: unix:STATE_DIR/run/api.sock.")
@click.option("--token-file", type=click.Path(path_type=Path), help="A token of the API's, of the role operator.")
@click.option("--node-id", default="", metavar="NAME", help="This node's name in Kubernetes. Default: its hostname.")
@click.pass_obj
def serve(state: StateDir, endpoint: str, url: str | None, token_file: Path | None, node_id: str) -> None:
    """Serve CSI's identity, controller and node services until SIGTERM or Ctrl-C.

    A volume of CSI's is a volume of this node's nvmuser, and is published as an NVMe controller: its socket appears at
    the target path, for the QEMU or Cloud Hypervisor that runs in the pod. It is root's: it mounts.

    \b
    Examples:
      nvmuser csi serve --endpoint unix:///csi/csi.sock
      nvmuser csi serve --endpoint unix:///csi/csi.sock --api https://127.0.0.1:8460 --token-file csi.token
    """
    require_extra("csi", "nvmuser csi")
    place = Path(endpoint.removeprefix("unix:"))
    if not endpoint.startswith("unix:") or not place.is_absolute():
        raise UsageError(f"--endpoint {endpoint}: expected unix:///PATH")
    if not place.parent.is_dir():
        raise UsageError(f"--endpoint {endpoint}: there is no directory {place.parent}")
    token = read_token(token_file) if token_file else ""
    from nvmuser.client.aio import AsyncClient
    from nvmuser.csi import server

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    api = AsyncClient(url or f"unix:{state.api_socket}", token)

    def started() -> None:
        click.echo(f"serving at {endpoint}")

    number = run(server.serve(api, place, node_id or socket.gethostname(), started))
    sys.exit(128 + number)
