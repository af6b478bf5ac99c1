"""A read without a buffer, which is split, and for which there is none: it fails, and leaves nothing outstanding.

None of nvmuser's own paths sends one: guests bring their buffers. SPDK's iSCSI target does, so it is what asks here.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory
from raw_nvme import call
from vfio_fds import PATIENCE

STRIP, BLOCK = 4096, 512
LARGE_BUFFER = 8192
"""The least that SPDK can be told to have (lib/thread/iobuf.c); a read for one segment of iSCSI is up to 64 KiB."""
LOGIN, COMMAND, RESPONSE, DATA_IN, REJECTED = 0x43, 0x01, 0x21, 0x25, 0x3F
GOOD, CHECK_CONDITION = 0x00, 0x02
NAME = "iqn.2016-06.io.spdk:t"


@pytest.fixture
def iscsi(target_factory: TargetFactory, tmp_path: Path) -> tuple[BareTarget, int]:
    """SPDK's iSCSI target and its port; its LUN is striped over two bdevs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    buffers = {"small_pool_count": 1024, "large_pool_count": 256, "small_bufsize": 4096, "large_bufsize": LARGE_BUFFER}
    few = {"max_sessions": 1, "max_connections_per_session": 1, "max_queue_depth": 4}
    few |= {"pdu_pool_size": 64, "immediate_data_pool_size": 64, "data_out_pool_size": 64}
    settings = [
        {"subsystem": "iobuf", "config": [{"method": "iobuf_set_options", "params": buffers}]},
        {"subsystem": "iscsi", "config": [{"method": "iscsi_set_options", "params": few}]},
    ]
    (tmp_path / "settings.json").write_text(json.dumps({"subsystems": settings}))
    target = target_factory.start("iscsi", polled=True, program="iscsi_tgt", settings=tmp_path / "settings.json")
    members = [("bdev_malloc_create", {"name": n, "num_blocks": 8192, "block_size": BLOCK}) for n in ("a", "b")]
    striped = {"name": "r", "raid_level": "raid0", "strip_size_kb": STRIP >> 10, "base_bdevs": ["a", "b"]}
    node = {"name": "t", "alias_name": "t", "pg_ig_maps": [{"pg_tag": 1, "ig_tag": 1}], "disable_chap": True}
    call(
        target,
        *members,
        ("bdev_raid_create", striped),
        ("iscsi_create_portal_group", {"tag": 1, "portals": [{"host": "127.0.0.1", "port": str(port)}]}),
        ("iscsi_create_initiator_group", {"tag": 1, "initiators": ["ANY"], "netmasks": ["ANY"]}),
        ("iscsi_create_target_node", node | {"luns": [{"bdev_name": "r", "lun_id": 0}], "queue_depth": 4}),
    )
    return target, port


class Initiator:
    """As little of an iSCSI initiator as reads (RFC 7143): one session, one command at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._number = 0
        self._expected = 0
        keys = {
            "InitiatorName": "iqn.2026-11.org.nvmuser:test", "SessionType": "Normal", "TargetName": NAME,
            "HeaderDigest": "None", "DataDigest": "None",
        }  # fmt: skip
        text = b"".join(f"{key}={value}\0".encode() for key, value in keys.items())
        # From operational negotiation straight to the full feature phase.
        self._send(struct.pack(">BB6x", LOGIN, 0x87) + bytes([0x80, 0, 0, 0, 0, 1, 0, 0]), 0, text)
        header = self._receive()
        assert header[36:38] == b"\0\0", f"login: {header[36:38].hex()}"

    def _send(self, start: bytes, word: int, data: bytes = b"", rest: bytes = b"") -> None:
        header = start[:5] + len(data).to_bytes(3, "big") + start[8:16]
        header += struct.pack(">4I", 1, word, self._number, self._expected) + rest.ljust(16, b"\0")
        self._socket.sendall(header + data + bytes(-len(data) % 4))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self._socket.recv(size - len(data)) or pytest.fail("the target has closed the connection")
        return data

    def _receive(self) -> bytes:
        header = self._exactly(48)
        size = int.from_bytes(header[5:8], "big")
        self._exactly(size + -size % 4)
        if header[0] & 0x3F != DATA_IN or header[1] & 1:
            self._expected = int.from_bytes(header[24:28], "big") + 1
        return header

    def read(self, size: int) -> int:
        """READ(10) of the first bytes. :return: the SCSI status."""
        blocks = size // BLOCK
        self._send(struct.pack(">BB14x", COMMAND, 0xC1), size, rest=struct.pack(">BBIBHB", 0x28, 0, 0, 0, blocks, 0))
        while True:
            header = self._receive()
            assert header[0] & 0x3F != REJECTED
            if header[0] & 0x3F == RESPONSE or header[1] & 1:
                self._number += 1
                return header[3]

    def close(self) -> None:
        self._socket.close()


def depth(target: BareTarget) -> int:
    """How many commands the striped bdev takes itself to have."""
    call(target, ("bdev_set_qd_sampling_period", {"name": "r", "period": 1000}))
    deadline = time.monotonic() + PATIENCE
    while True:
        (statistics,) = call(target, ("bdev_get_iostat", {}))
        (striped,) = [bdev for bdev in statistics["bdevs"] if bdev["name"] == "r"]
        if "queue_depth" in striped:
            return int(striped["queue_depth"])
        assert time.monotonic() < deadline


def test_a_split_read_that_gets_no_buffer(iscsi: tuple[BareTarget, int]) -> None:
    target, port = iscsi
    with contextlib.closing(Initiator(port)) as initiator:
        assert initiator.read(STRIP) == GOOD
        assert initiator.read(2 * STRIP) == GOOD
        assert initiator.read(8 * STRIP) == CHECK_CONDITION, "it needs a larger buffer than there is"
        assert depth(target) == 0
        assert initiator.read(2 * STRIP) == GOOD
