"""What a request brings: JSON, read strictly, and the object that it declares.

The same rules, and the same words where they are broken, as in a specification file (`nvmuser.model.spec`).
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from nvmuser.api.problems import Problem, pointer
from nvmuser.errors import UsageError
from nvmuser.model.codec import FieldError
from nvmuser.model.objects import AnyObject, object_from_json
from nvmuser.model.sizes import SIZE_FIELDS, parse_size
from nvmuser.model.spec import NOT_FOR_PEOPLE, long_form

DEEPEST = 16


def parse(text: bytes) -> Any:
    """JSON.

    :raises Problem: it is none, or has what no object of ours has: numbers that are none, characters that are none.
    """
    try:
        found = json.loads(text, parse_constant=_refuse)
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise Problem(400, "usage", "the body is nested too deeply") from None
    except ValueError as error:
        raise Problem(400, "usage", f"the body is not JSON in UTF-8: {error}") from None
    _check(found, ())
    return found


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _check(value: Any, path: tuple[str | int, ...]) -> None:
    """:raises Problem: it is deeper than anything that is read here, or a text has a null character."""
    if len(path) > DEEPEST:
        raise Problem(400, "usage", "the body is nested too deeply", pointer(path[:3]))
    if isinstance(value, str) and "\0" in value:
        raise Problem(400, "usage", "a text has a null character", pointer(path))
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, child in children:
        _check(child, (*path, step))


def mapping(body: Any) -> dict[str, Any]:
    """:raises Problem: it is no JSON object."""
    if not isinstance(body, dict):
        raise Problem(400, "usage", "the body is not a JSON object")
    return body


def declared(section: str, kind: str, body: Any, name: str = "") -> AnyObject:
    """The object that a body declares.

    :param section: as a specification has it: `volumes`, `snapshots`.
    :param name: by which it was addressed; the body need not repeat it.
    :raises Problem: it declares another.
    :raises UsageError: it declares none.
    """
    data = dict(mapping(body))
    for field in NOT_FOR_PEOPLE:
        if field in data:
            raise Problem(400, "usage", f"{kind}.{field}: not for a specification", pointer((field,)))
    if name and data.setdefault("name", name) != name:
        raise Problem(400, "usage", f"{kind} {name}: the body has another name; rename it first", "/name")
    for field in SIZE_FIELDS:
        if isinstance(data.get(field), str):
            data[field] = _size(kind, field, data[field])
        elif field in data and isinstance(data[field], int) and data[field] > 1 << 62:
            raise Problem(400, "usage", f"{kind}.{field}: {data[field]} is too large", pointer((field,)))
    one = object_from_json({**long_form(section, data), "kind": kind})
    one.check_declared()
    return one


def _size(kind: str, field: str, text: str) -> int:
    try:
        return parse_size(text)
    except UsageError as error:
        raise FieldError(kind, (field,), str(error)) from None


def patched(before: Any, patch: Any) -> Any:
    """`before` with a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    after = dict(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            after.pop(key, None)
        else:
            after[key] = patched(after.get(key), value)
    return after
