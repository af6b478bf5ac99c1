"""What every command of `nvmuser` has in common."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from nvmuser.cli.main import cli
from nvmuser.cli.options import REPEATABLE


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        yield " ".join((*path, name)), command


COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("path", COMMANDS)
def test_options_that_may_be_repeated_say_so(path: str) -> None:
    for option in COMMANDS[path].params:
        if isinstance(option, click.Option) and option.multiple:
            assert (option.help or "").endswith(REPEATABLE), option.name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    script = CliRunner().invoke(cli, ["completion", shell], standalone_mode=False).output
    assert "_NVMUSER_COMPLETE" in script
    asked = {"COMP_WORDS": "nvmuser vol", "COMP_CWORD": "1"}
    if shell != "fish":
        env = {"_NVMUSER_COMPLETE": f"{shell}_complete", **asked}
        assert "volume" in CliRunner(env=env).invoke(cli, [], prog_name="nvmuser").output
