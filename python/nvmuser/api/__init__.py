"""`nvmuser api serve`: REST over the engine, metrics, and a page; a process of its own beside the supervisor.

It has no state: what is wanted, who changed it and who may is in the store, what is, is asked of the supervisor and of
SPDK. Two of them at once are fine, and one may die at any time. Needs the extra `api`.
"""
