"""Ceph, as far as volumes in it need it: what librados and librbd are asked, in a process of its own.

raw: those of their functions that are used (ctypes); worker: the process; asking: which process is asked, one for each
set of questions or one that stays connected; images: what it is asked, and what its answers mean. The target opens
images by SPDK's own module.
"""
