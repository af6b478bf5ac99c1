"""Every command of nvmuser in README, docs and help texts exists, and takes the options and arguments shown with it."""

from __future__ import annotations

import contextlib
import re

import click
import pytest
from documented import Shown, commands, shown

from nvmuser.cli.main import cli

WITH_VALUE = {name for option in cli.params if not getattr(option, "is_flag", False) for name in option.opts}
NO_FILE = re.compile("does not exist|No such file")
SHOWN = list(dict.fromkeys(shown()))


class NoFile(Exception):
    """All is right, but that a file is named which is not here."""


def resolve(words: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The command that these words call, and what is left for it."""
    command: click.Command = cli
    context = click.Context(cli, info_name="nvmuser")
    while isinstance(command, click.Group):
        while words and words[0].startswith("-"):  # options of all commands
            words = words[2 if words[0] in WITH_VALUE else 1 :]
        if not words:
            break
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]}"
        command, context = found, click.Context(found, parent=context, info_name=words[0])
        words = words[1:]
    return command, context, words


@pytest.mark.parametrize("one", SHOWN, ids=lambda one: f"{one.where} {' '.join(one.words)[:60]}")
def test_it_is_understood(one: Shown) -> None:
    command, context, words = resolve(list(one.words))
    if isinstance(command, click.Group) or command.name == "rpc":  # whose words are SPDK's
        return
    if not one.whole:
        known = {
            name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts, "--help")
        }
        assert {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"} <= known
        return
    with context, contextlib.suppress(NoFile):
        try:
            command.parse_args(context, words)
        except click.BadParameter as error:
            raise NoFile if NO_FILE.search(error.format_message()) else error from None


def test_there_are_some_of_each_kind() -> None:
    """The parser has not lost them."""
    assert len(SHOWN) > 250
    places = {one.where.partition(":")[0] for one in SHOWN}
    assert {"README.md", "docs/guests.md", "docs/libvirt.md", "nvmuser volume create"} <= places


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("$ nvmuser volume create a --size 1G   # a comment", [("volume", "create", "a", "--size", "1G")]),
        ("nvmuser export > all.yaml && nvmuser diff -f all.yaml", [("export",), ("diff", "-f", "all.yaml")]),
        ('eval "$(nvmuser guest qemu-args c0) -nographic"', [("guest", "qemu-args", "c0")]),
        ("nvmuser doctor --json | jq '.checks[] | x'", [("doctor", "--json")]),
        ("nvmuser guest run -- sh -c 'a; b'", [("guest", "run", "--", "sh", "-c", "a; b")]),
        ("nvmuser volume|controller list", []),
        ("systemctl restart nvmuser", []),
    ],
)
def test_how_a_line_is_read(line: str, found: list[tuple[str, ...]]) -> None:
    assert list(commands(line)) == found


def test_it_finds_what_is_wrong() -> None:
    for words in (("volume", "crate", "a"), ("volume", "create", "a", "--sise", "1G"), ("volume", "create")):
        with pytest.raises((AssertionError, click.UsageError)):
            test_it_is_understood(Shown("here", words))
