"""The published JSON Schema: it takes all that the model takes, and checks what the model checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from json_schema import valid

from nvmuser.errors import UsageError
from nvmuser.model import spec as specs
from nvmuser.model import spec_schema

SCHEMA = spec_schema.schema()

names = st.from_regex(r"\A[a-zA-Z0-9._-]{0,70}\Z")
addresses = st.sampled_from(["10.0.0.1", "fe80::1%eth0", "::1", "Store-A.Example.org", "localhost", "", "x" * 80])
sizes = st.one_of(
    st.integers(-5, 1 << 70),
    st.sampled_from(["20Gi", "1.5G", "512M", "4096", "1X", "", "1 gib", " 1G ", "1.5", "-1", "0.25Ti"]),
)
nqns = st.one_of(
    st.just("nqn.2026-11.org.x:y"),
    st.sampled_from(["", "hello", "nqn.2014-08.org.nvmexpress:uuid:0", "nqn.2026-11.org.x:" + "y" * 220]),
)
flags = st.booleans()
numbers = st.one_of(st.integers(-2, 40), st.sampled_from([1000, 1500, 65535, 65536]))


def mapping(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"name": names}, optional=fields)


SECTIONS = {
    "volumes": mapping(
        size=sizes,
        backend=st.sampled_from(["file", "null", "lvol", "raid1", "remote", "delay", "uring"]),
        block_size=st.sampled_from([512, 520, 4096]),
        volatile=flags,
        pool=names,
        remote=names,
        remote_nsid=numbers,
        base=names,
        latency_us=numbers,
        members=st.lists(names, max_size=3),
        limits=st.fixed_dictionaries({}, optional={"iops": numbers, "mbps": numbers}),
    ),
    "pools": mapping(base=names, cluster_size=sizes),
    "snapshots": mapping(of=names, pool=names),
    "remotes": mapping(
        nqn=nqns, paths=st.lists(st.fixed_dictionaries({"name": addresses}, optional={"port": numbers}), max_size=2)
    ),
    "controllers": mapping(
        nqn=nqns,
        mode=st.sampled_from(["0660", "0777", "660"]),
        serial=st.text(max_size=25),
        namespaces=st.lists(
            st.one_of(names, st.fixed_dictionaries({"volume": names}, optional={"nsid": numbers})), max_size=3
        ),
    ),
}


def documents() -> st.SearchStrategy[dict[str, Any]]:
    sections = {name: st.lists(one, max_size=1) for name, one in SECTIONS.items()}
    target = st.fixed_dictionaries(
        {}, optional={"profile": st.sampled_from(["eco", "fast"]), "cores": st.lists(numbers, max_size=3)}
    )
    return st.fixed_dictionaries({}, optional=sections | {"target": target})


def accepted(document: dict[str, Any]) -> bool:
    try:
        specs.parse(json.dumps(document), "spec.json")
    except UsageError:
        return False
    return True


@given(documents())
@example({"remotes": [{"name": "r", "nqn": "nqn.2026-11.org.x:y", "paths": [{"name": "fe80::1", "port": 4420}]}]})
@example({"remotes": [{"name": "r", "nqn": "nqn.2026-11.org.x:y", "paths": [{"name": "Store.Example.org"}]}]})
@example({"volumes": [{"name": "a", "size": "20Gi"}, {"name": "pvc-" + "0" * 36, "size": "1.5G"}]})
def test_what_the_model_takes_the_schema_takes(document: dict[str, Any]) -> None:
    if accepted(document):
        assert valid(document, SCHEMA)


@pytest.mark.parametrize("section", SECTIONS)
@given(data=st.data())
def test_what_the_schema_refuses_the_model_refuses(section: str, data: st.DataObject) -> None:
    """One object at a time, so that a fault in one does not hide another's."""
    document = {section: [data.draw(SECTIONS[section])]}
    assert valid(document, SCHEMA) or not accepted(document)


@given(names)
def test_names_are_judged_alike(name: str) -> None:
    document = {"volumes": [{"name": name, "size": "1M"}]}
    assert valid(document, SCHEMA) == accepted(document)


@given(sizes)
@example("1G\n")
def test_sizes_are_judged_alike(size: int | str) -> None:
    """But for a size that is too large or a fraction of a byte, which the schema cannot say."""
    document = {"volumes": [{"name": "a", "path": "/x", "size": size, "block_size": 512}]}
    if valid(document, SCHEMA) != accepted(document):
        assert valid(document, SCHEMA)
        assert size == "1.5" or (isinstance(size, int) and (size > 1 << 62 or size % 512))


def test_the_published_schema_is_the_one_of_the_model() -> None:
    published = Path(__file__).parents[2] / "docs" / "spec.schema.json"
    assert json.loads(published.read_text()) == SCHEMA


def test_every_field_is_known() -> None:
    def known(section: str) -> dict[str, Any]:
        found: dict[str, Any] = SCHEMA["properties"][section]["items"]["properties"]
        return found

    assert {"size", "limits", "members", "pool"} <= set(known("volumes"))
    assert "of" in known("snapshots")
    assert "owned" not in known("volumes")
