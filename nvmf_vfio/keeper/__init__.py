"""What outlives the endpoint process: descriptors, the record, the way to its keeper."""
