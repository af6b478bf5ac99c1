"""`nvmuser api`: serve the API, and describe it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from nvmuser.api.tls import Tls
from nvmuser.cli.groups import Group
from nvmuser.cli.present import run, say
from nvmuser.errors import UsageError
from nvmuser.extras import require_extra
from nvmuser.paths import StateDir
from nvmuser.supervisor.daemon import prepare
from nvmuser.supervisor.unit import api_unit

_CERT = click.Path(path_type=Path)


@click.group(cls=Group)
def api() -> None:
    """The API: REST, metrics and a page, for programs and people on other machines.

    \b
    nvmuser api serve
    nvmuser api serve --listen 0.0.0.0:8460 --tls-cert host.pem --tls-key host.key
    nvmuser api openapi > openapi.json
    """


@api.command()
@click.option(
    "--listen", "places", multiple=True, metavar="PLACE",
    help="unix:PATH, PORT (on 127.0.0.1) or ADDRESS:PORT. Default: unix:STATE_DIR/run/api.sock. May be repeated.",
)  # fmt: skip
@click.option("--tls-cert", type=_CERT, help="The server's certificate, with its chain (PEM).")
@click.option("--tls-key", type=_CERT, help="Its key (PEM).")
@click.option("--client-ca", type=_CERT, help="Take clients' certificates that this CA has signed (PEM).")
@click.option(
    "--rate", type=click.IntRange(1), default=1000, show_default=True, help="Requests a second that each may make."
)
@click.option("--latencies", is_flag=True, help="Have SPDK count latencies of volumes, and show them in metrics.")
@click.pass_obj
def serve(
    state: StateDir,
    places: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    client_ca: Path | None,
    rate: int,
    latencies: bool,
) -> None:
    """Serve the API until SIGTERM or Ctrl-C.

    Nobody may use it without a token (`nvmuser token create`) or a client certificate; on a UNIX socket, root and the
    user that it runs as may do everything. Other machines need TLS.

    \b
    Examples:
      nvmuser api serve
      nvmuser api serve --listen 8460
      nvmuser api serve --listen 10.0.0.1:8460 --tls-cert host.pem --tls-key host.key --client-ca ca.pem
    """
    require_extra("api", "nvmuser api")
    from nvmuser.api import server

    if tls := Tls.of(tls_cert, tls_key, client_ca):
        tls.context()
    prepare(state)
    listeners = []
    for place in places or (f"unix:{state.api_socket}",):
        over_tls = tls is not None and not place.startswith("unix:")
        listeners.append((server.listening(place, with_tls=over_tls), over_tls))
    if tls and any(not over_tls for _, over_tls in listeners):
        raise UsageError("--tls-cert: a UNIX socket has no TLS; serve it by another `nvmuser api serve`")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    for listener, over_tls in listeners:
        click.echo(f"serving at {server.shown(listener, with_tls=over_tls)}")
    number = run(server.serve(state, [listener for listener, _ in listeners], tls, rate, latencies=latencies))
    sys.exit(128 + number)


@api.command()
@click.pass_obj
def openapi(state: StateDir) -> None:
    """Print the OpenAPI 3.1 document.

    \b
    nvmuser api openapi > openapi.json
    """
    require_extra("api", "nvmuser api")
    from nvmuser.api.app import described

    say(described())


@api.command()
def alerts() -> None:
    """Print alert rules for Prometheus.

    \b
    nvmuser api alerts > /etc/prometheus/nvmuser.yaml
    """
    from nvmuser.api.monitoring import ALERTS

    click.echo(ALERTS.read_text(encoding="utf-8"), nl=False)


@api.command()
def dashboard() -> None:
    """Print a dashboard for Grafana, which imports it.

    \b
    nvmuser api dashboard > nvmuser.json
    """
    from nvmuser.api.monitoring.dashboard import dashboard as made

    say(made())


@api.command("unit")
@click.option("--listen", "places", multiple=True, metavar="PLACE", help="As of `api serve`. May be repeated.")
@click.option("--tls-cert", type=_CERT, help="As of `api serve`.")
@click.option("--tls-key", type=_CERT, help="As of `api serve`.")
@click.option("--client-ca", type=_CERT, help="As of `api serve`.")
@click.pass_obj
def show_unit(
    state: StateDir, places: tuple[str, ...], tls_cert: Path | None, tls_key: Path | None, client_ca: Path | None
) -> None:
    """Print a systemd unit that serves the API of this state directory.

    \b
    nvmuser api unit > /etc/systemd/system/nvmuser-api.service
    """
    files = {"--tls-cert": tls_cert, "--tls-key": tls_key, "--client-ca": client_ca}
    options = [word for place in places for word in ("--listen", place)]
    options += [word for option, path in files.items() if path for word in (option, str(path.absolute()))]
    click.echo(api_unit(state, options), nl=False)
