"""The channel between the supervisor and the endpoint: JSON messages with descriptors, over a SOCK_SEQPACKET socket.

Owns the framing and the table of operations; both ends use it. The supervisor reports which controllers there are and
the state of their targets; the endpoint hands over what must outlive it. Either end may be older than the other: the
operations keep their names. An older endpoint takes what is said of some controllers for all of them, so that it can
have one target only; its hello lacks `several`.

==========  ==================  ==============================================================================
op          sender              meaning
==========  ==================  ==============================================================================
hello       endpoint            `fresh`: it has nothing yet and takes what the supervisor holds; `several`: its
                                controllers may have several targets; `leaves`: it knows *leave*
kept        supervisor          `names` and their descriptors: what an earlier endpoint handed over
start       supervisor          that was all; an endpoint that is not fresh hands everything over once more
serve       supervisor          `controllers`: exactly these have a socket from now on
served      endpoint            the answer: all are there but for `failed`, with the reason of each by its name
target      supervisor          `state`: gone, drained or ready; `controllers`: whose target it is, without it all
leave       supervisor          `controllers`: their target lives, and is about to let go of them
left        endpoint            the answer: the I/O of those whose queues can go on elsewhere has ended
status      both                question, and the answer in several messages while `more`
question    endpoint            `question` about `controller`, which its guest's migration depends on: *expect*: is a
                                guest expected there; *yield*: close its volumes, they belong to another host; *take*:
                                open them, they belong here
answer      supervisor          to the question of that `number`: `error`, empty if it is so, and the `identity`
put, drop   endpoint            keep a copy of this descriptor under `name`; close it
stop        supervisor          close every connection and exit
==========  ==================  ==============================================================================
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from nvmf_vfio.protocol.descriptors import Descriptor, close_all

MAX_DESCRIPTORS = 128
"""Descriptors in one `kept` message; the kernel's SCM_MAX_FD is 253."""
_MAX_MESSAGE = 1 << 20
_BUFFER = 8 << 20
_MAX_QUEUED = 4096
"""Messages after which the other end counts as gone: those that wait hold descriptors."""

Handler = Callable[[dict[str, Any], list[Descriptor]], None]


class Channel:
    """One end of the channel.

    :param handler: called with each message and its descriptors, which are its own from then on.
    :param on_end: called once when the other end is gone.
    """

    def __init__(self, sock: socket.socket, handler: Handler, on_end: Callable[[], None]) -> None:
        sock.setblocking(False)
        # As large as the system allows: the supervisor may be busy for a moment while a guest maps its memory.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._socket = sock
        self._handler = handler
        self._on_end = on_end
        self._queue: deque[tuple[bytes, list[Descriptor]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._loop.add_reader(sock, self._readable)

    def send(self, op: str, descriptors: list[Descriptor] | None = None, **fields: Any) -> None:
        """Send a message, or queue it. The descriptors stay the caller's."""
        if not self._open:
            return
        if len(self._queue) >= _MAX_QUEUED:
            self._loop.call_soon(self._ended)
            return
        copies = [descriptor.duplicate() for descriptor in descriptors or []]
        self._queue.append((json.dumps({"op": op, **fields}).encode(), copies))
        self._flush()

    def _flush(self) -> None:
        while self._queue:
            data, descriptors = self._queue[0]
            numbers = array.array("i", [descriptor.fileno() for descriptor in descriptors])
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if descriptors else []
            try:
                self._socket.sendmsg([data], control, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._socket, self._flush)
                return
            except OSError:
                self._loop.call_soon(self._ended)
                return
            close_all(descriptors)
            self._queue.popleft()
        self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        while self._open:
            try:
                data, control, flags, _ = self._socket.recvmsg(
                    _MAX_MESSAGE, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, control, flags = b"", [], 0
            descriptors: list[Descriptor] = []
            for level, kind, content in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(content)
                    descriptors += [Descriptor(number) for number in numbers]
            if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                # A truncated message means that this process can have no more descriptors.
                close_all(descriptors)
                self._ended()
                return
            self._handler(json.loads(data), descriptors)

    def _ended(self) -> None:
        if self._open:
            self.close()
            self._on_end()

    def close(self) -> None:
        """End the channel without calling `on_end`. Idempotent."""
        if not self._open:
            return
        self._open = False
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        for _, descriptors in self._queue:
            close_all(descriptors)
        self._queue.clear()
        self._socket.close()


class HeldFds:
    """Descriptors that outlive the endpoint: what the supervisor holds after `put` and until `drop`."""

    def __init__(self) -> None:
        self._held: dict[str, Descriptor] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def push(self, name: str, descriptor: Descriptor) -> None:
        """Hold a descriptor, in place of an earlier one of this name. Takes it over."""
        self.pop(name)
        self._held[name] = descriptor

    def pop(self, name: str) -> None:
        """Close the descriptor of this name, if there is one."""
        if held := self._held.pop(name, None):
            held.close()

    def restore(self, channel: Channel) -> None:
        """Send every descriptor to a fresh endpoint."""
        names = sorted(self._held)
        for first in range(0, len(names), MAX_DESCRIPTORS):
            batch = names[first : first + MAX_DESCRIPTORS]
            channel.send("kept", [self._held[name] for name in batch], names=batch)

    def close(self) -> None:
        """Close every descriptor."""
        for name in list(self._held):
            self.pop(name)
