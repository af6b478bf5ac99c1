"""Sizes as people write them: `512M`, `20Gi`, `1.5G`. Units are powers of 1024."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

from nvmuser.errors import UsageError

SIZE = r"[0-9]{1,19}(\.[0-9]{1,9})?[ ]?([KMGTPkmgtp]([iI]?[Bb]?)|[Bb])?"
"""As a regular expression, of Python's and of JSON Schema's."""

SIZE_FIELDS = ("size", "cluster_size", "memory")
"""Of objects, those that are sizes."""

MIB = 1 << 20
SECTOR, PAGE = 512, 4096
_MOST = 1 << 62
_SIZE = re.compile(SIZE)
_NUMBER = re.compile(r"[0-9.]+")
_UNITS = " KMGTP"


def exact_size(text: str | int) -> Decimal:
    """What `parse_size` rounds up, in bytes.

    :raises UsageError: it is not a size.
    """
    stripped = str(text).strip()
    number = _NUMBER.match(stripped)
    if not _SIZE.fullmatch(stripped) or number is None:
        raise UsageError(
            f"size {text!r}: expected a number of bytes, or one with K, M, G, T or P, such as 512M, 1.5G or 20Gi"
        )
    unit = stripped[number.end() :].strip()[:1].upper().replace("B", "")
    if not unit and "." in number[0]:
        raise UsageError(f"size {text!r}: a fraction needs a unit, such as 1.5G")
    return Decimal(number[0]) * (1 << 10 * _UNITS.index(unit or " "))


def parse_size(text: str | int) -> int:
    """Bytes from `512M`, `1.5G`, `20Gi`, `1GiB` or a number; units are powers of 1024.

    A fraction that is no whole number of sectors is rounded up to 4096 bytes: never less than what was asked for.

    :raises UsageError: it is not a size.
    """
    exact = exact_size(text)
    if "." in str(text) and exact % SECTOR:
        exact = Decimal(round_up(int(exact.to_integral_value(ROUND_CEILING)), PAGE))
    if exact > _MOST:
        raise UsageError(f"size {text!r}: more than {format_size(_MOST)}")
    return int(exact)


def rounding(made: int, asked: str | int) -> str:
    """What a person reads of a size that has become larger than asked; empty when it has not.

    :param asked: as it was written.
    """
    return f", {format_size(made)}: rounded up from {asked}" if made > exact_size(asked) else ""


def format_size(size: int) -> str:
    """The shortest text that `parse_size` reads as exactly `size`."""
    for power, unit in ((5, "P"), (4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if size and size % (1 << 10 * power) == 0:
            return f"{size >> 10 * power}{unit}"
    return str(size)


def approximate(size: int) -> str:
    """For people, where no byte matters: three digits, such as `1.27G`."""
    for power, unit in ((5, "P"), (4, "T"), (3, "G"), (2, "M"), (1, "K")):
        value = size / (1 << 10 * power)
        if value >= 1:
            return f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"
    return f"{size} bytes"


def round_up(size: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not less than `size`."""
    return -(-size // unit) * unit
