"""State of a guest's controller, and its replay to a new target."""
