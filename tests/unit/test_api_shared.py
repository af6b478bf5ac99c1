"""One reading for all who ask at the same time."""

from __future__ import annotations

import asyncio
import threading

import pytest

from nvmuser.api.shared import Shared


class Source:
    """What is read, and how often it was. A reading waits where it is held up."""

    def __init__(self) -> None:
        self.value = 0
        self.readings = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.begun = threading.Event()

    def read(self) -> int:
        self.readings += 1
        value = self.value
        self.begun.set()
        self.go_on.wait()
        return value


async def test_many_at_once_are_one_reading() -> None:
    source = Source()
    shared = Shared(source.read)
    assert await asyncio.gather(*(shared() for _ in range(50))) == [0] * 50
    assert source.readings == 1


async def test_what_was_written_before_one_asked_is_in_it() -> None:
    """A reading that has begun before is not taken."""
    source = Source()
    shared = Shared(source.read)
    source.go_on.clear()
    first = asyncio.create_task(shared())
    await asyncio.to_thread(source.begun.wait)
    source.value = 1
    later = [asyncio.create_task(shared()) for _ in range(3)]
    await asyncio.sleep(0)
    source.go_on.set()
    assert await first == 0
    assert await asyncio.gather(*later) == [1, 1, 1]
    assert source.readings == 2


async def test_an_error_is_everybodys_and_passes() -> None:
    fails = [True]

    def read() -> int:
        if fails:
            raise OSError(fails.pop())
        return 1

    shared = Shared(read)
    found = await asyncio.gather(shared(), shared(), return_exceptions=True)
    assert all(isinstance(one, OSError) for one in found)
    assert await shared() == 1


async def test_who_is_cancelled_takes_it_from_nobody() -> None:
    source = Source()
    shared = Shared(source.read)
    source.go_on.clear()
    first, second = asyncio.create_task(shared()), asyncio.create_task(shared())
    await asyncio.to_thread(source.begun.wait)
    first.cancel()
    source.go_on.set()
    assert await second == 0
    with pytest.raises(asyncio.CancelledError):
        await first
