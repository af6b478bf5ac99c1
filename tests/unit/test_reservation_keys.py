"""Keys of reservations: recognised without a record, and nobody else's."""

from __future__ import annotations

import stat
import uuid
from pathlib import Path

import pytest

from nvmuser.errors import SetupError
from nvmuser.hostfs import reservation_keys
from nvmuser.hostfs.reservation_keys import ReservationKeys, key_in
from nvmuser.paths import StateDir
from nvmuser.rpc.methods.reservations import Report

HOST = "10574fff-2e01-43e0-8000-000000000001"


def test_what_an_earlier_process_has_used_is_known_again(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "st")
    key = reservation_keys.load(state).new()
    assert reservation_keys.load(state).is_ours(key)
    assert stat.S_IMODE(state.reservation_secret.stat().st_mode) == 0o600
    assert not reservation_keys.load(StateDir(tmp_path / "other")).is_ours(key)


def test_each_process_is_a_host_of_its_own_with_a_key_in_its_identifier() -> None:
    keys = ReservationKeys(b"s" * 16)
    one, two = keys.session(HOST), keys.session(HOST)
    assert one != two
    assert one[:18] == two[:18] == HOST[:18]
    assert keys.is_ours(key_in(one))
    assert not keys.is_ours(key_in(HOST))
    assert not keys.is_ours(key_in(one) ^ 1)


@pytest.mark.parametrize("text", ["", "zz", "00" * 8])
def test_a_damaged_secret_is_no_secret(tmp_path: Path, text: str) -> None:
    state = StateDir(tmp_path)
    state.reservation_secret.write_text(text)
    with pytest.raises(SetupError, match=r"the secret of this installation's reservations"):
        reservation_keys.load(state)


def test_a_report_lists_registrants_and_who_holds() -> None:
    one, two = uuid.UUID(HOST), uuid.UUID(int=7)
    data = bytearray(4096)
    data[4:7] = bytes([1, 2, 0])
    for place, (host, key, held) in enumerate([(one, 5, 0), (two, 9, 1)], 1):
        start = 64 * place
        data[start + 2] = held
        data[start + 8 : start + 16] = key.to_bytes(8, "little")
        data[start + 16 : start + 32] = host.bytes
    report = Report.parse(bytes(data))
    assert [(found.host_id, found.key) for found in report.registrants] == [(str(one), 5), (str(two), 9)]
    assert report.holder == report.of(str(two))
    assert report.of(str(uuid.UUID(int=1))) is None
    assert Report.parse(bytes(4096)).registrants == ()
