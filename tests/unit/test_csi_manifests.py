"""The manifests for Kubernetes: they name what the driver is called, and its command line is understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_documented_commands import resolve

from nvmuser.csi import volumes
from nvmuser.csi.refusal import Refused
from nvmuser.csi.server import NAME

DOCUMENTS = list(yaml.safe_load_all((Path(__file__).parents[2] / "samples/kubernetes.yaml").read_text()))


def of(kind: str) -> dict[str, Any]:
    (found,) = (document for document in DOCUMENTS if document["kind"] == kind)
    return dict(found)


def test_the_driver_is_called_so_everywhere() -> None:
    assert of("CSIDriver")["metadata"]["name"] == NAME
    assert of("StorageClass")["provisioner"] == NAME
    places = of("DaemonSet")["spec"]["template"]["spec"]["volumes"]
    assert places[0]["hostPath"]["path"].endswith(f"/{NAME}")


def test_the_storage_class_is_understood() -> None:
    fields, context = volumes.parameters_of(of("StorageClass")["parameters"])
    assert (fields, context) == ({"backend": "file", "thin": True}, {"group": "kvm"})


def test_the_command_line_is_understood() -> None:
    containers = of("DaemonSet")["spec"]["template"]["spec"]["containers"]
    (driver,) = (container for container in containers if container["name"] == "driver")
    command, context, words = resolve(driver["args"][1:])
    command.parse_args(context, words)
    assert context.params["endpoint"] == "unix:///csi/csi.sock"


@pytest.mark.parametrize("name", ["a" * 60, "Ümlaut", "a b", "a/b", "..", "A"])
def test_any_name_becomes_one_of_ours(name: str) -> None:
    assert volumes.is_ours(volumes.volume_name(name))
    assert volumes.volume_name(name) != volumes.volume_name(f"{name}x")


def test_a_name_that_fits_is_kept() -> None:
    assert volumes.volume_name("pvc-1") == "csi-pvc-1"
    with pytest.raises(Refused):
        volumes.volume_name("")


@pytest.mark.parametrize("volume_id", ["", "mine", "csi-", "csi-../x", "csi-" + "a" * 60])
def test_what_is_no_volume_of_csis(volume_id: str) -> None:
    assert not volumes.is_ours(volume_id)
