"""What is remembered of a guest's controller, and how a new target learns it."""
