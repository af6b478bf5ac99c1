"""A client of etcd's public API (version 3) over `grpc.aio`: what a fleet needs of it, and no more."""
