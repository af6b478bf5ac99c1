"""`nvmuser volume`: what namespaces show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click
from rich.table import Table

from nvmuser.ceph.images import named
from nvmuser.cli import sealed
from nvmuser.cli.groups import Group
from nvmuser.cli.options import json_option
from nvmuser.cli.present import console, plain, run, say, say_object
from nvmuser.cli.rename import rename
from nvmuser.cli.volume_images import export, import_
from nvmuser.cli.volume_snapshots import clone, inflate, rollback, seize, snapshot
from nvmuser.cli.volume_stats import stats
from nvmuser.errors import UsageError
from nvmuser.hostfs.space import file_systems
from nvmuser.model import change as changes
from nvmuser.model.backends import BACKENDS
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.identity import device_in_guest
from nvmuser.model.keys import Key
from nvmuser.model.objects import NO_LIMITS, Limits, Volume
from nvmuser.model.sizes import approximate, parse_size, rounding
from nvmuser.paths import StateDir
from nvmuser.reconcile import backends, seizure, space
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.outcome import Outcome
from nvmuser.supervisor import control
from nvmuser.supervisor.remote import Remote


@click.group(cls=Group)
def volume() -> None:
    """Volumes: what a guest sees as namespaces.

    \b
    nvmuser volume create data --size 10G
    nvmuser volume create disk --path /dev/sdb
    nvmuser volume list
    """


@volume.command()
@click.argument("name")
@click.option("--size", help="Such as 512M or 10G. An existing --path has its own.")
@click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    default="file",
    show_default=True,
    help="; ".join(f"{backend.name}: {backend.summary}" for backend in BACKENDS.values()) + ".",
)
@click.option("--path", default="", help="file: use this, or make it. Default: made for you.")
@click.option("--block-size", type=click.Choice(["512", "4096"]), default="512", show_default=True)
@click.option("--volatile", is_flag=True, help="Accept that the data is lost when the target exits.")
@click.option("--pool", default="", help="lvol: the pool.")
@click.option(
    "--thin",
    is_flag=True,
    help="file, lvol: more may be promised than there is space; taken as it is written.",
)
@click.option("--remote", "remote", default="", help="remote: the remote.")
@click.option("--nsid", "remote_nsid", type=int, default=0, help="remote: the number of the namespace there.")
@click.option("--cluster", default="", help="rbd: the Ceph cluster.")
@click.option("--pool-name", default="", help="rbd: the pool there.")
@click.option("--image", default="", help="rbd: the image there. Default: the volume's name.")
@click.option("--create", is_flag=True, help="rbd: make the image, of --size, where there is none.")
@click.option(
    "--seize",
    "seize_",
    is_flag=True,
    help="rbd: keep the client that has the image locked out of the cluster for good.",
)
@click.option("--shared-ok", is_flag=True, help="remote: accept that other hosts may write to it too.")
@click.option("--take-over", default="", metavar="KEY", help="remote: take it from the host with this reservation key.")
@click.option("--member", "members", multiple=True, help="raid1, concat: a volume. May be repeated.")
@click.option("--base", default="", help="crypt, delay, error: the volume below.")
@click.option(
    "--encrypt", is_flag=True, help="Keep it encrypted: NAME.sealed, on the backend given, holds what NAME shows."
)
@click.option("--key-file", default="", metavar="FILE", help="Encrypt, with the key in this file (mode 0600).")
@click.option("--key-command", default="", metavar="CMD", help="Encrypt, with the key that this command prints.")
@click.option("--latency-us", type=int, default=0, help="delay: what each I/O takes longer, in microseconds.")
@json_option
@click.pass_obj
def create(
    state: StateDir,
    /,
    name: str,
    size: str | None,
    block_size: str,
    encrypt: bool,
    seize_: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Declare a volume.

    A key is 64 bytes, or 128 hexadecimal digits. Without --key-file and --key-command, --encrypt makes one and keeps it
    in the state directory.

    \b
    nvmuser volume create data --size 10G
    nvmuser volume create scratch --size 1G --backend malloc --volatile
    nvmuser volume create db --backend lvol --pool fast --size 20G --thin
    nvmuser volume create web --backend rbd --cluster ceph --pool-name vms --image web --size 20G --create
    nvmuser volume create secret --size 10G --encrypt
    nvmuser volume create vault --size 10G --key-command "pass show vault"
    """
    bytes_ = parse_size(size) if size else 0
    if size and not bytes_:
        raise UsageError(f"volume {name}: size 0; say how large it is, such as --size 1G")
    fields |= {"size": bytes_, "block_size": int(block_size)}
    volumes = sealed.pair(name, fields) if sealed.wanted(fields, encrypt) else (Volume(name, **fields),)
    below = volumes[0]
    if seize_:
        seizure.seize(state, replace(below, image=below.image or below.name), control.load(state))
    outcome = run(control.submit(state, Change(create=volumes)))
    text = f"volume {name} created{_rounding(outcome, size, below.name)}"
    say_object(sealed.as_one(outcome, name, below.name), as_json, text)
    if not as_json:
        _note_space(state, name)


@volume.command("list")
@json_option
@click.pass_obj
def list_(state: StateDir, as_json: bool) -> None:
    """Every volume: how large it is, what it takes of its file system or pool, and who uses it."""
    desired = control.load(state)
    actual = run(control.actual(state)) if desired.volumes() else None
    rows = [(volume, _described(volume, desired, actual)) for volume in desired.volumes()]
    if as_json:
        say([data for _, data in rows])
        return
    table = Table("volume", "backend", "size", "allocated", "used by", "where", "")
    for volume, data in rows:
        where = volume.path or volume.pool or volume.remote or volume.base or ", ".join(volume.members)
        where = f"{volume.cluster}: {named(volume)}" if volume.cluster else where
        table.add_row(
            volume.name, volume.backend, *map(_size, _sizes(data)), ", ".join(data["used_by"]), where, _note(volume)
        )
    console().print(table)


@volume.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(state: StateDir, name: str, as_json: bool) -> None:
    """One volume in full. `device` is its name in a guest with udev, whatever number /dev/nvme0nX gives it there."""
    desired = control.load(state)
    volume = _in(desired, name)
    data = _described(volume, desired, run(control.actual(state)))
    if as_json:
        say(data)
        return
    data |= dict(zip(("size", "allocated"), map(_size, _sizes(data)), strict=True))
    for key, value in data.items():
        if key != "kind" and value not in ("", "-", [], None):
            click.echo(f"{key:12} {plain(value)}")
    if note := _note(volume):
        click.echo(f"{'note':12} {note}")


@volume.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Its data may be deleted too.")
@click.option("--keep-file", is_flag=True, help="Its file or image stays, also one that nvmuser made.")
@json_option
@click.pass_obj
def delete(state: StateDir, name: str, yes: bool, keep_file: bool, as_json: bool) -> None:
    """Take a volume away.

    A file that nvmuser made goes with it, wherever it is, but with --keep-file. A file or block device that was there
    before the volume stays as it is. The same holds for images in Ceph.

    \b
    nvmuser volume delete scratch --yes
    nvmuser volume delete data --keep-file
    """
    keys = sealed.with_base(control.load(state), Key("volume", name))
    change = Change(delete=keys, wipe=yes, keep_files=keep_file)
    going = _in(control.load(state), keys[-1].name)
    path = (going.path or named(going)) if keep_file else ""
    what = "file" if going.path else "image"
    outcome = run(control.submit(state, change))
    say_object(outcome, as_json, f"volume {name} deleted" + (f"; its {what} stays: {path}" if path else ""))


@volume.command()
@click.argument("name")
@click.argument("size")
@json_option
@click.pass_obj
def grow(state: StateDir, name: str, size: str, as_json: bool) -> None:
    """Make a volume larger; a running guest sees it at once.

    \b
    nvmuser volume grow data 20G
    """
    bytes_, grown = parse_size(size), sealed.sized(control.load(state), name)
    outcome = run(control.alter(state, lambda desired: replace(_in(desired, grown), size=bytes_)))
    now = _rounding(outcome, size, grown).removeprefix(", ") or size
    say_object(outcome, as_json, f"volume {name} has grown to {now}")
    if not as_json:
        _note_space(state, grown)


@volume.command()
@click.argument("name")
@click.option("--iops", type=int, default=0, help="I/Os a second, in multiples of 1000; 0 for no limit.")
@click.option("--mbps", type=int, default=0, help="MiB a second, reads and writes together.")
@click.option("--read-mbps", type=int, default=0)
@click.option("--write-mbps", type=int, default=0)
@json_option
@click.pass_obj
def limit(state: StateDir, /, name: str, as_json: bool, **limits: int) -> None:
    """Limit a running volume; without options, remove its limits.

    \b
    nvmuser volume limit data --iops 5000 --read-mbps 100
    """
    wanted = Limits(**limits) if any(limits.values()) else NO_LIMITS
    outcome = run(control.alter(state, lambda desired: replace(_in(desired, name), limits=wanted)))
    text = f"limited to {_limits(wanted)}" if wanted != NO_LIMITS else "without limits"
    say_object(outcome, as_json, f"volume {name} is {text}")


def _note_space(state: StateDir, name: str) -> None:
    """Say so where more is promised now than there is, as far as that is known here."""
    if isinstance(state, Remote):
        return
    desired = control.load(state)
    actual = run(control.actual(state)) if _in(desired, name).pool else None
    for found in [*file_systems(desired.volumes()), *(space.pools(desired, actual).values() if actual else ())]:
        if found.short and name in found.volumes:
            click.echo(f"note: {found}")


@volume.command("replace-member")
@click.argument("name")
@click.argument("old")
@click.argument("new")
@click.option("--size", help="Make NEW first, a file volume of this size. Without --size and --path it is there.")
@click.option("--path", default="", help="Make NEW first, on this file or block device.")
@json_option
@click.pass_obj
def replace_member(state: StateDir, name: str, old: str, new: str, size: str | None, path: str, as_json: bool) -> None:
    """Put NEW in the place of OLD in the mirror NAME, and rebuild it. What NEW holds is overwritten.

    OLD may be lost or not; it stays a volume until it is deleted. `nvmuser status` shows how far the rebuild is, while
    guests go on.

    \b
    nvmuser volume replace-member mirror disk1 disk3
    nvmuser volume replace-member mirror disk1 disk3 --path /dev/sdc
    """
    desired = control.load(state)
    mirror = _in(desired, name)
    after = changes.replace_member(mirror, old, new)
    blocks = _in(desired, old).block_size
    create = (Volume(new, size=parse_size(size) if size else 0, path=path, block_size=blocks),) if size or path else ()
    outcome = run(control.submit(state, Change(create=create, update=(after,), expect=(mirror,))))
    if as_json:
        say(next(found for found in outcome.objects if found["name"] == name))
        return
    made = f", and is {grown}" if (grown := _rounding(outcome, size, new).removeprefix(", ")) else ""
    say_object(
        outcome, as_json, f"volume {name}: {new} takes the place of {old}{made}; `nvmuser status` shows its rebuild"
    )
    if create:
        _note_space(state, new)


@volume.command("take-over")
@click.argument("name")
@click.argument("key")
@json_option
@click.pass_obj
def take_over(state: StateDir, name: str, key: str, as_json: bool) -> None:
    """Take the remote volume NAME from the host that writes to it by the reservation KEY.

    KEY is what a refusal and `nvmuser status` print. The other host's writes fail from then on, also if it sleeps now
    and wakes up later.

    \b
    nvmuser volume take-over disk 0x1f2e3d4c5b6a7988
    """
    outcome = run(control.alter(state, lambda desired: replace(_in(desired, name), take_over=key)))
    say_object(outcome, as_json, f"volume {name} {'is to be' if outcome.pending else 'was'} taken over")


volume.add_command(import_)
volume.add_command(export)
volume.add_command(stats)
for command in (snapshot, clone, inflate, rollback, seize):
    volume.add_command(command)
volume.add_command(rename("volume", "data web-data", "; so does its file"))


def _rounding(outcome: Outcome, asked: str | None, name: str) -> str:
    """What to add where a volume cannot have exactly the size that was asked for."""
    made = next(one for one in outcome.objects if one["name"] == name)
    return rounding(int(made.get("size", 0)), asked) if asked else ""


def _in(desired: Desired, name: str) -> Volume:
    volume = desired.get(Key("volume", name))
    assert isinstance(volume, Volume)
    return volume


def _limits(limits: Limits) -> str:
    units = {"iops": "IOPS", "mbps": "MiB/s", "read_mbps": "MiB/s read", "write_mbps": "MiB/s written"}
    return ", ".join(f"{getattr(limits, field)} {unit}" for field, unit in units.items() if getattr(limits, field))


def _note(volume: Volume) -> str:
    if volume.shared_ok:
        return "other hosts may write to it"
    return "data dies with the target" if volume.volatile else ""


def _sizes(data: dict[str, Any]) -> tuple[int | None, int | None]:
    return data["size"], data["allocated"]


def _size(size: int | None) -> str:
    return "-" if size is None else approximate(size)


def _described(volume: Volume, desired: Desired, actual: Actual | None) -> dict[str, Any]:
    """Sizes in bytes; None where no target could be asked."""
    bdev = backends.find(volume, desired, actual) if actual else None
    return volume.to_json() | {
        "volatile": volume.volatile,
        "backend": volume.backend,
        "block_size": volume.block_size,
        "size": volume.size or (bdev.size if bdev else None),
        "allocated": space.allocated_bytes(volume, bdev, actual),
        "device": device_in_guest(volume),
        "used_by": desired.users(volume.key),
    }
