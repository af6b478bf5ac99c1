"""vfio-user on the wire: messages, descriptors that travel with them, the socket."""
