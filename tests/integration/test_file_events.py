"""More I/O in flight than a thread has events for: all of it ends, and a file with one at a time gets its turn."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from backing import MIB, call, controller, sparse, uuid
from bare_target import TargetFactory

from nvmuser import initiator
from nvmuser.rpc import methods

FILES, DEPTH, SIZE = 12, 128, 4096


@pytest.mark.parametrize("polled", [False, True], ids=["interrupts", "polled"])
def test_more_than_there_are_events(target_factory: TargetFactory, tmp_path: Path, polled: bool) -> None:
    target = target_factory.start(polled=polled)
    names = [f"v{number}" for number in range(FILES + 1)]
    files = [methods.aio_create(name, str(sparse(tmp_path / name, MIB)), SIZE, uuid(n)) for n, name in enumerate(names)]
    call(target, methods.create_transport(), *files, *controller(tmp_path, "c0", *names))
    data = initiator.allocate(SIZE)
    data.view[:] = b"\x5a" * SIZE
    with initiator.connect(tmp_path / "c0") as connected, contextlib.ExitStack() as stack:
        spaces = connected.namespaces()
        queues = [stack.enter_context(connected.queue(DEPTH, timeout=60)) for _ in range(FILES)]
        single = stack.enter_context(connected.queue(1, timeout=60))
        for _ in range(3):
            flood = [
                (queue, [queue.write(space, n, data) for n in range(DEPTH)])
                for queue, space in zip(queues, spaces[:-1], strict=True)
            ]
            for block in range(32):
                single.write(spaces[-1], block, data).wait()
            for queue, requests in flood:
                queue.wait(requests)
        back = bytearray(SIZE)
        for space in spaces:
            single.read(space, 0, back).wait()
            assert back == data.view
