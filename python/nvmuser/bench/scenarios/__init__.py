"""The measurements that have a command: each sets up its world, measures, and says what it found."""
