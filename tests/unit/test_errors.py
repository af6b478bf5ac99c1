"""Words of errors that many modules share."""

from __future__ import annotations

import pytest

from nvmuser.errors import summary


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, ""),
        (1, "volume 0"),
        (4, "volume 0; volume 1; volume 2; volume 3"),
        (2000, "volume 0; volume 1; volume 2; and 1997 more like these"),
    ],
)
def test_many_reasons_stay_one_readable_line(count: int, expected: str) -> None:
    assert summary(f"volume {number}" for number in range(count)) == expected
