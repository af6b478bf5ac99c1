"""What a person declares, without I/O: objects, the rules across them, changes, specification files."""
