"""Groups of commands: loaded when they are used, and a suggestion for a name that does not exist."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import click


class Group(click.Group):
    """A group that names what was probably wanted instead of an unknown command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            near = [f"`{command}`" for command in dict.fromkeys(self._near(ctx, name))]
            hint = f"did you mean {' or '.join(near)}?" if near else f"see `{ctx.command_path} --help`"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def _near(self, ctx: click.Context, name: str) -> Iterator[str]:
        """Commands of a similar name, here or one level down."""
        for found in difflib.get_close_matches(name, self.list_commands(ctx), 1):
            yield f"{ctx.command_path} {found}"
        for group_name in self.list_commands(ctx):
            group = self.get_command(ctx, group_name)
            if isinstance(group, click.Group) and name in group.list_commands(ctx):
                yield f"{ctx.command_path} {group_name} {name}"


class LazyGroup(Group):
    """Loads a command's module only when the command is used: `nvmuser --help` imports neither SPDK's client nor plots.

    :param lazy: command → module of `nvmuser.cli` that defines a click command of that name, or with `_command`
        after it, and the line in the list of commands.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module = importlib.import_module(f"nvmuser.cli.{self._lazy[cmd_name][0]}")
        command = getattr(module, f"{cmd_name}_command", None) or getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._lazy[name][1]) for name in self.list_commands(ctx)])
