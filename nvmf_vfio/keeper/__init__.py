"""State that outlives the endpoint process: descriptors, records, and the channel to the supervisor that holds them."""
