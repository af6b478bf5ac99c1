"""`rename` of volumes, pools, remotes and controllers: one command, made for each."""

from __future__ import annotations

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.present import run, say_object
from nvmuser.model.keys import Key
from nvmuser.paths import StateDir
from nvmuser.supervisor import control

_KEPT = """Give {article} {kind} another name, while guests use it. What uses it follows.

    Data and identifiers stay, in the guest too. SPDK and `nvmuser rpc` know it by its former name, shown by `{kind}
    {show}` as spdk_name{file}.

    \b
    nvmuser {kind} rename {example}
    """
_MOVED = """Give a controller another name. Refused while a guest is connected: its socket moves.

    NQN, serial number and controller id stay. Guests are to be started with the new socket (`nvmuser guest qemu-args`,
    or libvirt's XML).

    \b
    nvmuser controller rename vm1 web1
    """


def rename(kind: str, example: str = "", file: str = "") -> click.Command:
    """The command for one kind of object.

    :param example: an old name and a new one.
    :param file: what of its files is to be said.
    """

    @click.command("rename")
    @click.argument("old")
    @click.argument("new")
    @json_option
    @click.pass_obj
    def command(state: StateDir, old: str, new: str, as_json: bool) -> None:
        outcome = run(control.rename(state, Key(kind, old), new))
        say_object(outcome, as_json, f"{kind} {old} is called {new} now")

    moved = kind == "controller"
    show = "list --json" if kind in ("pool", "remote") else "show"
    command.help = _MOVED if moved else _KEPT.format(article="a", kind=kind, show=show, example=example, file=file)
    return command
