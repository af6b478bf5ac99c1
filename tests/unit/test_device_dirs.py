"""Device directories of controllers: made with the endpoint, kept, gone with the controller."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvmf_vfio import vfio_dir
from nvmuser.errors import ConflictError
from nvmuser.hostfs.device_dirs import Devices
from nvmuser.model.objects import Controller
from nvmuser.paths import StateDir


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


def test_a_controllers_number_is_its_id_and_stays(state: StateDir) -> None:
    assert Devices(state).provide(Controller(name="a", cntlid=3)) == state.run / "vfio/3"
    assert Devices(state).provide(Controller(name="a", cntlid=3)) == state.run / "vfio/3"
    assert vfio_dir.numbers(state.run / "vfio") == {3: state.socket("a")}


def test_two_of_the_same_id_have_two_numbers(state: StateDir) -> None:
    devices = Devices(state)
    assert [devices.provide(Controller(name=name, cntlid=3)).name for name in "abc"] == ["3", "4", "5"]
    assert Devices(state).provide(Controller(name="c", cntlid=3)).name == "5"


def test_without_the_endpoint_it_is_another_directory(state: StateDir) -> None:
    directory = Devices(state, direct=True).provide(Controller(name="a", cntlid=1))
    assert (directory / "cntrl").readlink() == state.socket("a", direct=True)
    assert not (state.run / "vfio").exists()


def test_it_goes_with_its_controller(state: StateDir) -> None:
    devices = Devices(state)
    directory = devices.provide(Controller(name="a", cntlid=1))
    Devices(state).remove(Controller(name="b", cntlid=1))
    assert directory.exists()
    Devices(state).remove(Controller(name="a", cntlid=1))
    assert not directory.exists()


def test_what_is_not_ours_is_left_alone(state: StateDir) -> None:
    directory = Devices(state).provide(Controller(name="a", cntlid=1))
    (directory / "notes").touch()
    with pytest.raises(ConflictError, match="something else"):
        Devices(state).remove(Controller(name="a", cntlid=1))
    assert (directory / "notes").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes directories in another user's state directory")
def test_one_that_root_makes_is_its_supervisors_to_remove(state: StateDir) -> None:
    state.run.mkdir()
    os.chown(state.run, 65534, 65534)
    directory = Devices(state).provide(Controller(name="a", cntlid=1))
    assert {(one.stat().st_uid, one.stat().st_gid) for one in (directory, directory.parent)} == {(65534, 65534)}
