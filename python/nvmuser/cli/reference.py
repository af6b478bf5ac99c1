"""The command line as pages to read: manual pages for packages, and Markdown, made from the commands themselves.

    python -m nvmuser.cli.reference man DIRECTORY
    python -m nvmuser.cli.reference markdown FILE

Owns the two formats. What they say is in the commands' help.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from nvmuser import __version__
from nvmuser.cli.main import cli

_VERBATIM = "\b\n"
"""What begins a paragraph of help that is not to be filled."""

_ENVIRONMENT = {
    "NVMUSER_STATE": "The deployment to work on, where --state-dir is not given.",
    "NVMUSER_CACHE": "Where setup puts what it gets and builds. Default: ~/.cache/nvmuser.",
    "NVMUSER_SPDK": "An installed SPDK with the vfio-user transport, in place of ours.",
    "NVMUSER_QEMU": "A QEMU with the device vfio-user-pci (10.1 or later), in place of the one that is found.",
    "NVMUSER_PREFIX": "Where packages have installed SPDK and libvfio; an installed nvmuser knows.",
}

Named = tuple[tuple[str, ...], click.Command]
"""A command, and the words by which it is called: ("nvmuser", "volume", "create")."""


def walk(command: click.Command = cli, words: tuple[str, ...] = ("nvmuser",)) -> Iterator[Named]:
    """A command and all below it, in the order in which `--help` lists them."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            if (found := command.get_command(context, name)) is not None and not found.hidden:
                yield from walk(found, (*words, name))


def synopsis(words: tuple[str, ...], command: click.Command) -> str:
    """How it is called, in a line."""
    context = click.Context(command, info_name=" ".join(words))
    return " ".join((" ".join(words), *command.collect_usage_pieces(context)))


def paragraphs(command: click.Command) -> Iterator[tuple[str, bool]]:
    """Its help; True: lines are to stay as they are."""
    for text in inspect.cleandoc(command.help or "").split("\n\n"):
        yield (text.removeprefix(_VERBATIM), True) if text.startswith(_VERBATIM) else (" ".join(text.split()), False)


def options(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[str, str]]:
    """Its options, each with its help."""
    context = click.Context(command, info_name=" ".join(words))
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
            yield record


def man_pages() -> Iterator[tuple[str, str]]:
    """nvmuser(1), and a page for each of its commands, with all below it: file names and contents."""
    yield "nvmuser.1", _page(("nvmuser",), [(("nvmuser",), cli)])
    context = click.Context(cli)
    for name in cli.list_commands(context):
        if command := cli.get_command(context, name):
            words = ("nvmuser", name)
            yield f"nvmuser-{name}.1", _page(words, list(walk(command, words)))


def _page(words: tuple[str, ...], parts: list[Named]) -> str:
    _, first = parts[0]
    title = "-".join(words)
    lines = [f'.TH "{title.upper()}" 1 "" "nvmuser {__version__}" "nvmuser"', ".SH NAME"]
    lines += [f"{_roff(title)} \\- {_roff(first.get_short_help_str(200).rstrip('.'))}", ".SH SYNOPSIS"]
    for path, command in parts:
        if not isinstance(command, click.Group) or len(parts) == 1:
            lines += [".B " + _roff(synopsis(path, command)), ".br"]
    for path, command in parts:
        lines.append(".SH DESCRIPTION" if path == words else f'.SH "{_roff(" ".join(path))}"')
        lines += _described(path, command)
    if words == ("nvmuser",):
        lines += [".SH COMMANDS", *_list((f"nvmuser-{name}(1)", text) for name, text in _commands()), ".SH ENVIRONMENT"]
        lines += _list(_ENVIRONMENT.items())
    else:
        lines += [".SH SEE ALSO", ".BR nvmuser (1)"]
    return "\n".join(lines) + "\n"


def _commands() -> Iterator[tuple[str, str]]:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        if command := cli.get_command(context, name):
            yield name, command.get_short_help_str(200)


def _described(words: tuple[str, ...], command: click.Command) -> Iterator[str]:
    for text, verbatim in paragraphs(command):
        yield from (".PP", ".nf", *map(_roff, text.splitlines()), ".fi") if verbatim else (".PP", _roff(text))
    yield from _list(options(words, command))


def _list(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, text in entries:
        yield from (".TP", f".B {_roff(name)}", _roff(" ".join(text.split())))


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def markdown() -> str:
    """All commands on one page."""
    lines = ["# Commands", "", "Made from the commands themselves; `--help` of each says the same.", ""]
    for words, command in walk():
        lines += [f"{'#' * min(len(words) + 1, 4)} {' '.join(words)}", "", f"    {synopsis(words, command)}", ""]
        for text, verbatim in paragraphs(command):
            lines += [*(f"    {line}".rstrip() for line in text.splitlines()), ""] if verbatim else [text, ""]
        records = list(options(words, command))
        if records:
            lines += ["| option | |", "|---|---|"]
            lines += [f"| `{name}` | {' '.join(text.split())} |".replace("\\", "\\\\") for name, text in records]
            lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Write the pages.

    :raises OSError: the directory or file cannot be written.
    """
    kind, out = arguments[0], Path(arguments[1])
    if kind == "markdown":
        out.write_text(markdown(), encoding="utf-8")
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, text in man_pages():
        (out / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
