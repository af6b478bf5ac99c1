"""The measurements that have a command: each sets up what it needs, measures, and returns its results."""
