"""What a person declares, without I/O: objects, what they mean together, changes, specification files."""
