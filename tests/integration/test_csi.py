"""`nvmuser csi serve` on a real target: the cases of the CSI sanity suite (kubernetes-csi/csi-test), by their names.

Those of capabilities that the driver does not have (snapshots, clones, staging, publishing by the controller, changing
attributes, capacity) are not here; `test_should_return_appropriate_capabilities` says that it does not have them.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from api_process import NVMUSER
from csi_driver import NODE, Driver, capability, driver

from nvmuser import initiator
from nvmuser.csi.messages import CLASSES
from nvmuser.csi.server import NAME, TOPOLOGY

GIB = 1 << 30
MIB = 1 << 20
NUMBERS = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Driver]:
    async with driver(tmp_path_factory.mktemp("c")) as found:  # a short name, for the sockets in it
        yield found


@pytest.fixture
def csi(running: Driver) -> Iterator[Driver]:
    yield running
    running.clean()


@pytest.fixture(params=["mount", "block"])
def access(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def unique(name: str) -> str:
    return f"sanity-{name}-{next(NUMBERS):08X}"


def size(required: int, limit: int = 0) -> Any:
    return CLASSES["CapacityRange"](required_bytes=required, limit_bytes=limit)


def create(csi: Driver, name: str, required: int = 10 * MIB, **fields: Any) -> Any:
    fields = {"capacity_range": size(required), "volume_capabilities": [capability()]} | fields
    return csi.call("CreateVolume", name=name, **fields).volume


def store(csi: Driver, *words: str) -> Any:
    """What a command of nvmuser answers on the driver's deployment."""
    command = [*NVMUSER, "--state-dir", str(csi.state.root), *words, "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


class TestIdentityService:
    def test_get_plugin_capabilities_should_return_appropriate_capabilities(self, csi: Driver) -> None:
        found = csi.call("GetPluginCapabilities").capabilities
        assert [one.service.type for one in found if one.HasField("service")] == [1, 2]
        assert [one.volume_expansion.type for one in found if one.HasField("volume_expansion")] == [1]

    def test_probe_should_return_appropriate_information(self, csi: Driver) -> None:
        assert csi.call("Probe").ready.value

    def test_get_plugin_info_should_return_appropriate_information(self, csi: Driver) -> None:
        found = csi.call("GetPluginInfo")
        assert (found.name, bool(found.vendor_version)) == (NAME, True)


class TestControllerService:
    def test_controller_get_capabilities_should_return_appropriate_capabilities(self, csi: Driver) -> None:
        found = csi.call("ControllerGetCapabilities").capabilities
        assert sorted(one.rpc.type for one in found) == [1, 3, 9]  # CREATE_DELETE_, LIST_VOLUMES, EXPAND_VOLUME

    def test_list_volumes_should_return_appropriate_values(self, csi: Driver) -> None:
        assert list(csi.call("ListVolumes").entries) == []

    def test_list_volumes_should_fail_when_an_invalid_starting_token_is_passed(self, csi: Driver) -> None:
        assert csi.refusal("ListVolumes", starting_token="invalid-token") == "ABORTED"

    def test_list_volumes_check_the_presence_of_new_volumes_and_absence_of_deleted_ones(self, csi: Driver) -> None:
        made = create(csi, unique("list"))
        assert made.volume_id in [one.volume.volume_id for one in csi.call("ListVolumes").entries]
        csi.call("DeleteVolume", volume_id=made.volume_id)
        assert made.volume_id not in [one.volume.volume_id for one in csi.call("ListVolumes").entries]

    def test_pagination_should_detect_volumes_added_between_pages(self, csi: Driver) -> None:
        """And accept tokens when the last volume from a page is deleted."""
        first, last = create(csi, "sanity-a"), create(csi, "sanity-c")
        page = csi.call("ListVolumes", max_entries=1)
        assert [one.volume.volume_id for one in page.entries] == [first.volume_id]
        added = create(csi, "sanity-b")
        csi.call("DeleteVolume", volume_id=first.volume_id)
        page = csi.call("ListVolumes", starting_token=page.next_token)
        assert [one.volume.volume_id for one in page.entries] == [added.volume_id, last.volume_id]
        assert page.next_token == ""

    def test_create_volume_should_fail_when_no_name_is_provided(self, csi: Driver) -> None:
        assert csi.refusal("CreateVolume", volume_capabilities=[capability()]) == "INVALID_ARGUMENT"

    def test_create_volume_should_fail_when_no_volume_capabilities_are_provided(self, csi: Driver) -> None:
        assert csi.refusal("CreateVolume", name=unique("create-no-caps")) == "INVALID_ARGUMENT"

    def test_create_volume_should_return_appropriate_values_single_node_writer_no_capacity(self, csi: Driver) -> None:
        parameters = {"thin": "true"}
        made = csi.call(
            "CreateVolume", name=unique("no-cap"), volume_capabilities=[capability()], parameters=parameters
        ).volume
        assert made.capacity_bytes == GIB
        assert [dict(place.segments) for place in made.accessible_topology] == [{TOPOLOGY: NODE}]

    def test_create_volume_should_return_appropriate_values_single_node_writer_with_capacity_1gi(
        self, csi: Driver, access: str
    ) -> None:
        made = create(csi, unique("cap"), GIB, volume_capabilities=[capability(access)], parameters={"thin": "true"})
        assert made.capacity_bytes == GIB
        assert '"thin": true' in json.dumps(store(csi, "volume", "show", made.volume_id))

    def test_create_volume_should_not_fail_when_already_existing_name_and_same_capacity(self, csi: Driver) -> None:
        name = unique("twice")
        assert create(csi, name) == create(csi, name)

    def test_create_volume_should_fail_when_already_existing_name_and_different_capacity(self, csi: Driver) -> None:
        name = unique("twice-different")
        create(csi, name)
        fields = {"name": name, "volume_capabilities": [capability()], "capacity_range": size(20 * MIB)}
        assert csi.refusal("CreateVolume", **fields) == "ALREADY_EXISTS"
        fields |= {"capacity_range": size(10 * MIB), "parameters": {"thin": "true"}}
        assert csi.refusal("CreateVolume", **fields) == "ALREADY_EXISTS"

    def test_create_volume_should_not_fail_when_creating_volume_with_maximum_length_name(self, csi: Driver) -> None:
        name = "N" * 128
        assert create(csi, name) == create(csi, name)
        assert create(csi, "M" * 128).volume_id != create(csi, name).volume_id

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"volume_capabilities": [capability(mode=5)]}, "INVALID_ARGUMENT"),
            ({"parameters": {"colour": "red"}}, "INVALID_ARGUMENT"),
            ({"parameters": {"backend": "lvol", "pool": "none"}}, "NOT_FOUND"),
            ({"capacity_range": size(2 * MIB, MIB)}, "INVALID_ARGUMENT"),
            ({"capacity_range": size(MIB + 1, MIB + 2)}, "OUT_OF_RANGE"),
            ({"volume_content_source": CLASSES["VolumeContentSource"](volume={})}, "INVALID_ARGUMENT"),
            (
                {"accessibility_requirements": {"requisite": [{"segments": {TOPOLOGY: "node2"}}]}},
                "RESOURCE_EXHAUSTED",
            ),
        ],
    )
    def test_create_volume_refuses_what_cannot_be(self, csi: Driver, fields: dict[str, Any], code: str) -> None:
        fields = {"name": unique("refused"), "volume_capabilities": [capability()]} | fields
        assert csi.refusal("CreateVolume", **fields) == code

    def test_delete_volume_should_fail_when_no_volume_id_is_provided(self, csi: Driver) -> None:
        assert csi.refusal("DeleteVolume") == "INVALID_ARGUMENT"

    def test_delete_volume_should_succeed_when_an_invalid_volume_id_is_used(self, csi: Driver) -> None:
        csi.call("DeleteVolume", volume_id="fake-vol-id")

    def test_delete_volume_should_return_appropriate_values(self, csi: Driver) -> None:
        made = create(csi, unique("delete"))
        for _ in range(2):
            csi.call("DeleteVolume", volume_id=made.volume_id)
        assert made.volume_id not in json.dumps(store(csi, "volume", "list"))

    def test_delete_volume_leaves_what_a_person_has_made(self, csi: Driver) -> None:
        store(csi, "volume", "create", "mine", "--size", "1M")
        csi.call("DeleteVolume", volume_id="mine")
        assert "mine" in json.dumps(store(csi, "volume", "list"))
        assert "mine" not in [one.volume.volume_id for one in csi.call("ListVolumes").entries]

    def test_validate_volume_capabilities_should_fail_when_no_volume_id_is_provided(self, csi: Driver) -> None:
        assert csi.refusal("ValidateVolumeCapabilities") == "INVALID_ARGUMENT"

    def test_validate_volume_capabilities_should_fail_when_no_volume_capabilities_are_provided(
        self, csi: Driver
    ) -> None:
        made = create(csi, unique("validate-nocaps"))
        assert csi.refusal("ValidateVolumeCapabilities", volume_id=made.volume_id) == "INVALID_ARGUMENT"

    def test_validate_volume_capabilities_should_return_appropriate_values(self, csi: Driver, access: str) -> None:
        made = create(csi, unique("validate"))
        fields = {"volume_id": made.volume_id, "volume_capabilities": [capability(access)]}
        found = csi.call("ValidateVolumeCapabilities", **fields)
        assert list(found.confirmed.volume_capabilities) == fields["volume_capabilities"]
        many = csi.call("ValidateVolumeCapabilities", **fields | {"volume_capabilities": [capability(mode=5)]})
        assert not many.HasField("confirmed")
        assert "SINGLE_NODE_WRITER" in many.message

    def test_validate_volume_capabilities_should_fail_when_the_requested_volume_does_not_exist(
        self, csi: Driver
    ) -> None:
        fields = {"volume_id": "fake-vol-id", "volume_capabilities": [capability()]}
        assert csi.refusal("ValidateVolumeCapabilities", **fields) == "NOT_FOUND"

    def test_controller_expand_volume_should_fail_if_no_volume_id_is_given(self, csi: Driver) -> None:
        assert csi.refusal("ControllerExpandVolume", capacity_range=size(MIB)) == "INVALID_ARGUMENT"

    def test_controller_expand_volume_should_fail_if_no_capacity_range_is_given(self, csi: Driver) -> None:
        made = create(csi, unique("expand-no-range"))
        assert csi.refusal("ControllerExpandVolume", volume_id=made.volume_id) == "INVALID_ARGUMENT"

    def test_controller_expand_volume_should_work(self, csi: Driver) -> None:
        made = create(csi, unique("expand"))
        for required in (20 * MIB, 20 * MIB, 15 * MIB):
            found = csi.call("ControllerExpandVolume", volume_id=made.volume_id, capacity_range=size(required))
            assert (found.capacity_bytes, found.node_expansion_required) == (20 * MIB, False)
        shrunk = {"volume_id": made.volume_id, "capacity_range": size(MIB, 15 * MIB)}
        assert csi.refusal("ControllerExpandVolume", **shrunk) == "OUT_OF_RANGE"


class TestNodeService:
    def test_node_get_capabilities_should_return_appropriate_capabilities(self, csi: Driver) -> None:
        assert [one.rpc.type for one in csi.call("NodeGetCapabilities").capabilities] == [2]  # GET_VOLUME_STATS

    def test_node_get_info_should_return_appropriate_values(self, csi: Driver) -> None:
        found = csi.call("NodeGetInfo")
        assert (found.node_id, dict(found.accessible_topology.segments)) == (NODE, {TOPOLOGY: NODE})

    def test_node_publish_volume_should_fail_when_no_volume_id_is_provided(self, csi: Driver) -> None:
        assert csi.refusal("NodePublishVolume") == "INVALID_ARGUMENT"

    def test_node_publish_volume_should_fail_when_no_target_path_is_provided(self, csi: Driver) -> None:
        assert csi.refusal("NodePublishVolume", volume_id="csi-a") == "INVALID_ARGUMENT"

    def test_node_publish_volume_should_fail_when_no_volume_capability_is_provided(self, csi: Driver) -> None:
        assert csi.refusal("NodePublishVolume", volume_id="csi-a", target_path="/t") == "INVALID_ARGUMENT"

    def test_node_publish_volume_should_fail_when_already_mounted_at_a_different_target_path(
        self, csi: Driver, access: str
    ) -> None:
        made = create(csi, unique("single-writer"))
        csi.publish(made.volume_id, csi.directory / "one", capability(access, mode=6))
        fields = {"volume_id": made.volume_id, "volume_capability": capability(access)}
        target = csi.directory / "two"
        assert csi.refusal("NodePublishVolume", target_path=str(target), **fields) == "FAILED_PRECONDITION"
        assert csi.seen(target) == ""

    def test_node_unpublish_volume_should_fail_when_no_volume_id_is_provided(self, csi: Driver) -> None:
        assert csi.refusal("NodeUnpublishVolume") == "INVALID_ARGUMENT"

    def test_node_unpublish_volume_should_fail_when_no_target_path_is_provided(self, csi: Driver) -> None:
        assert csi.refusal("NodeUnpublishVolume", volume_id="csi-a") == "INVALID_ARGUMENT"

    def test_node_unpublish_volume_should_remove_target_path(self, csi: Driver, access: str) -> None:
        made, target = create(csi, unique("unpublish")), csi.directory / "target"
        csi.publish(made.volume_id, target, capability(access))
        assert csi.seen(target) == {"mount": "directory", "block": "socket"}[access]
        for _ in range(2):
            csi.call("NodeUnpublishVolume", volume_id=made.volume_id, target_path=str(target))
            assert csi.seen(target) == ""
            assert made.volume_id not in json.dumps(store(csi, "controller", "list"))

    def test_node_get_volume_stats_should_fail_when_no_volume_id_is_provided(self, csi: Driver) -> None:
        assert csi.refusal("NodeGetVolumeStats", volume_path="some/path") == "INVALID_ARGUMENT"

    def test_node_get_volume_stats_should_fail_when_no_volume_path_is_provided(self, csi: Driver) -> None:
        assert csi.refusal("NodeGetVolumeStats", volume_id="csi-a") == "INVALID_ARGUMENT"

    def test_node_get_volume_stats_should_fail_when_volume_is_not_found(self, csi: Driver) -> None:
        assert csi.refusal("NodeGetVolumeStats", volume_id="csi-a", volume_path="some/path") == "NOT_FOUND"

    def test_node_get_volume_stats_should_fail_when_volume_does_not_exist_on_the_specified_path(
        self, csi: Driver
    ) -> None:
        made = create(csi, unique("stats"))
        csi.publish(made.volume_id, csi.directory / "target", capability())
        fields = {"volume_id": made.volume_id, "volume_path": "some/path"}
        assert csi.refusal("NodeGetVolumeStats", **fields) == "NOT_FOUND"

    @pytest.mark.parametrize("count", [1, 3], ids=["should_work", "should_be_idempotent"])
    def test_node_lifecycle(self, csi: Driver, access: str, count: int) -> None:
        """And a host reads, through what was published, that it was: the pod's QEMU is a client like this one."""
        place = csi.call("NodeGetInfo").accessible_topology
        parameters = {"group": "root", "csi.storage.k8s.io/pvc/name": "disk"}
        made = create(csi, unique("full"), parameters=parameters, accessibility_requirements={"requisite": [place]})
        assert dict(made.volume_context) == {"group": "root"}
        target = csi.directory / "target"
        for _ in range(count):
            csi.publish(made.volume_id, target, capability(access), volume_context=made.volume_context)
        usage = csi.call("NodeGetVolumeStats", volume_id=made.volume_id, volume_path=str(target)).usage
        assert [(one.total, one.unit) for one in usage] == [(10 * MIB, 1)]
        assert csi.refusal("DeleteVolume", volume_id=made.volume_id) == "FAILED_PRECONDITION"
        socket = target / "cntrl" if access == "mount" else target
        assert csi.seen(socket) == "socket"
        with initiator.connect(csi.state.target_dir(made.volume_id)) as controller:
            assert controller.namespace(1).size == 10 * MIB
        for _ in range(count):
            csi.call("NodeUnpublishVolume", volume_id=made.volume_id, target_path=str(target))
        assert csi.seen(target) == ""
        csi.call("DeleteVolume", volume_id=made.volume_id)


def test_a_target_path_with_data_of_others_stays(csi: Driver, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("data")
    csi.call("NodeUnpublishVolume", volume_id="csi-a", target_path=str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "data"
