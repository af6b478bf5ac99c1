"""One measurement: fio and what it reports, CPU time, the machine around it, statistics."""
