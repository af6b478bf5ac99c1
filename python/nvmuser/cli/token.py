"""`nvmuser token`: who may use the API (docs/api.md)."""

from __future__ import annotations

import re
import ssl
import time
from pathlib import Path

import click
from rich.table import Table

from nvmuser.cli.groups import Group
from nvmuser.cli.options import json_option
from nvmuser.cli.present import console, say
from nvmuser.errors import UsageError
from nvmuser.paths import StateDir
from nvmuser.store import Store
from nvmuser.store.credentials import ROLES, Credential, new_token, of_certificate
from nvmuser.supervisor import control

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LIFETIME = re.compile(r"([1-9][0-9]{0,8})([smhd])")


@click.group(cls=Group)
def token() -> None:
    """Tokens and client certificates: who may use `nvmuser api serve`, and what they may do.

    \b
    nvmuser token create ci --role operator --expires 90d
    nvmuser token list
    nvmuser token revoke ci
    """


@token.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(ROLES),
    default="viewer",
    show_default=True,
    help="viewer: look. operator: change volumes, pools, remotes, controllers. admin: targets too.",
)
@click.option("--expires", metavar="TIME", help="Such as 12h or 90d. Default: never.")
@click.option(
    "--certificate", type=click.Path(path_type=Path), help="Instead of a token: this client certificate (PEM)."
)
@json_option
@click.pass_obj
def create(state: StateDir, name: str, role: str, expires: str | None, certificate: Path | None, as_json: bool) -> None:
    """Make a token, and print it: it is not kept, and cannot be shown again.

    \b
    Examples:
      nvmuser token create grafana > grafana.token
      nvmuser token create ci --role operator --expires 90d
      nvmuser token create host2 --role admin --certificate host2.pem
    """
    lifetime = _seconds(expires) if expires else 0
    if certificate:
        secret, one = "", of_certificate(name, role, _der(certificate), lifetime)
    else:
        secret, one = new_token(name, role, lifetime)
    with Store(state.store) as store:
        store.add_credential(one)
    if as_json:
        say(one.to_json() | ({"token": secret} if secret else {}))
    else:
        click.echo(secret or f"certificate {name} may be used")


@token.command("list")
@json_option
@click.pass_obj
def list_(state: StateDir, as_json: bool) -> None:
    """Every token and certificate, without its secret."""
    with control.opened(state) as store:
        found = store.credentials() if store else []
    if as_json:
        say([one.to_json() for one in found])
        return
    table = Table("name", "role", "kind", "created", "expires")
    for one in found:
        table.add_row(one.name, one.role, one.kind, _when(one.created), _expiry(one))
    console().print(table)


@token.command()
@click.argument("name")
@json_option
@click.pass_obj
def revoke(state: StateDir, name: str, as_json: bool) -> None:
    """Take a token or a certificate away. From then on it is refused; what it has begun goes on.

    \b
    nvmuser token revoke ci
    """
    with Store(state.store) as store:
        store.remove_credential(name)
    if as_json:
        say({"name": name, "revoked": True})
    else:
        click.echo(f"token {name} revoked")


def _seconds(text: str) -> int:
    found = _LIFETIME.fullmatch(text)
    if not found:
        raise UsageError(f"--expires {text}: a number with s, m, h or d, such as 90d")
    return int(found[1]) * _UNITS[found[2]]


def _der(path: Path) -> bytes:
    try:
        text = path.read_text(encoding="ascii")
        return ssl.PEM_cert_to_DER_cert(text[text.index(ssl.PEM_HEADER) :])
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path}: no certificate in PEM") from error


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def _expiry(one: Credential) -> str:
    if not one.expires:
        return "never"
    return f"{_when(one.expires)}{' (expired)' if one.expired else ''}"
