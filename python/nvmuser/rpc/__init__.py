"""JSON-RPC 2.0 over UNIX sockets, as SPDK speaks it: a pipelined client, and a server."""

from nvmuser.rpc.client import Client
from nvmuser.rpc.server import Server

__all__ = ["Client", "Server"]
