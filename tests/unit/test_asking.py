"""Connections to a cluster that are kept, with a stand-in for the worker; test_rbd.py has real ones."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nvmuser.ceph.asking import Act, Connection, Standing
from nvmuser.errors import SetupError
from nvmuser.model.objects import Cluster

ONE, OTHER = Cluster("one"), Cluster("other")

_WORKER = """
import json, os, sys, time
for line in sys.stdin:
    acts = json.loads(line)["acts"]
    if "die" in acts:
        sys.exit(1)
    if "stall" in acts:
        time.sleep(600)
    print(json.dumps({"results": [{"result": os.getpid()} for _ in acts]}), flush=True)
"""
_REFUSED = """
import sys
sys.stdin.readline()
print('{"failure": {"errno": 110, "text": "", "function": "rados_connect"}}', flush=True)
"""


def worker(script: str) -> Callable[[Cluster], Connection]:
    return lambda cluster: Connection(cluster, [sys.executable, "-c", script])


def by_itself(_cluster: Cluster, acts: Sequence[Act]) -> list[Any]:
    return ["by itself"] * len(acts)


@pytest.fixture
def standing() -> Iterator[Standing]:
    kept = Standing(worker(_WORKER), by_itself)
    yield kept
    kept.close()


def act(name: str) -> Any:
    return name


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_one_process_answers_one_question_after_the_other(standing: Standing) -> None:
    standing.keep([ONE, OTHER])
    (first, again) = standing.ask(ONE, [act("a"), act("b")])
    assert first == again
    assert standing.ask(ONE, [act("c")]) == [first]
    assert standing.ask(OTHER, [act("c")]) not in ([first], ["by itself"])


def test_what_is_not_kept_is_asked_by_a_process_of_its_own(standing: Standing) -> None:
    assert standing.ask(ONE, [act("a")]) == ["by itself"]
    standing.keep([ONE])
    (pid,) = standing.ask(ONE, [act("a")])
    standing.keep([OTHER])
    assert not alive(pid)
    assert standing.ask(ONE, [act("a")]) == ["by itself"]


def test_a_connection_that_dies_is_replaced_and_its_question_asked_again(standing: Standing) -> None:
    standing.keep([ONE])
    (pid,) = standing.ask(ONE, [act("a")])
    assert standing.ask(ONE, [act("die")]) == ["by itself"]
    standing.keep([ONE])
    (other,) = standing.ask(ONE, [act("a")])
    assert other != pid
    assert alive(other)


def test_who_asks_at_the_same_time_does_not_wait(standing: Standing) -> None:
    standing.keep([ONE])
    stalled: list[Any] = []
    asking = threading.Thread(target=lambda: stalled.extend(standing.ask(ONE, [act("stall")])))
    asking.start()
    while standing.ask(ONE, [act("a")]) != ["by itself"]:  # until the other has it
        pass
    standing.close()
    asking.join(30)
    assert stalled == ["by itself"]


def test_no_answer_is_an_error_and_so_is_a_cluster_that_does_not_answer() -> None:
    connection = Connection(ONE, [sys.executable, "-c", _WORKER])
    with pytest.raises(SetupError, match="cluster one: no answer"):
        connection.ask([act("stall")], deadline=0.01)
    connection.close()
    refusing = Standing(worker(_REFUSED), by_itself)
    with pytest.raises(SetupError, match="no monitor answers"):
        refusing.keep([ONE])
    assert refusing.ask(ONE, [act("a")]) == ["by itself"]
