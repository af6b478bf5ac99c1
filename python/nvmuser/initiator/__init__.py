"""An NVMe host: connects to a controller over vfio-user and sends it commands, without a guest.

Owns nothing of its own: it is the package's front. SPDK's driver does the work, in this process: `environment` starts
it, `controller` connects, `queue` (polled) and `aio` (awaited) send commands on `memory`, `perf` measures. The caller
chooses the target, and makes sure that no other host is connected: a controller takes one host at a time.
"""

from nvmuser.initiator.aio import AsyncQueue
from nvmuser.initiator.controller import Controller, ControllerInfo, Namespace, connect
from nvmuser.initiator.environment import Environment, initialise
from nvmuser.initiator.memory import Memory, allocate
from nvmuser.initiator.perf import Load, PerfResult, measure, run
from nvmuser.initiator.queue import Queue, Request
from nvmuser.initiator.scatter import Scattered, scatter

__all__ = [
    "AsyncQueue",
    "Controller",
    "ControllerInfo",
    "Environment",
    "Load",
    "Memory",
    "Namespace",
    "PerfResult",
    "Queue",
    "Request",
    "Scattered",
    "allocate",
    "connect",
    "initialise",
    "measure",
    "run",
    "scatter",
]
