"""Measuring: fio in a guest, what it cost the host, results that can be compared, and reports of them.

`fio` describes jobs and `fio_output` reads what fio wrote; `runner` runs jobs in a guest that somebody else
started; `demo` is the whole chain on a deployment of its own; `session` measures in interleaved rounds, peers
against each other for `compare` and variants of ours for `tune`, with `stats` and `analysis` saying how sure
the numbers are; `result` and `records` own the files, `report`, `plots` and `table` show them.
"""
