"""The peers of a comparison: their QEMU arguments, and the matrix of jobs."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nvmuser.bench.rounds import matrix, peer_servers, peers


def test_short_matrix_is_what_the_question_needs() -> None:
    names = [case.job.name for case in matrix.short(matrix.Timing())]
    assert sorted(names) == sorted(
        f"{rw}-4k-qd{depth}-{mode}" for rw in ("randread", "randwrite") for depth in (1, 32) for mode in ("irq", "poll")
    )


def test_full_matrix_holds_the_short_one_and_has_distinct_names() -> None:
    timing = matrix.Timing()
    full = matrix.full(timing)
    assert len({case.job.name for case in full}) == len(full)
    assert all(case in full for case in matrix.short(timing))


def test_full_matrix_has_every_dimension() -> None:
    cases = matrix.full(matrix.Timing())
    assert len(cases) == 2 * 2 * 6 * 3 * 3
    seen: dict[str, Counter[Any]] = {
        "rw": Counter(case.job.rw for case in cases),
        "bs": Counter(case.job.bs for case in cases),
        "iodepth": Counter(case.job.iodepth for case in cases),
        "cpus": Counter((case.guest_cpus, case.job.numjobs) for case in cases),
        "engine": Counter((case.job.ioengine, case.job.poll) for case in cases),
    }
    assert seen == {
        "rw": dict.fromkeys(("randread", "randwrite", "randrw", "read", "write", "rw"), 36),
        "bs": {"4k": 108, "128k": 108},
        "iodepth": {1: 72, 8: 72, 32: 72},
        "cpus": {(1, 1): 108, (2, 2): 108},
        "engine": {("io_uring", False): 72, ("io_uring", True): 72, ("libaio", False): 72},
    }


def test_every_way_to_give_a_guest_a_disk_is_a_peer() -> None:
    wanted = {"endpoint", "direct", "nvme", "virtio-blk", "vhost-user-blk-spdk", "vhost-user-blk-qsd"}
    assert wanted <= set(peers.PEERS)
    assert wanted <= set(peers.SHORT)


def devices(arguments: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads(value) for flag, value in itertools.pairwise(arguments) if flag == "-device"]


@pytest.mark.parametrize("peer", ["nvme", "virtio-blk", "virtio-blk-vq"])
def test_peers_of_qemu_get_direct_io_and_io_uring(tmp_path: Path, peer: str) -> None:
    arguments = peers.qemu_arguments(peer, tmp_path / peer, 3)
    node = json.loads(arguments[arguments.index("-blockdev") + 1])
    assert node["file"]["aio"] == "io_uring"
    assert node["file"]["cache"]["direct"] is True
    assert node["file"]["filename"] == str(tmp_path / peer)
    [device] = devices(arguments)
    assert device["drive"] == node["node-name"]


def test_virtqueues_are_mapped_to_as_many_iothreads(tmp_path: Path) -> None:
    arguments = peers.qemu_arguments("virtio-blk-vq", tmp_path / "disk", 3)
    [device] = devices(arguments)
    threads = [entry["iothread"] for entry in device["iothread-vq-mapping"]]
    assert len(threads) == device["num-queues"] == 3
    assert [f"iothread,id={thread}" for thread in threads] == [
        value for flag, value in itertools.pairwise(arguments) if flag == "-object"
    ]


def test_vhost_peers_connect_to_the_backend(tmp_path: Path) -> None:
    arguments = peers.qemu_arguments("vhost-user-blk-qsd", tmp_path / "disk", 3, tmp_path / "s")
    assert f"socket,id=vhost,path={tmp_path / 's'}" in arguments
    daemon = peer_servers.storage_daemon_arguments(tmp_path / "disk", tmp_path / "s", 3)
    export = json.loads(daemon[-1])
    assert export["num-queues"] == devices(arguments)[0]["num-queues"] == 3
    assert export["iothread"] in daemon[1]
