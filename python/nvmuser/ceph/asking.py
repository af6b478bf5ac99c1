"""How a cluster is asked: by a process for each set of questions, or by one that stays connected.

Owns these processes (`worker`), and why there is no answer, in words. It blocks: call it in a thread. What is asked is
`images`'.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from nvmuser.errors import AccessError, NvmuserError, SetupError, UsageError
from nvmuser.model.objects import Cluster

DEADLINE_S = 60.0
"""Of a process that asks: each of its calls has its own, of 10 and 20 s."""
_PATIENCE_S = 10
AWAY = (errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNREFUSED)
DENIED = (errno.EPERM, errno.EACCES)

Act = dict[str, Any]
Asker = Callable[[Cluster, Sequence[Act]], list[Any]]
"""Has a cluster do some things; see `ask`."""


def _argv(*more: str) -> list[str]:
    return [sys.executable, "-m", "nvmuser.ceph.worker", *more]


def _request(cluster: Cluster, patience: int, acts: Sequence[Act]) -> Act:
    return {
        "conf": cluster.conf,
        "user": cluster.user,
        "keyring": cluster.keyring,
        "patience": patience,
        "acts": list(acts),
    }


def ask(
    cluster: Cluster, acts: Sequence[Act], patience: int = _PATIENCE_S, deadline: float | None = DEADLINE_S
) -> list[Any]:
    """Have a process do some things, one after the other. Of each its result, or the OSError that it ended with.

    :param patience: seconds that monitors have to answer.
    :param deadline: seconds for all of it; None: what is done may have to go through a whole image.
    :raises SetupError: librbd is not installed, or no monitor answers.
    :raises AccessError: the cluster does not admit the user.
    """
    try:
        done = subprocess.run(
            _argv(), input=json.dumps(_request(cluster, patience, acts)), capture_output=True, text=True,
            timeout=deadline, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SetupError(f"{cluster.key.words}: no answer within {deadline:g} s") from None
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise SetupError(f"{cluster.key.words}: asking it failed: {why}{_missing(why)}")
    return _results(cluster, json.loads(done.stdout))


def _results(cluster: Cluster, answer: Mapping[str, Any]) -> list[Any]:
    """:raises NvmuserError: there was no connection."""
    if failure := answer.get("failure"):
        raise unconnected(cluster, failure["errno"])
    return [error_of(one["failure"]) if "failure" in one else one["result"] for one in answer["results"]]


def _missing(why: str) -> str:
    return ": install it (Debian: librbd1)" if "cannot open shared object" in why else ""


def error_of(failure: Mapping[str, Any]) -> OSError:
    """As a worker writes it down."""
    return OSError(failure["errno"], failure["text"], failure["function"])


def unconnected(cluster: Cluster, number: int) -> NvmuserError:
    """Why there is no connection, in words.

    :param number: errno of rados_connect(3).
    """
    conf = cluster.conf or "ceph.conf"
    who = f"client.{cluster.user}"
    if number in AWAY:
        return SetupError(f"{cluster.key.words}: no monitor answers: see `mon host` in {conf}, and the network")
    if number in DENIED:
        keyring = cluster.keyring or f"the keyring that {conf} names"
        return AccessError(f"{cluster.key.words}: it does not admit {who} with the key in {keyring}")
    if number == errno.ENOENT:
        return UsageError(f"{cluster.key.words}: no key for {who}: see --keyring, and `keyring` in {conf}")
    return SetupError(f"{cluster.key.words}: {os.strerror(number)}")


class Connection:
    """A process that is connected to a cluster and waits to be asked. It ends with its owner: its standard input does.

    One thread at a time asks; any may close it.
    """

    def __init__(self, cluster: Cluster, argv: Sequence[str] = ()) -> None:
        self.cluster = cluster
        self._process = subprocess.Popen(
            [*(argv or _argv("--stay"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._asking = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether it can be asked, as far as is known."""
        return self._process.poll() is None

    def ask(self, acts: Sequence[Act], deadline: float = DEADLINE_S) -> list[Any]:
        """See the function of this name.

        :raises NvmuserError: likewise; after that it is of no use.
        """
        assert self._process.stdin is not None
        request = _request(self.cluster, _PATIENCE_S, acts)
        with self._asking:
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            except (OSError, ValueError) as error:  # ValueError: it has been closed
                raise SetupError(f"{self.cluster.key.words}: asking it failed: {error}") from error
            return _results(self.cluster, json.loads(self._line(deadline)))

    def _line(self, deadline: float) -> bytes:
        """:raises SetupError: it does not come."""
        assert self._process.stdout is not None
        descriptor, line, end = self._process.stdout.fileno(), b"", time.monotonic() + deadline
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                ready = selector.select(max(0.0, end - time.monotonic()))
                if not ready or not (piece := os.read(descriptor, 1 << 16)):
                    raise SetupError(f"{self.cluster.key.words}: no answer")
                line += piece
        return line

    def close(self) -> None:
        """End the process. May be called again."""
        self._process.kill()
        self._process.wait()
        with self._asking:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):  # what could not be written
                    pipe.close()


class Standing:
    """Connections that are kept, one for each cluster: what is asked by them does not wait for a process to start and
    connect."""

    def __init__(self, connect: Callable[[Cluster], Connection] = Connection, ask: Asker = ask) -> None:
        self._connect = connect
        self._ask = ask
        self._lock = threading.Lock()
        self._idle: dict[Cluster, Connection] = {}
        self._busy: dict[Cluster, Connection] = {}
        """That connect, or are asked."""
        self._wanted: frozenset[Cluster] = frozenset()

    def keep(self, clusters: Collection[Cluster]) -> None:
        """Have connections to these, and to no others.

        :raises SetupError: one of them is not there; it can be asked nevertheless, by a process of its own.
        """
        with self._lock:
            self._wanted = frozenset(clusters)
            useless = [one for one, idle in self._idle.items() if one not in self._wanted or not idle.alive]
            surplus = [self._idle.pop(one) for one in useless]
            missing = self._wanted - self._idle.keys() - self._busy.keys()
            surplus += [one for cluster, one in self._busy.items() if cluster not in self._wanted]
            self._busy |= {cluster: self._connect(cluster) for cluster in missing}
            starting = {cluster: self._busy[cluster] for cluster in missing}
        for connection in surplus:
            connection.close()
        failures = []
        for cluster, connection in starting.items():
            try:
                connection.ask([])
            except (NvmuserError, ValueError) as error:
                failures.append(str(error))
                self._put(cluster, connection, usable=False)
            else:
                self._put(cluster, connection)
        if failures:
            raise SetupError("; ".join(failures))

    def ask(self, cluster: Cluster, acts: Sequence[Act]) -> list[Any]:
        """By a connection that is there, or as without one.

        :raises NvmuserError: see the function of this name.
        """
        with self._lock:
            connection = self._idle.pop(cluster, None)
            if connection:
                self._busy[cluster] = connection
        if connection:
            try:
                results = connection.ask(acts)
            except (NvmuserError, ValueError):
                # It may have died, or its library: what was asked can be asked again.
                self._put(cluster, connection, usable=False)
            else:
                self._put(cluster, connection)
                return results
        return self._ask(cluster, acts)

    def _put(self, cluster: Cluster, connection: Connection, *, usable: bool = True) -> None:
        with self._lock:
            self._busy.pop(cluster, None)
            kept = usable and cluster in self._wanted
            if kept:
                self._idle[cluster] = connection
        if not kept:
            connection.close()

    def close(self) -> None:
        """Keep none any longer. May be called again."""
        self.keep(())
