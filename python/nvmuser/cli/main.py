"""The `nvmuser` command: the groups, and the one place where errors become a line and an exit status."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from nvmuser import __version__
from nvmuser.errors import NvmuserError
from nvmuser.paths import StateDir, default_state_dir

_COMMANDS = {
    "apply": "spec",
    "bench": "bench",
    "controller": "controller",
    "diff": "spec",
    "doctor": "doctor",
    "export": "spec",
    "guest": "guest",
    "pool": "pool",
    "reconcile": "spec",
    "remote": "remote",
    "rpc": "rpc",
    "schema": "spec",
    "setup": "setup",
    "status": "target",
    "target": "target",
    "volume": "volume",
}
"""Command → module of this package that defines a click command of that name."""


class _LazyGroup(click.Group):
    """Loads a command's module only when the command is used: `nvmuser --help` imports neither fio nor
    plots."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"nvmuser.cli.{_COMMANDS[cmd_name]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nvmuser")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The deployment to work on. Default: $NVMUSER_STATE, /var/lib/nvmuser (root), ~/.local/state/nvmuser.",
)
@click.pass_context
def cli(ctx: click.Context, state_dir: Path | None) -> None:
    """NVMe controllers for virtual machines, served from user space."""
    ctx.obj = StateDir((state_dir or default_state_dir()).absolute())


def main() -> None:
    """Entry point. Exit status: 0, 1 (error), 2 (bad input), 130 (interrupted), or the guest command's
    own."""
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except NvmuserError as error:
        message, status = str(error), error.exit_status
    except click.ClickException as error:
        message, status = error.format_message(), error.exit_code
    except (click.Abort, KeyboardInterrupt):
        message, status = "interrupted", 130
    print(f"nvmuser: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
