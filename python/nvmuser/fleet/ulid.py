"""Names of events that sort by their time: 48 bits of milliseconds and 80 random ones, in Crockford's base 32."""

from __future__ import annotations

import secrets
import time

_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_last = (0, 0)


def ulid() -> str:
    """Later than all that this process has made."""
    global _last
    now, (then, random) = time.time_ns() // 1_000_000, _last
    # With the highest bit clear there is room to count on within a millisecond.
    _last = (now, secrets.randbits(79)) if now > then else (then, random + 1)
    number = _last[0] << 80 | _last[1]
    return "".join(_DIGITS[number >> shift & 31] for shift in range(125, -1, -5))
