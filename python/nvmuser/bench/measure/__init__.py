"""One measurement: fio and what it says, CPU time, the machine around it, statistics."""
