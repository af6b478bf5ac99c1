"""The messages of etcd's API that the client uses, as tables, from which protobuf's runtime makes classes.

The names, numbers and types of the fields are those of etcd's public API, version 3 (etcd.io, `api/etcdserverpb/
rpc.proto` and `api/mvccpb/kv.proto`; the same from etcd 3.4 to 3.6). Only these are here; protobuf keeps others
unread. A `oneof` is written as plain fields: on the wire it is the same, and one of them is set.
"""

from __future__ import annotations

from nvmuser.protobuf import Tables, classes

_PACKAGE = "nvmuser.etcd"

_TABLES: Tables = {
    "KeyValue": {
        "key": (1, "bytes"),
        "create_revision": (2, "int64"),
        "mod_revision": (3, "int64"),
        "version": (4, "int64"),
        "value": (5, "bytes"),
        "lease": (6, "int64"),
    },
    "Event": {"type": (1, "int32"), "kv": (2, "KeyValue"), "prev_kv": (3, "KeyValue")},
    "ResponseHeader": {"cluster_id": (1, "uint64"), "member_id": (2, "uint64"), "revision": (3, "int64")},
    "RangeRequest": {
        "key": (1, "bytes"),
        "range_end": (2, "bytes"),
        "limit": (3, "int64"),
        "revision": (4, "int64"),
        "sort_order": (5, "int32"),
        "keys_only": (8, "bool"),
        "count_only": (9, "bool"),
    },
    "RangeResponse": {
        "header": (1, "ResponseHeader"),
        "kvs": (2, "repeated KeyValue"),
        "more": (3, "bool"),
        "count": (4, "int64"),
    },
    "PutRequest": {"key": (1, "bytes"), "value": (2, "bytes"), "lease": (3, "int64")},
    "PutResponse": {"header": (1, "ResponseHeader")},
    "DeleteRangeRequest": {"key": (1, "bytes"), "range_end": (2, "bytes")},
    "DeleteRangeResponse": {"header": (1, "ResponseHeader"), "deleted": (2, "int64")},
    "RequestOp": {
        "request_range": (1, "RangeRequest"),
        "request_put": (2, "PutRequest"),
        "request_delete_range": (3, "DeleteRangeRequest"),
    },
    "ResponseOp": {
        "response_range": (1, "RangeResponse"),
        "response_put": (2, "PutResponse"),
        "response_delete_range": (3, "DeleteRangeResponse"),
    },
    "Compare": {
        "result": (1, "int32"),
        "target": (2, "int32"),
        "key": (3, "bytes"),
        "version": (4, "int64"),
        "create_revision": (5, "int64"),
        "mod_revision": (6, "int64"),
        "value": (7, "bytes"),
    },
    "TxnRequest": {
        "compare": (1, "repeated Compare"),
        "success": (2, "repeated RequestOp"),
        "failure": (3, "repeated RequestOp"),
    },
    "TxnResponse": {
        "header": (1, "ResponseHeader"),
        "succeeded": (2, "bool"),
        "responses": (3, "repeated ResponseOp"),
    },
    "CompactionRequest": {"revision": (1, "int64"), "physical": (2, "bool")},
    "CompactionResponse": {"header": (1, "ResponseHeader")},
    "WatchCreateRequest": {
        "key": (1, "bytes"),
        "range_end": (2, "bytes"),
        "start_revision": (3, "int64"),
        "fragment": (8, "bool"),
    },
    "WatchRequest": {"create_request": (1, "WatchCreateRequest")},
    "WatchResponse": {
        "header": (1, "ResponseHeader"),
        "watch_id": (2, "int64"),
        "created": (3, "bool"),
        "canceled": (4, "bool"),
        "compact_revision": (5, "int64"),
        "cancel_reason": (6, "string"),
        "fragment": (7, "bool"),
        "events": (11, "repeated Event"),
    },
    "LeaseGrantRequest": {"TTL": (1, "int64"), "ID": (2, "int64")},
    "LeaseGrantResponse": {"header": (1, "ResponseHeader"), "ID": (2, "int64"), "TTL": (3, "int64")},
    "LeaseRevokeRequest": {"ID": (1, "int64")},
    "LeaseRevokeResponse": {"header": (1, "ResponseHeader")},
    "LeaseKeepAliveRequest": {"ID": (1, "int64")},
    "LeaseKeepAliveResponse": {"header": (1, "ResponseHeader"), "ID": (2, "int64"), "TTL": (3, "int64")},
    "StatusRequest": {},
    "StatusResponse": {
        "header": (1, "ResponseHeader"),
        "version": (2, "string"),
        "dbSize": (3, "int64"),
        "leader": (4, "uint64"),
    },
}

CLASSES = classes(_PACKAGE, _TABLES)
"""Class of each message, by its name."""

PUT, DELETE = 0, 1
"""`Event.type`."""
EQUAL = 0
"""`Compare.result`."""
BY_CREATE, BY_MOD, BY_VALUE = 1, 2, 3
"""`Compare.target`."""
DESCENDING = 2
"""`RangeRequest.sort_order`; the default target of the order is the key."""
