"""From what is there to what is wanted: look at SPDK, compute the calls between the two, make them, look again."""
