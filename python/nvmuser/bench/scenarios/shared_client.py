"""An NVMe host that rests between two looks, as one process: what it measures waits for a network, and a host that
polls would take a CPU from all that it waits for.

Prints commands a second, and nothing else. Its arguments: the controller's directory, the pattern, the depth, bytes of
a command, seconds.
"""

from __future__ import annotations

import sys

from nvmuser import initiator
from nvmuser.errors import NvmuserError

_REST_US = 250
_WARMUP_S = 1.0


def main(directory: str, pattern: str, depth: str, size: str, seconds: str) -> None:
    """Connect, measure, and print commands a second. The arguments are those of the command line."""
    with initiator.connect(directory) as controller:
        result = initiator.measure(
            controller, controller.namespace(1), pattern=pattern, depth=int(depth), size=int(size),
            seconds=float(seconds), warmup=_WARMUP_S, rest_us=_REST_US,
        )  # fmt: skip
    if result.errors:
        sys.exit(f"nvmuser.initiator: {result.errors} commands failed")
    print(result.iops)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except NvmuserError as error:
        sys.exit(f"nvmuser.initiator: {error}")
