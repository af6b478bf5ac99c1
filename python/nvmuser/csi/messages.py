"""The messages of the Container Storage Interface that are used here, as tables.

Names, numbers and types of the fields are those of its version 1 (`csi.proto`); messages that are defined inside others
there have plain names here, which is the same on the wire.
"""

from __future__ import annotations

from nvmuser.protobuf import Tables, classes

PACKAGE = "csi.v1"

_TABLES: Tables = {
    "BoolValue": {"value": (1, "bool")},
    "Kind": {"type": (1, "int32")},
    "GetPluginInfoRequest": {},
    "GetPluginInfoResponse": {"name": (1, "string"), "vendor_version": (2, "string"), "manifest": (3, "map")},
    "GetPluginCapabilitiesRequest": {},
    "PluginCapability": {"service": (1, "Kind"), "volume_expansion": (2, "Kind")},
    "GetPluginCapabilitiesResponse": {"capabilities": (1, "repeated PluginCapability")},
    "ProbeRequest": {},
    "ProbeResponse": {"ready": (1, "BoolValue")},
    "BlockVolume": {},
    "MountVolume": {"fs_type": (1, "string"), "mount_flags": (2, "repeated string")},
    "AccessMode": {"mode": (1, "int32")},
    "VolumeCapability": {"block": (1, "BlockVolume"), "mount": (2, "MountVolume"), "access_mode": (3, "AccessMode")},
    "CapacityRange": {"required_bytes": (1, "int64"), "limit_bytes": (2, "int64")},
    "Topology": {"segments": (1, "map")},
    "TopologyRequirement": {"requisite": (1, "repeated Topology"), "preferred": (2, "repeated Topology")},
    "VolumeContentSource": {"snapshot": (1, "BlockVolume"), "volume": (2, "BlockVolume")},
    "Volume": {
        "capacity_bytes": (1, "int64"),
        "volume_id": (2, "string"),
        "volume_context": (3, "map"),
        "accessible_topology": (5, "repeated Topology"),
    },
    "CreateVolumeRequest": {
        "name": (1, "string"),
        "capacity_range": (2, "CapacityRange"),
        "volume_capabilities": (3, "repeated VolumeCapability"),
        "parameters": (4, "map"),
        "volume_content_source": (6, "VolumeContentSource"),
        "accessibility_requirements": (7, "TopologyRequirement"),
    },
    "CreateVolumeResponse": {"volume": (1, "Volume")},
    "DeleteVolumeRequest": {"volume_id": (1, "string")},
    "DeleteVolumeResponse": {},
    "ValidateVolumeCapabilitiesRequest": {
        "volume_id": (1, "string"),
        "volume_context": (2, "map"),
        "volume_capabilities": (3, "repeated VolumeCapability"),
        "parameters": (4, "map"),
    },
    "Confirmed": {
        "volume_context": (1, "map"),
        "volume_capabilities": (2, "repeated VolumeCapability"),
        "parameters": (3, "map"),
    },
    "ValidateVolumeCapabilitiesResponse": {"confirmed": (1, "Confirmed"), "message": (2, "string")},
    "ListVolumesRequest": {"max_entries": (1, "int32"), "starting_token": (2, "string")},
    "ListEntry": {"volume": (1, "Volume")},
    "ListVolumesResponse": {"entries": (1, "repeated ListEntry"), "next_token": (2, "string")},
    "ControllerGetCapabilitiesRequest": {},
    "ServiceCapability": {"rpc": (1, "Kind")},
    "ControllerGetCapabilitiesResponse": {"capabilities": (1, "repeated ServiceCapability")},
    "ControllerExpandVolumeRequest": {"volume_id": (1, "string"), "capacity_range": (2, "CapacityRange")},
    "ControllerExpandVolumeResponse": {"capacity_bytes": (1, "int64"), "node_expansion_required": (2, "bool")},
    "NodePublishVolumeRequest": {
        "volume_id": (1, "string"),
        "target_path": (4, "string"),
        "volume_capability": (5, "VolumeCapability"),
        "readonly": (6, "bool"),
        "volume_context": (8, "map"),
    },
    "NodePublishVolumeResponse": {},
    "NodeUnpublishVolumeRequest": {"volume_id": (1, "string"), "target_path": (2, "string")},
    "NodeUnpublishVolumeResponse": {},
    "NodeGetVolumeStatsRequest": {"volume_id": (1, "string"), "volume_path": (2, "string")},
    "VolumeUsage": {"available": (1, "int64"), "total": (2, "int64"), "used": (3, "int64"), "unit": (4, "int32")},
    "NodeGetVolumeStatsResponse": {"usage": (1, "repeated VolumeUsage")},
    "NodeGetCapabilitiesRequest": {},
    "NodeGetCapabilitiesResponse": {"capabilities": (1, "repeated ServiceCapability")},
    "NodeGetInfoRequest": {},
    "NodeGetInfoResponse": {
        "node_id": (1, "string"),
        "max_volumes_per_node": (2, "int64"),
        "accessible_topology": (3, "Topology"),
    },
}

SERVICES = {
    "Identity": ("GetPluginInfo", "GetPluginCapabilities", "Probe"),
    "Controller": (
        "CreateVolume", "DeleteVolume", "ValidateVolumeCapabilities", "ListVolumes", "ControllerGetCapabilities",
        "ControllerExpandVolume",
    ),
    "Node": ("NodePublishVolume", "NodeUnpublishVolume", "NodeGetVolumeStats", "NodeGetCapabilities", "NodeGetInfo"),
}  # fmt: skip
"""Service → its calls that are served, each with its `Request` and `Response`."""

CLASSES = classes(PACKAGE, _TABLES)
"""Class of each message, by its name."""

CONTROLLER_SERVICE, ACCESSIBILITY_CONSTRAINTS = 1, 2
"""`PluginCapability.Service.Type`."""
ONLINE = 1
"""`PluginCapability.VolumeExpansion.Type`."""
CREATE_DELETE_VOLUME, LIST_VOLUMES, EXPAND_VOLUME = 1, 3, 9
"""`ControllerServiceCapability.RPC.Type`."""
GET_VOLUME_STATS = 2
"""`NodeServiceCapability.RPC.Type`."""
SINGLE_NODE_WRITER, SINGLE_NODE_SINGLE_WRITER = 1, 6
"""`VolumeCapability.AccessMode.Mode`."""
BYTES = 1
"""`VolumeUsage.Unit`."""
