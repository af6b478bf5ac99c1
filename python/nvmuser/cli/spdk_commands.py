"""What SPDK's commands call: our client behind the interface of theirs, or theirs for a TCP address."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spdk.rpc.client import JSONRPCClient, JSONRPCException
from spdk.rpc.helpers import check_called_name

from nvmuser.errors import RpcConnectionError, RpcError, UsageError
from nvmuser.rpc import Client

_TIMEOUT_S = 60.0
_PORT = 5260
_RETRY_S = 0.2
"""As rpc.py's `-r` has it."""


@dataclass(frozen=True)
class Connection:
    """Where SPDK listens: the path of a UNIX socket, or an IP address and a port.

    :param timeout: seconds for each call; None for a minute.
    :param retries: how many more times to try to connect.
    """

    address: str
    port: int | None = None
    timeout: float | None = None
    retries: int = 0
    verbose: bool = False

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        """A client as SPDK's commands expect one.

        :raises RpcConnectionError: nobody answers there.
        """
        timeout = self.timeout or _TIMEOUT_S
        if "/" not in self.address and (":" in self.address or self.address.replace(".", "").isdigit()):
            with _as_ours():
                level = logging.INFO if self.verbose else logging.ERROR
                yield JSONRPCClient(
                    self.address, self.port or _PORT, timeout, log_level=level, conn_retries=self.retries
                )
            return
        with asyncio.Runner() as runner:
            client = self._connected(runner, timeout)
            try:
                yield _Blocking(runner, client, timeout, self.verbose)
            finally:
                runner.run(client.aclose())

    def _connected(self, runner: asyncio.Runner, timeout: float) -> Client:
        for left in range(self.retries, -1, -1):
            try:
                return runner.run(Client.connect(Path(self.address), timeout=timeout))
            except RpcConnectionError as error:
                if not left:
                    text = f"{error}; is the target running? see `nvmuser target start`"
                    raise RpcConnectionError(text) from error
                time.sleep(_RETRY_S)
        raise AssertionError("unreachable")


class _Blocking:
    """What SPDK's commands expect of a client: a method for each method, or `call`."""

    def __init__(self, runner: asyncio.Runner, client: Client, timeout: float, verbose: bool) -> None:
        self._runner = runner
        self._client = client
        self._timeout = timeout
        self._verbose = verbose

    def call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        if self._verbose:
            print("request:", json.dumps({"method": method, "params": params}, indent=2), file=sys.stderr)
        try:
            result = self._runner.run(self._client.call(method, params, timeout=self._timeout))
        except RpcConnectionError:
            if method == "spdk_kill_instance":  # it does not answer, it ends
                return {}
            raise
        if self._verbose:
            print("response:", json.dumps(result, indent=2), file=sys.stderr)
        return result

    def __getattr__(self, method: str) -> Any:
        return lambda **params: self.call(method, {k: v for k, v in params.items() if v is not None})


@contextlib.contextmanager
def _as_ours() -> Iterator[None]:
    try:
        yield
    except JSONRPCException as error:
        raise RpcError(error.message) from error


def call(args: argparse.Namespace, client: Any) -> None:
    """Run a command of SPDK's that has been parsed.

    :raises NvmuserError: SPDK refused it, or its arguments were wrong in a way that only the command finds.
    """
    if not hasattr(args, "func"):
        raise UsageError("options, but no command: see `nvmuser rpc --help`")
    args.client = client
    try:
        with _as_ours():
            args.func(args)
    except (ValueError, LookupError, TypeError) as error:  # such as a configuration that is not JSON
        raise UsageError(f"{args.called_rpc_name}: {type(error).__name__}: {error}") from error
    check_called_name(args.called_rpc_name)
