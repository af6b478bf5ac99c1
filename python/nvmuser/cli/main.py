"""The `nvmuser` command: its groups, and the one place where an error becomes a line and an exit status."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from nvmuser import collector
from nvmuser.cli import failure
from nvmuser.cli.groups import LazyGroup
from nvmuser.errors import NvmuserError, UsageError
from nvmuser.paths import StateDir, default_state_dir

_COMMANDS = {
    "api": ("api", "Serve a REST API, metrics and a page."),
    "apply": ("spec", "Make this deployment what a file describes."),
    "bench": ("bench", "Measure from inside a guest, and compare."),
    "cluster": ("cluster", "Clusters: Ceph, whose images become volumes."),
    "completion": ("completion", "Print a script for completion in bash, zsh or fish."),
    "controller": ("controller", "Controllers: each is one NVMe controller for one guest."),
    "csi": ("csi", "Serve Kubernetes' Container Storage Interface."),
    "diff": ("spec", "Show what `apply` would change."),
    "doctor": ("doctor", "Check this machine and this deployment."),
    "events": ("events", "Show what has been changed, when, by whom and from where."),
    "export": ("spec", "Print everything that is declared, as a file for `apply`."),
    "fleet": ("fleet", "Many hosts with one declaration, kept in etcd."),
    "guest": ("guest", "Boot guests with NVMe controllers, and run commands in them."),
    "host": ("host", "The hosts of a fleet."),
    "pool": ("pool", "Pools: a volume divided into volumes."),
    "reconcile": ("spec", "Repair what differs from what is declared."),
    "remote": ("remote", "Remotes: subsystems of other NVMe-oF targets."),
    "rpc": ("rpc", "SPDK's own commands, on this deployment's target."),
    "schema": ("spec", "Print the JSON Schema of files for `apply`."),
    "setup": ("setup", "Get SPDK, QEMU and the guest."),
    "sma": ("sma", "Serve SPDK's Storage Management Agent."),
    "status": ("status", "Show the target, its guests, and what differs."),
    "target": ("target", "Start, stop, watch and replace the SPDK process."),
    "token": ("token", "Who may use the API: tokens and client certificates."),
    "top": ("top", "Show what is going on, live."),
    "uninstall": ("uninstall", "List what nvmuser has made on this machine, and remove it."),
    "volume": ("volume", "Volumes: what a guest sees as namespaces."),
}


_OFFERED = {
    "apply",
    "cluster",
    "completion",
    "controller",
    "diff",
    "events",
    "export",
    "pool",
    "reconcile",
    "remote",
    "schema",
    "status",
    "target",
    "token",
    "top",
    "volume",
}
"""What works on another host, over its API; where a part does not, it says so (`nvmuser.supervisor.remote`)."""


def _show_versions(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:  # all that finds the parts is imported only then
        from nvmuser.cli import versions

        versions.show(ctx, parameter, wanted)


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show the version, and what it runs on.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, readable=False),
    help="The deployment to work on. Default: $NVMUSER_STATE, /var/lib/nvmuser (root), ~/.local/state/nvmuser.",
)
@click.option("--server", metavar="URL", help="Work on another host, over its API: https://HOST:PORT, unix:PATH.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="With --server: a file with the token. Default: $NVMUSER_TOKEN.",
)
@click.pass_context
def cli(ctx: click.Context, state_dir: Path | None, server: str | None, token_file: Path | None) -> None:
    """NVMe controllers for virtual machines, served from user space.

    Every command that has --json prints one JSON document with it, also when it fails.

    \b
    Examples:
      nvmuser doctor
      nvmuser target start
      nvmuser volume create data --size 1G
      nvmuser controller create vm1 --attach data
      nvmuser guest run --controller vm1 -- lsblk
      nvmuser --server https://host2:8460 --token-file host2.token volume list
    """
    if server or token_file:
        ctx.obj = _remote(server, token_file, state_dir)
        if ctx.invoked_subcommand not in _OFFERED:
            raise UsageError(f"{ctx.invoked_subcommand}: this works on the host itself alone, without --server")
        return
    ctx.obj = StateDir((state_dir or default_state_dir()).absolute())
    if ctx.invoked_subcommand != "doctor" and os.path.lexists(ctx.obj.root) and not ctx.obj.root.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(ctx.obj.root))


def _remote(server: str | None, token_file: Path | None, state_dir: Path | None) -> StateDir:
    """Another host.

    :raises UsageError: which, and as whom, is not said.
    """
    if not server or state_dir:
        raise UsageError("--server names another host: --token-file goes with it, and --state-dir does not")
    from nvmuser.cli.options import read_token
    from nvmuser.extras import require_extra

    require_extra("client", "nvmuser --server")
    from nvmuser.supervisor.remote import Remote  # what it imports, `nvmuser --help` need not wait for

    token = read_token(token_file) if token_file else os.environ.get("NVMUSER_TOKEN", "").strip()

    return Remote(server=server, token=token)


def main() -> None:
    """Entry point. Exit status: 0, 1 (error), 2 (bad input), 130 (interrupted), or the guest command's own."""
    collector.look_less_often()
    failure.prepare_standard_files()
    try:
        try:
            status = int(cli(prog_name="nvmuser", standalone_mode=False) or 0)
        finally:
            sys.stdout.flush()
    except failure.EXPECTED as error:
        described = failure.Failure.of(error)
        described.report(as_json=_wants_json(sys.argv[1:]))
        status = described.exit_status
    sys.exit(status)


def _wants_json(words: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, also one that could not be parsed."""
    command: click.Command = cli
    context = click.Context(command)
    rest = list(words)
    while isinstance(command, click.Group):
        while rest and rest[0].startswith("-"):
            word = rest.pop(0)
            if rest and word in ("--state-dir", "--server", "--token-file"):
                rest.pop(0)
        found = None
        if rest:
            with contextlib.suppress(NvmuserError):  # a part of a command is not installed
                found = command.get_command(context, rest.pop(0))
        if found is None:
            return "--json" in rest
        command = found
    takes_json = any(parameter.name == "as_json" for parameter in command.params)
    return takes_json and "--json" in itertools.takewhile(lambda word: word != "--", rest)
