"""The measuring loop, in C."""

from __future__ import annotations

import pytest
from host_world import MIB

from nvmuser import initiator
from nvmuser.errors import HostError, UsageError
from nvmuser.initiator.commands import Opcode
from nvmuser.initiator.perf import FOLLOWERS


def test_measuring_large_transfers(data: initiator.Controller) -> None:
    result = initiator.measure(data, data.namespace(2), depth=64, size=MIB, seconds=1)
    assert (result.errors, result.size) == (0, MIB)


@pytest.mark.parametrize("pattern", ["read", "randread", "randrw", "randwrite"])
def test_the_measuring_loop(data: initiator.Controller, pattern: str) -> None:
    result = initiator.measure(data, data.namespace(1), pattern=pattern, depth=16, seconds=0.1, warmup=0.01)
    assert result.errors == 0
    assert result.ios == sum(count for _, count in result.histogram) > 0
    assert result.min_us <= result.percentile(50) <= result.percentile(99.9)
    assert result.min_us < result.mean_us < result.max_us
    assert result.to_json()["iops"] == result.iops > 0


def test_measuring_deeper_than_the_queue(data: initiator.Controller) -> None:
    """A target's queue has 256 entries: the rest waits in the driver."""
    result = initiator.measure(data, data.namespace(2), depth=1024, seconds=0.2)
    assert (result.errors, result.depth) == (0, 1024)


def test_loads_in_one_loop(data: initiator.Controller) -> None:
    with (
        initiator.Load(data, data.namespace(1), depth=1) as reader,
        initiator.Load(data, data.namespace(2), pattern="write", depth=32, size=128 << 10) as writer,
    ):
        with pytest.raises(HostError, match="no command"):
            reader.result()
        initiator.run([reader, writer], 0.1)
        assert (reader.result().errors, writer.result().errors) == (0, 0)
        reader.reset()
        with pytest.raises(HostError, match="no command"):
            reader.result()
    with pytest.raises(HostError, match="closed"):
        initiator.run([reader], 0.1)


@pytest.mark.parametrize("then", FOLLOWERS)
def test_writes_that_are_followed(data: initiator.Controller, then: Opcode) -> None:
    with initiator.Load(data, data.namespace(1), pattern="randwrite", depth=2, then=then) as load:
        initiator.run([load], 0.1)
        result = load.result()
    assert result.errors == 0
    # One for each write; of each of the two, either may be in flight.
    assert abs(result.ios - 2 * result.followed) <= 2


def test_what_follows_is_for_the_same_blocks(data: initiator.Controller) -> None:
    namespace = data.namespace(1)
    with data.queue(depth=1, timeout=20) as queue:
        queue.write(namespace, 0, b"\x5a" * 4096 * 16).wait()
        with initiator.Load(data, namespace, pattern="write", depth=1, then=Opcode.WRITE_ZEROES) as load:
            initiator.run([load], 0.05)
        block = bytearray(4096)
        queue.read(namespace, 0, block).wait()
    assert not any(block)


def test_measuring_with_invalid_options(data: initiator.Controller) -> None:
    for wrong in ({"pattern": "sideways"}, {"depth": 0}, {"size": 100}):
        with pytest.raises(UsageError):
            initiator.measure(data, data.namespace(1), **wrong)
    with pytest.raises(UsageError, match="READ follows no write"):
        initiator.Load(data, data.namespace(1), then=Opcode.READ)
