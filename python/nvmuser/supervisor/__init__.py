"""The SPDK process and what keeps it alive: the supervisor, its children, and how a CLI speaks to it."""
