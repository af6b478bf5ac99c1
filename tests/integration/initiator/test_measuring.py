"""The measuring loop, in C."""

from __future__ import annotations

import pytest
from host_world import MIB

from nvmuser import initiator
from nvmuser.errors import UsageError


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


def test_measuring_with_invalid_options(data: initiator.Controller) -> None:
    for wrong in ({"pattern": "sideways"}, {"depth": 0}, {"size": 100}):
        with pytest.raises(UsageError):
            initiator.measure(data, data.namespace(1), **wrong)
