"""What this machine does beside SPDK's first calls, and which calls wait for it: the directories of listeners."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nvmuser.errors import NvmuserError
from nvmuser.hostfs import listeners, unix_diag
from nvmuser.model.keys import Key
from nvmuser.paths import StateDir
from nvmuser.reconcile.calls import Call
from nvmuser.reconcile.execute import Gate


def directories(calls: Sequence[Call], state: StateDir) -> tuple[Gate, dict[Key, NvmuserError]]:
    """Directories of listeners are made beside the first calls: on a slow disk they take as long as SPDK does.

    Returns the gate, and what failed by the key of its controller, once the gate is open.
    """
    numbers = [n for n, call in enumerate(calls) if call.needs.directory]
    failures: dict[Key, NvmuserError] = {}

    def prepare() -> None:
        among = unix_diag.listeners()
        for number in numbers:
            key = calls[number].object
            try:
                listeners.prepare(state, key.name, among)
            except NvmuserError as error:
                failures[key] = error

    work = asyncio.ensure_future(asyncio.to_thread(prepare) if numbers else asyncio.sleep(0))
    return Gate(work, frozenset(numbers)), failures
