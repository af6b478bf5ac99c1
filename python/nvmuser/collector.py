"""How often Python looks for objects that refer to each other and are of no use any more.

It looks after 700 new objects unless told otherwise, and with thousands of volumes and controllers, of which each act
makes ten thousands of objects that stay, those looks take as long as the work itself.
"""

from __future__ import annotations

import gc

_NEW_OBJECTS = 50_000
_LOOKS = 10


def look_less_often() -> None:
    """For the whole process. What lingers until the next look are some MiB at most."""
    gc.set_threshold(_NEW_OBJECTS, _LOOKS, _LOOKS)
