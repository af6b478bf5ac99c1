"""Who gets in: the group of the directory, which its socket inherits."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from nvmuser.errors import NvmuserError, UsageError
from nvmuser.hostfs import access
from nvmuser.hostfs.sockets import listen_unix
from nvmuser.model.objects import Controller
from nvmuser.paths import StateDir

OTHER = next((g.gr_name for g in grp.getgrall() if g.gr_gid != os.getegid() and os.geteuid() == 0), None)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_nobody_else_by_default(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    access.grant(state, Controller("x"))
    assert not state.run.exists()


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    for controller, what in (
        (Controller("x", group="nosuch"), "group nosuch"),
        (Controller("x", owner="me?"), "user me?"),
    ):
        with pytest.raises(UsageError) as caught:
            access.grant(StateDir(tmp_path), controller)
        assert str(caught.value) == f"controller x: there is no {what} on this machine"


def test_own_group(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    access.grant(state, Controller("x", owner=pwd.getpwuid(os.geteuid()).pw_name))
    assert mode(state.guest_dir("x")) == 0o2750
    for parent in (state.root, state.run, state.guest_dir("x").parent):
        assert mode(parent) & 0o001


@pytest.mark.skipif(OTHER is None, reason="needs root, to give a directory to another group")
def test_the_socket_has_the_group_from_the_beginning_and_follows_a_change(tmp_path: Path) -> None:
    assert OTHER
    state, shared = StateDir(tmp_path), Controller("x", group=OTHER)
    access.grant(state, shared)
    path = state.socket("x")
    with listen_unix(path, 0o660):
        assert path.stat().st_gid == access.group_of(shared) != os.getegid()
        access.grant(state, Controller("x"))
        assert path.stat().st_gid == os.getegid()
        assert mode(state.guest_dir("x")) == 0o750
        access.grant(state, shared)
        assert path.stat().st_gid == access.group_of(shared)


def test_anothers_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDir(tmp_path)
    state.guest_dir("x").mkdir(parents=True)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(NvmuserError, match="belongs to user"):
        access.grant(state, Controller("x"))


@pytest.mark.skipif(OTHER is None, reason="needs root, to give a socket away")
def test_the_socket_is_its_owners(tmp_path: Path) -> None:
    state, nobody = StateDir(tmp_path), pwd.getpwnam("nobody")
    theirs = Controller("x", owner="nobody", mode="0600")
    access.settle(state, theirs)
    access.grant(state, theirs)
    path = state.socket("x")
    with listen_unix(path, 0o660):
        access.settle(state, theirs)
        assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (nobody.pw_uid, nobody.pw_gid, 0o600)
        assert state.guest_dir("x").stat().st_uid == 0
        for_all = Controller("x", mode="0666")
        access.grant(state, for_all)
        access.settle(state, for_all)
        assert (path.stat().st_uid, mode(path), mode(state.guest_dir("x"))) == (0, 0o666, 0o2751)
