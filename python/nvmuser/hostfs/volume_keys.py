"""Keys of encrypted volumes: where they come from, and whether they are the right ones.

Owns those that nvmuser has made, one file for each volume in the state directory, and the form of all. What a key is
goes to SPDK, and nowhere else: no function here puts it into a message.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shlex
import stat
import subprocess
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from nvmuser.errors import NotFoundError, SetupError, UsageError, reason_of
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir

KEY_BYTES = 64
"""AES-XTS-256 takes two keys of 32 bytes each (IEEE 1619)."""
_COMMAND_S = 30.0
_LONGEST = 4096


@dataclass(frozen=True)
class VolumeKey:
    """The secret of one volume."""

    data: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """From 64 bytes, or 128 hexadecimal digits.

        :raises UsageError: it is neither, or its halves are equal; the text is not in the message.
        """
        data = text
        if len(text) != KEY_BYTES:
            try:
                data = bytes.fromhex(text.decode("ascii"))
            except ValueError:
                data = b""
        if len(data) != KEY_BYTES:
            raise UsageError(f"expected {KEY_BYTES} bytes, or {2 * KEY_BYTES} hexadecimal digits")
        if data[: KEY_BYTES // 2] == data[KEY_BYTES // 2 :]:
            raise UsageError("both halves of it are the same, with which AES-XTS is not secure")
        return cls(data)

    @property
    def halves(self) -> tuple[str, str]:
        """In hexadecimal, for SPDK: the key of the data and that of the tweak."""
        return self.data[: KEY_BYTES // 2].hex(), self.data[KEY_BYTES // 2 :].hex()

    def check(self, volume: str) -> str:
        """What tells whether a key is that of a volume, and nothing else of it.

        :param volume: UUID.
        """
        return hmac.new(self.data, f"nvmuser key of {volume}".encode(), hashlib.sha256).hexdigest()[:32]


def prepare(volume: Volume) -> Volume:
    """A declared encrypted volume with what its key is recognised by later. Nothing is made yet.

    :raises UsageError: its key cannot be had, or is not the one that it says.
    """
    if volume.backend != "crypt":
        return volume
    volume = replace(volume, uuid=volume.uuid or str(uuid.uuid4()))
    if not (volume.key_file or volume.key_command):
        return volume
    try:
        check = _given(volume).check(volume.uuid)
    except (NotFoundError, SetupError, UsageError) as error:
        raise UsageError(f"{volume.key.words}: {error}") from None
    if volume.key_check not in ("", check):
        raise UsageError(f"{volume.key.words}: {_source(volume)} is not its key")
    return replace(volume, key_check=check)


def make(volume: Volume, state: StateDir) -> None:
    """The key of a new volume, where none was given: on the disk when this returns. One that is there stays.

    :raises SetupError: it cannot be kept.
    """
    path = state.volume_key(volume.uuid)
    if volume.key_file or volume.key_command or path.exists():
        return
    keep(volume, VolumeKey(secrets.token_bytes(KEY_BYTES)), state)


def keep(volume: Volume, key: VolumeKey, state: StateDir) -> None:
    """Have a key be that of a volume which is made next: it is on the disk when this returns.

    :raises SetupError: it cannot be kept.
    """
    path = state.volume_key(volume.uuid)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(f"{key.data.hex()}\n{key.check(volume.uuid)}\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        _sync(path.parent)
        _sync(path.parent.parent)
    except OSError as error:
        raise SetupError(f"{path}: the key of a volume cannot be kept: {error.strerror}") from error


def load(volume: Volume, state: StateDir) -> VolumeKey:
    """The key of a volume, which is checked to be the one that its data was written with.

    :raises NotFoundError: it is missing. :raises SetupError: it is another, or cannot be had.
    """
    if volume.key_file or volume.key_command:
        try:
            key = _given(volume)
        except UsageError as error:
            raise SetupError(str(error)) from None
        if not hmac.compare_digest(key.check(volume.uuid), volume.key_check):
            raise SetupError(f"{_source(volume)} is another key than the one that its data was written with")
        return key
    path = state.volume_key(volume.uuid)
    try:
        text, _, check = _read(path).strip().partition(b"\n")
        key = VolumeKey.parse(text)
    except UsageError as error:
        raise SetupError(f"{path}: damaged: {error}") from None
    if not hmac.compare_digest(key.check(volume.uuid).encode(), check):
        raise SetupError(f"{path}: damaged, or the key of another volume")
    return key


def remove(volume: Volume, state: StateDir) -> None:
    """Forget the key that was made for a volume; its data cannot be read any more. Nothing happens if there is none.

    :raises SetupError: it cannot be removed.
    """
    path = state.volume_key(volume.uuid)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from error


def _source(volume: Volume) -> str:
    return f"key_file {volume.key_file}" if volume.key_file else "what its key_command prints"


def _given(volume: Volume) -> VolumeKey:
    """From the file or the command that a person has named.

    :raises NotFoundError: it is missing. :raises SetupError: it cannot be had. :raises UsageError: it is no key.
    """
    text = _read(Path(volume.key_file)) if volume.key_file else _printed(volume.key_command)
    try:
        # A file of 64 bytes may end in one that looks like the end of a line.
        return VolumeKey.parse(text if len(text) == KEY_BYTES else text.rstrip(b"\r\n"))
    except UsageError as error:
        raise UsageError(f"{_source(volume)}: {error}") from None


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise UsageError(f"{path}: it is no file")
            if info.st_uid not in (0, os.geteuid()):
                raise UsageError(f"{path}: it belongs to user {info.st_uid}: chown {os.geteuid()} {path}")
            if info.st_mode & 0o077:
                raise UsageError(f"{path}: others may read the key: chmod 600 {path}")
            return file.read(_LONGEST)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: its key is missing, without which it cannot be read") from None
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from error


def _printed(command: str) -> bytes:
    """What a command prints on its standard output; of the rest only the exit status is passed on."""
    try:
        argv = shlex.split(command)
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_S, check=False)
    except (OSError, ValueError) as error:
        raise SetupError(f"key_command: {reason_of(error)}") from None
    except subprocess.TimeoutExpired:
        raise SetupError(f"key_command: has not ended within {_COMMAND_S:g} s") from None
    if done.returncode:
        raise NotFoundError(f"key_command: it failed with exit status {done.returncode}")
    return done.stdout[:_LONGEST]


def _sync(directory: Path) -> None:
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
