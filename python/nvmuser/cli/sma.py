"""`nvmuser sma`: SPDK's Storage Management Agent, for orchestrators that speak it."""

from __future__ import annotations

import ipaddress
import logging
import sys
from pathlib import Path

import click

from nvmuser.api.tls import Tls
from nvmuser.cli.groups import Group
from nvmuser.cli.present import run
from nvmuser.errors import UsageError
from nvmuser.extras import require_extra
from nvmuser.paths import StateDir
from nvmuser.supervisor.daemon import prepare

_CERT = click.Path(path_type=Path)


@click.group(cls=Group)
def sma() -> None:
    """SPDK's Storage Management Agent (gRPC): devices, volumes and limits, by its own protocol.

    \b
    nvmuser sma serve
    nvmuser sma serve --listen 0.0.0.0:8080 --tls-cert host.pem --tls-key host.key
    """


@sma.command()
@click.option(
    "--listen", "place", metavar="PLACE", help="unix:PATH or ADDRESS:PORT. Default: unix:STATE_DIR/run/sma.sock."
)
@click.option("--tls-cert", type=_CERT, help="The server's certificate, with its chain (PEM).")
@click.option("--tls-key", type=_CERT, help="Its key (PEM).")
@click.option("--client-ca", type=_CERT, help="Demand clients' certificates that this CA has signed (PEM).")
@click.option("--trust-loopback", is_flag=True, help="On a loopback address, who has no token is an operator.")
@click.option("--qmp", type=click.Path(path_type=Path), help="Plug devices into the QEMU with this QMP socket.")
@click.option(
    "--via", type=click.Choice(["vfio-user", "libvfio"]), default="vfio-user", show_default=True,
    help="With --qmp: how that QEMU reaches controllers.",
)  # fmt: skip
@click.option(
    "--rate", type=click.IntRange(1), default=1000, show_default=True, help="Calls a second that each may make."
)
@click.pass_obj
def serve(
    state: StateDir,
    place: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    client_ca: Path | None,
    trust_loopback: bool,
    qmp: Path | None,
    via: str,
    rate: int,
) -> None:
    """Serve SMA's six calls until SIGTERM or Ctrl-C.

    A device is a controller, and a volume is found by its UUID. What is made stays, whatever ends; each call may be
    repeated. Who may call is as with the API: tokens (in the metadata `authorization`), client certificates, and on a
    UNIX socket root and the user that this runs as. SPDK's own client shows no token: it can use the UNIX socket, or
    a loopback address with --trust-loopback.

    \b
    Examples:
      nvmuser sma serve
      nvmuser sma serve --listen 127.0.0.1:8080 --trust-loopback --qmp /run/vm1.qmp
      nvmuser sma serve --listen 10.0.0.1:8080 --tls-cert host.pem --tls-key host.key --client-ca ca.pem
    """
    require_extra("sma", "nvmuser sma")
    place = place or f"unix:{state.run / 'sma.sock'}"
    tls = Tls.of(tls_cert, tls_key, client_ca)
    _check(place, tls)
    from nvmuser.api.host import Host
    from nvmuser.sma import guests, server
    from nvmuser.sma.devices import Devices

    prepare(state)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    host = Host(state)
    devices = Devices(host)
    if qmp:
        guest = guests.Guest(state, qmp, libvfio=via == "libvfio")
        devices = Devices(host, guest.plug, guest.unplug)

    def started(shown: str) -> None:
        click.echo(f"serving at {shown}")

    number = run(server.serve(host, devices, place, tls, rate, started, loopback=trust_loopback))
    sys.exit(128 + number)


def _check(place: str, tls: Tls | None) -> None:
    """:raises UsageError: it is no place, or open to others without TLS."""
    if place.startswith("unix:"):
        if tls:
            raise UsageError("--tls-cert: a UNIX socket has no TLS")
        return
    address, _, port = place.rpartition(":")
    try:
        loopback = ipaddress.ip_address(address.removeprefix("[").removesuffix("]")).is_loopback
        known = 0 <= int(port) < 1 << 16
    except ValueError:
        loopback = known = False
    if not known:
        raise UsageError(f"--listen {place}: expected unix:PATH or ADDRESS:PORT, such as 127.0.0.1:8080")
    if not loopback and not tls:
        raise UsageError(f"--listen {place}: others can reach that, which needs --tls-cert and --tls-key")
