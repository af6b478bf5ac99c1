"""The machine's events for asynchronous I/O used up: the error names the limit, what is used, and the way out."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_target import BareTarget

from nvmuser.errors import TargetError
from nvmuser.hostfs import limits
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client

_IO_SETUP, _IO_DESTROY = {"x86_64": (206, 207), "aarch64": (0, 1)}[platform.machine()]
_LARGEST = 1 << 16
_LOCK = Path("/tmp/sysctl.lock")
"""Shared by tests that change a limit of the whole machine, or use it up."""


@contextlib.contextmanager
def used_up(left: int) -> Iterator[None]:
    """Take all events of this machine but so many, with io_setup(2): the kernel takes them back when we die."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    contexts: list[ctypes.c_ulong] = []

    def take(count: int) -> bool:
        context = ctypes.c_ulong(0)
        if call(_IO_SETUP, ctypes.c_uint(count), ctypes.byref(context)) == 0:
            contexts.append(context)
            return True
        assert ctypes.get_errno() == errno.EAGAIN, os.strerror(ctypes.get_errno())
        return False

    try:
        while (spare := limits.aio_events().left - left) > 0:
            take(min(spare, _LARGEST))
        yield
    finally:
        for context in contexts:
            call(_IO_DESTROY, context)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """While others see this machine as it is."""
    with open(os.open(_LOCK, os.O_RDWR | os.O_CREAT, 0o666)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


async def test_a_file_volume_without_events(spdk_target: BareTarget, tmp_path: Path) -> None:
    volume, controller = Volume("v", size=1 << 20), Controller("c", (Namespace("v"),))
    async with await Client.connect(spdk_target.rpc_socket) as rpc:
        with contextlib.closing(Engine(StateDir(tmp_path / "st"), rpc)) as engine:
            with alone(), used_up(limits.AIO_LEAST // 2):
                limit = limits.aio_events().limit
                with pytest.raises(
                    TargetError,
                    match=rf"no events for asynchronous I/O are left for its files: fs\.aio-max-nr is {limit}, "
                    rf"of which \d+ are in use: sysctl -w fs\.aio-max-nr=\d+; nothing was changed",
                ):
                    await engine.change(Change(create=(volume, controller)))
            assert engine.desired().wanted() == []
            assert (await engine.change(Change(create=(volume, controller)))).problems == ()
