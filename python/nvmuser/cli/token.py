"""`nvmuser token`: who may use the API (docs/api.md)."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from nvmuser.cli.groups import Group
from nvmuser.cli.options import json_option
from nvmuser.cli.present import console, say
from nvmuser.errors import UsageError
from nvmuser.paths import StateDir
from nvmuser.store import Store
from nvmuser.store.credentials import ROLES, der, new_token, of_certificate
from nvmuser.store.events import acting
from nvmuser.supervisor import control
from nvmuser.supervisor.remote import Remote

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
    pem = _read(certificate) if certificate else ""
    if isinstance(state, Remote):
        spec = {"name": name, "role": role, "lifetime_s": lifetime}
        made = state.create_token(spec | ({"certificate": pem} if certificate else {}))
    else:
        made = _create_here(state, name, role, lifetime, der(pem, str(certificate)) if certificate else b"")
    if as_json:
        say(made)
    else:
        click.echo(made.get("token") or f"certificate {name} may be used")


def _create_here(state: StateDir, name: str, role: str, lifetime: int, certificate: bytes) -> dict[str, Any]:
    if certificate:
        secret, one = "", of_certificate(name, role, certificate, lifetime)
    else:
        secret, one = new_token(name, role, lifetime)
    with Store(state.store) as store, acting(control.local_actor()):
        store.add_credential(one)
    return one.to_json() | ({"token": secret} if secret else {})


@token.command("list")
@json_option
@click.pass_obj
def list_(state: StateDir, as_json: bool) -> None:
    """Every token and certificate, without its secret."""
    found = state.tokens() if isinstance(state, Remote) else _list_here(state)
    if as_json:
        say(found)
        return
    table = Table("name", "role", "kind", "created", "expires")
    for one in found:
        table.add_row(one["name"], one["role"], one["kind"], _when(one["created"]), _expiry(one))
    console().print(table)


def _list_here(state: StateDir) -> list[dict[str, Any]]:
    with control.opened(state) as store:
        return [one.to_json() for one in store.credentials()] if store else []


@token.command()
@click.argument("name")
@json_option
@click.pass_obj
def revoke(state: StateDir, name: str, as_json: bool) -> None:
    """Take a token or a certificate away. From then on it is refused; what it has begun goes on.

    \b
    nvmuser token revoke ci
    """
    if isinstance(state, Remote):
        state.revoke_token(name)
    else:
        with Store(state.store) as store, acting(control.local_actor()):
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


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: no certificate in PEM") from error


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def _expiry(one: Mapping[str, Any]) -> str:
    if not one["expires"]:
        return "never"
    return f"{_when(one['expires'])}{' (expired)' if one['expired'] else ''}"
