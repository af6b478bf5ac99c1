"""librados and librbd by ctypes: the few functions that `worker` needs, each checked for its error.

Nothing is compiled: both have had these since Ceph 16, and keep their ABI. Signatures: rados/librados.h and
rbd/librbd.h.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_LOCKED = 4096
"""Bytes for the texts of an image's locks: it has one at most."""

_SMALL = 4096

Function = Callable[..., int]
Locker = tuple[str, str, str]


class _SnapInfo(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint64), ("size", ctypes.c_uint64), ("name", ctypes.c_char_p))


@functools.cache
def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(name)


def _call(library: str, name: str, *arguments: Any) -> int:
    """:raises OSError: the function reports an error."""
    function: Function = getattr(_library(library), name)
    result = function(*arguments)
    if result < 0:
        raise OSError(-result, os.strerror(-result), name)
    return result


rados = functools.partial(_call, "librados.so.2")
rbd = functools.partial(_call, "librbd.so.1")


@contextmanager
def connected(user: str, conf: str, options: Mapping[str, str]) -> Iterator[ctypes.c_void_p]:
    """A connection to a cluster's monitors.

    :raises OSError: ETIMEDOUT: none answers; EACCES, EPERM: they do not know the user, or not with this key; ENOENT:
        the keyring is missing.
    """
    cluster = ctypes.c_void_p()
    rados("rados_create", ctypes.byref(cluster), user.encode())
    try:
        rados("rados_conf_read_file", cluster, conf.encode() if conf else None)
        for name, value in options.items():
            rados("rados_conf_set", cluster, name.encode(), value.encode())
        rados("rados_connect", cluster)
        yield cluster
    finally:
        _library("librados.so.2").rados_shutdown(cluster)


def command(cluster: ctypes.c_void_p, words: Mapping[str, str]) -> bytes:
    """What a monitor answers.

    :raises OSError: ETIMEDOUT: none does; EACCES: this user may not.
    """
    text = (ctypes.c_char_p * 1)(json.dumps(words).encode())
    out, why = ctypes.c_void_p(), ctypes.c_void_p()
    length, why_length = ctypes.c_size_t(), ctypes.c_size_t()
    results = (ctypes.byref(out), ctypes.byref(length), ctypes.byref(why), ctypes.byref(why_length))
    try:
        rados("rados_mon_command", cluster, text, ctypes.c_size_t(1), None, ctypes.c_size_t(0), *results)
        return ctypes.string_at(out, length.value)
    finally:
        for buffer in (out, why):
            if buffer:
                _library("librados.so.2").rados_buffer_free(buffer)


@contextmanager
def pool(cluster: ctypes.c_void_p, name: str) -> Iterator[ctypes.c_void_p]:
    """:raises OSError: ENOENT: there is no such pool."""
    context = ctypes.c_void_p()
    rados("rados_ioctx_create", cluster, name.encode(), ctypes.byref(context))
    try:
        yield context
    finally:
        _library("librados.so.2").rados_ioctx_destroy(context)


@contextmanager
def image(context: ctypes.c_void_p, name: str, *, writable: bool = False) -> Iterator[ctypes.c_void_p]:
    """:raises OSError: ENOENT: there is no such image; EPERM: this user may not."""
    opened = ctypes.c_void_p()
    how = "rbd_open" if writable else "rbd_open_read_only"
    rbd(how, context, name.encode(), ctypes.byref(opened), None)
    try:
        yield opened
    finally:
        _library("librbd.so.1").rbd_close(opened)


def number(function: str, opened: ctypes.c_void_p) -> int:
    """What a function of an image puts into an uint64_t: its size, its features."""
    value = ctypes.c_uint64()
    rbd(function, opened, ctypes.byref(value))
    return value.value


def lockers(opened: ctypes.c_void_p) -> list[Locker]:
    """Client, cookie and address of the holder of the image's lock."""
    return _lockers(functools.partial(rbd, "rbd_list_lockers", opened))


def object_lockers(context: ctypes.c_void_p, name: str, lock: str) -> list[Locker]:
    """Of those that hold a lock of an object; none where it does not exist."""
    try:
        return _lockers(functools.partial(rados, "rados_list_lockers", context, name.encode(), lock.encode()))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return []


def _lockers(listed: Callable[..., int]) -> list[Locker]:
    lengths = [ctypes.c_size_t(_LOCKED) for _ in range(4)]
    tag, *texts = (ctypes.create_string_buffer(_LOCKED) for _ in range(4))
    exclusive = ctypes.c_int()
    arguments: list[Any] = [tag, ctypes.byref(lengths[0])]
    for text, length in zip(texts, lengths[1:], strict=True):
        arguments += [text, ctypes.byref(length)]
    count = listed(ctypes.byref(exclusive), *arguments)
    clients, cookies, addresses = (text.raw.split(b"\0")[:count] for text in texts)
    return [
        (client.decode(), cookie.decode(), address.decode())
        for client, cookie, address in zip(clients, cookies, addresses, strict=True)
    ]


def content(context: ctypes.c_void_p, name: str) -> bytes:
    """What a small object holds, at most 4 KiB.

    :raises OSError: ENOENT: there is none.
    """
    buffer = ctypes.create_string_buffer(_SMALL)
    size = rados("rados_read", context, name.encode(), buffer, ctypes.c_size_t(_SMALL), ctypes.c_uint64(0))
    return buffer.raw[:size]


def snapshots(opened: ctypes.c_void_p) -> list[str]:
    """Names of an image's snapshots."""
    room = ctypes.c_int(64)
    while True:
        found = (_SnapInfo * room.value)()
        try:
            count = rbd("rbd_snap_list", opened, found, ctypes.byref(room))
        except OSError as error:
            if error.errno != errno.ERANGE:
                raise
            continue
        names = [found[index].name.decode() for index in range(count)]
        if count:
            _library("librbd.so.1").rbd_snap_list_end(found)
        return names


@contextmanager
def image_options(values: Mapping[int, int]) -> Iterator[ctypes.c_void_p]:
    """How a new image is to be (RBD_IMAGE_OPTION_*)."""
    options = ctypes.c_void_p()
    _library("librbd.so.1").rbd_image_options_create(ctypes.byref(options))
    try:
        for option, value in values.items():
            rbd("rbd_image_options_set_uint64", options, option, ctypes.c_uint64(value))
        yield options
    finally:
        _library("librbd.so.1").rbd_image_options_destroy(options)
