"""The messages of SPDK's Storage Management Agent, as tables, from which protobuf's runtime makes classes.

Names, numbers and types of the fields are those of SPDK 26.01's `proto/*.proto`, of which only devices of the type
`nvme` are served here: protobuf keeps others unread. Members of a `oneof` are plain fields, which is the same on the
wire. `tests/integration/test_sma.py` drives all of it with SPDK's own client.
"""

from __future__ import annotations

from nvmuser.protobuf import Tables, classes

_PACKAGE = "sma"
SERVICE = "sma.StorageManagementAgent"

_LIMITS = ("rd_iops", "wr_iops", "rw_iops", "rd_bandwidth", "wr_bandwidth", "rw_bandwidth")

TABLES: Tables = {
    "NvmeParameters": {"physical_id": (1, "uint32"), "virtual_id": (2, "uint32")},
    "OtherParameters": {},
    "Address": {"trtype": (1, "string"), "traddr": (2, "string"), "trsvcid": (3, "string")},
    "VolumeDiscoveryParameters": {"discovery_endpoints": (1, "repeated Address")},
    "VolumeConnectionParameters": {
        "subnqn": (1, "string"),
        "hostnqn": (2, "string"),
        "discovery": (3, "VolumeDiscoveryParameters"),
    },
    "VolumeCryptoParameters": {
        "key": (1, "bytes"),
        "key2": (2, "bytes"),
        "cipher": (3, "int32"),
        "tweak_mode": (4, "int32"),
    },
    "VolumeParameters": {
        "volume_id": (1, "bytes"),
        "nvmf": (2, "VolumeConnectionParameters"),
        "crypto": (3, "VolumeCryptoParameters"),
    },
    "CreateDeviceRequest": {
        "volume": (1, "VolumeParameters"),
        "nvme": (2, "NvmeParameters"),
        "virtio_blk": (3, "OtherParameters"),
        "nvmf_tcp": (4, "OtherParameters"),
    },
    "CreateDeviceResponse": {"handle": (1, "string")},
    "DeleteDeviceRequest": {"handle": (1, "string")},
    "DeleteDeviceResponse": {},
    "AttachVolumeRequest": {"volume": (1, "VolumeParameters"), "device_handle": (2, "string")},
    "AttachVolumeResponse": {},
    "DetachVolumeRequest": {"volume_id": (1, "bytes"), "device_handle": (2, "string")},
    "DetachVolumeResponse": {},
    "QosLimit": {name: (number, "uint64") for number, name in enumerate(_LIMITS, 1)},
    "SetQosRequest": {"device_handle": (1, "string"), "volume_id": (2, "bytes"), "maximum": (3, "QosLimit")},
    "SetQosResponse": {},
    "GetQosCapabilitiesRequest": {"device_type": (1, "int32")},
    "QosCapabilities": {name: (number, "bool") for number, name in enumerate(_LIMITS, 1)},
    "GetQosCapabilitiesResponse": {
        "max_device_caps": (1, "QosCapabilities"),
        "max_volume_caps": (2, "QosCapabilities"),
    },
}
CALLS = ("CreateDevice", "DeleteDevice", "AttachVolume", "DetachVolume", "SetQos", "GetQosCapabilities")
"""Of the service; each takes its `Request`, and is answered with its `Response`."""

NVME = 1
"""`DeviceType`."""
AES_XTS = 1
"""`VolumeCryptoParameters.Cipher`."""
UNCHANGED = (1 << 64) - 1
"""A limit that stays as it is."""


CLASSES = classes(_PACKAGE, TABLES)
"""Class of each message, by its name."""
