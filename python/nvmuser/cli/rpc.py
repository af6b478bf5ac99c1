"""`nvmuser rpc`: SPDK's own command line, as its `rpc.py` is, on the target of this state directory.

The commands are those of PyPI's `spdk`, the same release as the target. What is made with them is foreign to the
control plane: reported, never touched. Owns how words become commands; `spdk_commands` runs them.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import re
import shlex
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import click
import spdk.cli
from spdk import spdk_rpc
from spdk.rpc.client import JSONRPCDryRunClient
from spdk.rpc.cmd_parser import print_null

from nvmuser.cli.spdk_commands import Connection, call
from nvmuser.errors import NvmuserError, UsageError
from nvmuser.paths import StateDir

_SEE = "see `nvmuser rpc --help` or `nvmuser rpc COMMAND --help`"
_HOOK = "spdk_rpc_plugin_initialize"


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def rpc(state: StateDir, arguments: tuple[str, ...]) -> int:
    """SPDK's own commands, on the target of this state directory.

    As rpc.py: options for the connection stand before the command, commands are read from stdin when there is none.

    \b
    Examples:
      nvmuser rpc bdev_get_bdevs -b disk
      nvmuser rpc -t 5 framework_get_reactors
      nvmuser rpc < commands.txt
    """
    words = list(arguments)
    spdk_rpc.replace_arg_underscores(words)
    options = _options().parse_known_args(words)[0]
    parser = _parser(options.rpc_plugin)
    args = parser.parse_args(words)
    if options.go_client:
        raise UsageError("--go-client is not offered: SPDK's client in Go is not part of nvmuser")
    if options.is_server:
        return _serve(parser, state)
    if not hasattr(args, "func") and sys.stdin.isatty():
        parser.print_help()
        return 1
    if options.dry_run:
        _print_no_results()
        return _run(parser, args, JSONRPCDryRunClient())
    with _connection(options, state).opened() as client:
        return _run(parser, args, client)


def _options() -> argparse.ArgumentParser:
    """The options before the command alone; several commands have options of the same name, such as -s and -t."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.error = _refuse  # type: ignore[method-assign]
    parser.add_argument("-s", dest="server_addr")
    parser.add_argument("-p", dest="port", type=int)
    parser.add_argument("-t", dest="timeout", type=float)
    parser.add_argument("-r", dest="conn_retries", type=int, default=0)
    parser.add_argument("-v", dest="verbose", action="store_const", const="INFO", default="ERROR")
    parser.add_argument("--verbose", dest="verbose")
    parser.add_argument("--plugin", dest="rpc_plugin")
    for flag, name in (("--dry-run", "dry_run"), ("--go-client", "go_client"), ("--server", "is_server")):
        parser.add_argument(flag, dest=name, action="store_true")
    parser.add_argument("command", nargs="?")
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    return parser


def _parser(plugin: str | None) -> argparse.ArgumentParser:
    parser, commands = spdk_rpc.create_parser()
    if plugin:
        _load(plugin, commands)
    parser.prog, parser.usage = "nvmuser rpc", "%(prog)s [options] COMMAND [arguments]"
    parser.error = _refuse_choice(commands.choices)
    for name, command in commands.choices.items():
        command.prog = f"nvmuser rpc {name}"
        command.error = _refuse
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def _load(plugin: str, commands: Any) -> None:
    """Let a module add its commands."""
    try:
        module = importlib.import_module(plugin)
    except ImportError as error:
        raise UsageError(f"--plugin {plugin}: {error}; modules are looked for in PYTHONPATH") from error
    if not hasattr(module, _HOOK):
        raise UsageError(f"--plugin {plugin}: the module has no function {_HOOK}")
    getattr(module, _HOOK)(commands)


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"{message}; {_SEE}")


def _refuse_choice(names: Iterable[str]) -> Callable[[str], NoReturn]:
    def refuse(message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '([^']*)'", message):
            near = difflib.get_close_matches(found[1], names, 3)
            _refuse(f"SPDK has no command {found[1]!r}" + (f"; near: {', '.join(near)}" if near else ""))
        _refuse(message)

    return refuse


def _connection(options: argparse.Namespace, state: StateDir) -> Connection:
    address = options.server_addr or str(state.rpc_socket)
    return Connection(
        address, options.port, options.timeout, options.conn_retries, verbose=options.verbose.upper() != "ERROR"
    )


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace, client: Any) -> int:
    """One command, or those on stdin. Returns the exit status."""
    if hasattr(args, "func"):
        call(args, client)
        return 0
    for number, line in enumerate(sys.stdin, 1):
        with _naming_line(number):
            if (words := _words(line)) and not words[0].startswith("#"):
                call(parser.parse_args(words), client)
                sys.stdout.flush()
    return 0


def _serve(parser: argparse.ArgumentParser, state: StateDir) -> int:
    """Run each line of stdin as a whole command line, and print a line with its status, for a shell's coprocess."""
    for line in sys.stdin:
        try:
            words = _words(line)
            connection = _connection(_options().parse_known_args(words)[0], state)
            with connection.opened() as client:
                call(parser.parse_args(words), client)
            status = 0
        except NvmuserError as error:
            click.echo(f"nvmuser: {error}", err=True)
            status = 1
        except SystemExit as end:  # of `COMMAND --help`
            status = 1 if end.code else 0
        click.echo(f"**STATUS={status}")
        sys.stdout.flush()
    return 0


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{line.strip()}: {error}") from error
    spdk_rpc.replace_arg_underscores(words)
    return words


@contextlib.contextmanager
def _naming_line(number: int) -> Iterator[None]:
    try:
        yield
    except NvmuserError as error:
        error.args = (f"line {number}: {error}",)
        raise


def _print_no_results() -> None:
    """SPDK's commands print what they get, and a dry run gets nothing."""
    for module in vars(spdk.cli).values():
        if isinstance(module, types.ModuleType) and module.__name__.startswith("spdk.cli."):
            for name in ("print_dict", "print_json", "print_array"):
                setattr(module, name, print_null)
