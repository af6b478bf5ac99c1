"""The command line in this process, as a person uses it. The fixture `run` is in conftest.py."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""Arguments → status, stdout, stderr."""


def ok(result: tuple[int, str, str]) -> str:
    assert result[0] == 0, result
    assert result[2] == ""
    return result[1]
