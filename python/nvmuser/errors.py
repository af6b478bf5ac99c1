"""The one tree of errors that nvmuser raises.

::

    NvmuserError
    ├── UsageError            what the caller asked for is impossible or malformed (exit status 2)
    ├── NotFoundError         a name that nothing bears
    ├── ConflictError         in use, exists already, held by somebody else
    │   └── StaleError        somebody else has changed it since it was read
    ├── AccessError           this user lacks a permission
    ├── SetupError            a part is missing or could not be obtained
    ├── TargetError           the SPDK process or its supervisor
    │   └── TargetNotRunning
    ├── FleetError            etcd, or what a fleet has agreed on
    │   ├── FleetUnavailable     etcd does not answer, or does not let us in; nothing was changed
    │   └── UnknownOutcome       etcd may have carried out a change; nobody could be asked whether it did
    ├── GuestError            QEMU or the guest in it
    ├── HostError             the NVMe host in Python
    │   ├── HostConnectionError  no controller there, or it went away; commands may have been carried out
    │   ├── HostTimeoutError     no answer within the deadline; the command may have been carried out
    │   └── NvmeStatusError      the controller answered with an error
    ├── DeviceError           a PCI device of ours, or the guest memory that it reads and writes
    └── RpcError
        ├── RpcConnectionError  the connection was refused or ended; the call may have been carried out
        ├── RpcTimeoutError     no reply within the deadline; the call may have been carried out
        └── RpcServerError      the server answered with an error

The libraries raise these; only the CLI prints them. A message is one line, says what is wrong, and where there is
one, the way out.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

_NAMED = 3


def summary(reasons: Iterable[object]) -> str:
    """The first few of many reasons, in one line that stays readable, and how many more there are."""
    every = [str(reason) for reason in reasons]
    more = [f"and {len(every) - _NAMED} more like these"] if len(every) > _NAMED + 1 else []
    return "; ".join((every[:_NAMED] if more else every) + more)


class NvmuserError(Exception):
    """Root of every error that nvmuser raises on purpose.

    `kind` is its name for programs: `error.code` in the JSON of a command that failed (docs/cli.md). Never renamed.
    """

    kind = "error"
    exit_status = 1


class UsageError(NvmuserError):
    """The input is wrong: a bad name, size, or combination of options."""

    kind = "usage"
    exit_status = 2


class NotFoundError(NvmuserError):
    """Nothing bears this name."""

    kind = "not-found"


class ConflictError(NvmuserError):
    """In use, exists already, or held by somebody else."""

    kind = "conflict"


class StaleError(ConflictError):
    """Somebody else has changed it since it was read: read it again."""

    kind = "stale"


class AccessError(NvmuserError):
    """This user lacks a permission: on a file, a directory or a socket."""

    kind = "access"


class SetupError(NvmuserError):
    """A part (SPDK, QEMU, the guest) is missing or could not be obtained."""

    kind = "setup"


class TargetError(NvmuserError):
    """The SPDK process or its supervisor could not do what was asked."""

    kind = "target"


class TargetNotRunning(TargetError):
    """There is no supervisor on this state directory."""

    kind = "target-not-running"


class FleetError(NvmuserError):
    """What a fleet's hosts share could not be read or changed."""

    kind = "fleet"


class FleetUnavailable(FleetError):
    """etcd does not answer, or does not let us in. Nothing was changed."""

    kind = "fleet-unavailable"


class UnknownOutcome(FleetError):
    """etcd may have carried out a change, and does not answer the question whether it did."""

    kind = "fleet-unknown"


class GuestError(NvmuserError):
    """QEMU, or the guest in it, failed."""

    kind = "guest"


class HostError(NvmuserError):
    """The NVMe host could not do what was asked."""

    kind = "host"


class HostConnectionError(HostError):
    """There is no controller, or it went away. What was in flight may have been carried out."""

    kind = "host-connection"


class HostTimeoutError(HostError):
    """No answer within the deadline. The command may have been carried out, and its buffer may still be in use."""

    kind = "host-timeout"


class NvmeStatusError(HostError):
    """The controller answered a command with an error.

    :param status_type: status code type (SCT), `type_name` is its name.
    :param code: status code (SC), `name` is its name; both in SPDK's words, which are the specification's.
    :param do_not_retry: the same command will fail again.
    """

    kind = "nvme-status"

    def __init__(self, status_type: int, code: int, type_name: str, name: str, *, do_not_retry: bool) -> None:
        self.status_type = status_type
        self.code = code
        self.type_name = type_name
        self.name = name
        self.do_not_retry = do_not_retry
        super().__init__(f"{name} ({type_name} {status_type:#x}/{code:#04x})")


class DeviceError(NvmuserError):
    """A PCI device written in Python, its library, or guest memory that is not there.

    :param errno: what a guest gets for an answer when this ends a callback.
    """

    kind = "device"

    def __init__(self, message: str, errno: int = errno.EIO) -> None:
        self.errno = errno
        super().__init__(message)


class RpcError(NvmuserError):
    """A JSON-RPC call did not end with a result."""

    kind = "rpc"


class RpcConnectionError(RpcError):
    """The connection was refused or ended. The call may have been carried out."""

    kind = "rpc-connection"


class RpcTimeoutError(RpcError):
    """No reply within the deadline. The call may have been carried out."""

    kind = "rpc-timeout"


class RpcServerError(RpcError):
    """The server answered with an error; the call was not carried out.

    :param code: JSON-RPC's, or a negative errno, as SPDK sends it.
    """

    kind = "rpc-server"

    def __init__(self, method: str, params: Any, code: int, message: str) -> None:
        self.method = method
        self.params = params
        self.code = code
        self.message = message
        super().__init__(f"{method}: {message} (code {code})")


def reason_of(error: BaseException) -> str:
    """What an error says to a person: the system's words without Python's `[Errno 2]` and path."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
