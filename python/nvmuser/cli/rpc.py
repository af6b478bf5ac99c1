"""`nvmuser rpc`: every command of SPDK's own command line, with its own arguments and help, over our client.

The commands are those of PyPI's `spdk`, the same release as the target. What is made with them is foreign to
the control plane: reported, never touched.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import click
from spdk import spdk_rpc
from spdk.rpc.client import JSONRPCDryRunClient
from spdk.rpc.helpers import check_called_name

from nvmuser.errors import RpcConnectionError, UsageError
from nvmuser.paths import StateDir
from nvmuser.rpc import Client

_TIMEOUT_S = 60.0


class _Blocking:
    """What SPDK's commands expect of a client: a method for each method, or `call`."""

    def __init__(self, runner: asyncio.Runner, client: Client, timeout: float) -> None:
        self._runner = runner
        self._client = client
        self._timeout = timeout

    def call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        try:
            return self._runner.run(self._client.call(method, params, timeout=self._timeout))
        except RpcConnectionError:
            if method == "spdk_kill_instance":  # it does not answer, it ends
                return {}
            raise

    def __getattr__(self, method: str) -> Any:
        return lambda **params: self.call(method, {k: v for k, v in params.items() if v is not None})


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"{message}; see `nvmuser rpc --help` or `nvmuser rpc COMMAND --help`")


def _refuse_choice(names: Iterable[str]) -> Callable[[str], NoReturn]:
    def refuse(message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '([^']*)'", message):
            near = difflib.get_close_matches(found[1], names, 3)
            _refuse(f"SPDK has no command {found[1]!r}" + (f"; near: {', '.join(near)}" if near else ""))
        _refuse(message)

    return refuse


def _parser() -> argparse.ArgumentParser:
    parser, commands = spdk_rpc.create_parser()
    parser.prog, parser.usage = "nvmuser rpc", "%(prog)s [options] COMMAND [arguments]"
    parser.error = _refuse_choice(commands.choices)
    for name, command in commands.choices.items():
        command.prog = f"nvmuser rpc {name}"
        command.error = _refuse
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def rpc(state: StateDir, arguments: tuple[str, ...]) -> None:
    """SPDK's own commands, on the target of this state directory."""
    parser = _parser()
    words = list(arguments)
    spdk_rpc.replace_arg_underscores(words)
    if not words:
        parser.print_help()
        return
    args = parser.parse_args(words)
    if args.go_client or args.is_server:
        raise UsageError("--go-client and --server are not offered; use SPDK's own spdk-rpc for them")
    if not hasattr(args, "func"):
        _refuse("no command given")
    if args.dry_run:
        args.client = JSONRPCDryRunClient()
        args.func(args)
        return
    given = any(word.startswith("-s") for word in words)
    socket = Path(args.server_addr) if given else state.rpc_socket
    _call(args, socket, args.timeout or _TIMEOUT_S)


def _call(args: argparse.Namespace, socket: Path, timeout: float) -> None:
    with asyncio.Runner() as runner:
        try:
            client = runner.run(Client.connect(socket, timeout=timeout))
        except RpcConnectionError as error:
            raise RpcConnectionError(f"{error}; is the target running? see `nvmuser target start`") from error
        try:
            args.client = _Blocking(runner, client, timeout)
            args.func(args)
            check_called_name(args.called_rpc_name)
            sys.stdout.flush()
        finally:
            runner.run(client.aclose())
