"""Specifications: what they declare, and errors that say where."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from nvmuser.errors import NotFoundError, UsageError
from nvmuser.model import spec as specs
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Volume

TEXT = """
version: 1
volumes:
  - name: disk
    size: 10G
  - {name: db, backend: lvol, pool: fast, size: 1G, limits: {iops: 5000}}
  - name: far
    backend: remote
    remote: store
    remote_nsid: 1
pools:
  - {name: fast, base: disk}
snapshots:
  - {name: friday, of: db, pool: fast}
remotes:
  - name: store
    nqn: nqn.2026-11.org.example:store
    paths: [{name: 10.0.0.1}, {name: "::1", port: 4421}]
controllers:
  - name: vm1
    namespaces: [db, far]
"""


def prepare(volume: Volume) -> Volume:
    return volume


def declared(text: str, desired: Desired | None = None, **options: bool) -> tuple[Desired, Change]:
    desired = desired or Desired()
    options = {"prune": False, "wipe": False} | options
    change = specs.difference(desired, specs.parse(text, "spec.yaml"), **options)
    return next_desired(desired, change, prepare), change


def test_everything_can_be_said() -> None:
    desired, _ = declared(TEXT)
    assert sorted(map(str, desired.entries)) == [
        "controller/vm1", "pool/fast", "remote/store", "volume/db", "volume/disk", "volume/far", "volume/friday",
    ]  # fmt: skip
    controller = desired.get(Key("controller", "vm1"))
    assert isinstance(controller, Controller)
    assert [(ns.nsid, ns.volume) for ns in controller.namespaces] == [(1, "db"), (2, "far")]


def test_a_second_time_nothing_changes() -> None:
    desired, _ = declared(TEXT)
    assert declared(TEXT, desired)[1].keys == set()


def test_an_export_declares_the_same() -> None:
    desired, _ = declared(TEXT)
    for text in (specs.dump(specs.export(desired)), json.dumps(specs.export(desired, texts=False))):
        assert declared(text, desired, prune=True)[1].keys == set()
        again, _ = declared(text)
        assert {key: entry.object for key, entry in again.entries.items()} == {
            key: entry.object for key, entry in desired.entries.items()
        }


def test_prune_takes_away_what_is_not_named() -> None:
    desired, _ = declared(TEXT)
    text = "volumes: [{name: disk, size: 20G}]"
    _, change = declared(text, desired, prune=True, wipe=True)
    assert set(change.delete) == set(desired.entries) - {Key("volume", "disk")}
    (update,) = change.update
    assert isinstance(update, Volume)
    assert update.size == 20 << 30
    assert update.uuid


def test_namespaces_keep_their_numbers() -> None:
    desired, _ = declared(TEXT)
    _, change = declared(
        "controllers: [{name: vm1, namespaces: [disk2, far]}]\nvolumes: [{name: disk2, size: 1G}]", desired
    )
    (update,) = change.update
    assert isinstance(update, Controller)
    assert {ns.volume: ns.nsid for ns in update.namespaces} == {"far": 2, "disk2": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("volumes:\n- name: a\n  size: 1X", "spec.yaml:3: volumes[0].size: size '1X': expected a number of bytes"),
        ("volumes:\n- name: a\n  sise: 1G", "spec.yaml:2: volumes[0]: unknown field 'sise'"),
        ("volumes:\n- {name: a, size: 1G}\n- name: b c\n  size: 1G", "spec.yaml:3: volumes[1]: volume name 'b c'"),
        ("volumes:\n- name: a\n  size: 1G\n  thin: maybe", "spec.yaml:4: volumes[0].thin: expected bool, got 'maybe'"),
        (
            "controllers:\n- name: c\n  namespaces:\n  - volume: a\n    nsid: x",
            "spec.yaml:5: controllers[0].namespaces[0].nsid: expected int",
        ),
        (
            "controllers:\n- name: c\n  namespaces:\n  - nsid: 1",
            "spec.yaml:4: controllers[0].namespaces[0]: missing volume",
        ),
        ("volumes:\n- name: a\n  name: b", "spec.yaml:3: volumes[0].name: given twice"),
        (
            "volumes:\n- {name: a, size: 1G}\n- {name: a, size: 1G}",
            "spec.yaml:3: volumes[1]: volume a: declared already at spec.yaml:2",
        ),
        ("disks: []", "spec.yaml:1: disks: unknown section"),
        ("version: 2", "spec.yaml:1: version: this nvmuser knows version 1"),
        ("- a", "spec.yaml:1: expected a mapping"),
        ("volumes: {}", "spec.yaml:1: volumes: expected a list"),
        ("a: [", "spec.yaml:2: did not find"),
        ("volumes: &a\n- *a", "spec.yaml:1: volumes[0][0]: too deep"),
        ("volumes: [{name: &x {q: *x}}]", "too deep"),
        ("volumes: [{[1, 2]: 3}]", "spec.yaml:1: volumes[0]: expected the name of a field"),
        ("volumes: [{name: e, remote_nsid: 017}]", "volumes[0].remote_nsid: expected int, got '017'"),
        ("volumes: [{name: e, remote_nsid: 1:30}]", "volumes[0].remote_nsid: expected int, got '1:30'"),
        ("volumes: [{name: a, size: [1]}]", "volumes[0].size: expected int, got [1]"),
        ("volumes: [null]", "volumes[0]: expected a mapping"),
        ("[" * 5000, "spec.yaml"),
        ("\0", "spec.yaml: "),
        ("volumes:\n- name: a\n  size: 1G\n  limits: {iops: 1500}", "take 2000 or another multiple"),
    ],
)
def test_errors_say_where(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        specs.parse(text, "spec.yaml")


def test_errors_across_objects_say_where_too() -> None:
    spec = specs.parse("volumes: []\ncontrollers:\n- name: c\n  namespaces: [none]", "spec.yaml")
    with pytest.raises(NotFoundError) as caught:
        next_desired(Desired(), specs.difference(Desired(), spec, prune=False, wipe=False), prepare)
    assert str(spec.explain(caught.value)) == "spec.yaml:3: controllers[0]: controller c: there is no volume none"


def test_the_documented_example_is_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "control-plane.md").read_text()
    found = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert found
    desired, _ = declared(found[1])
    assert Key("volume", "db-friday") in desired.entries


@pytest.mark.parametrize(
    "word",
    ["1", "0", "-7", "017", "0x1f", "1_000", "1:30", "3.5", ".inf", "2001-01-01", "yes", "No", "ON", "oFF", "TRUE",
     "null", "~", "", "<<", "=", "a", "c0", "'1'", '"yes"', "!!int 1", "!!str 1", "!!bool yes"],
)  # fmt: skip
def test_words_are_told_apart_as_pyyaml_does(word: str) -> None:
    """It tries all kinds of YAML's for each word, which takes as long as everything else."""
    ours = yaml.compose(f"- {word}", Loader=specs._Loader).value[0]
    theirs = yaml.compose(f"- {word}", Loader=yaml.SafeLoader).value[0]
    assert specs._scalar(ours) == specs._scalar(theirs)
    assert type(specs._scalar(ours)) is type(specs._scalar(theirs))
