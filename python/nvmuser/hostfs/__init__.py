"""This machine as far as volumes and controllers need it: files, locks, sockets, directories and who may use them."""
