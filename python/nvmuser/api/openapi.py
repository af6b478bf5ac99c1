"""The OpenAPI 3.1 document, made from the endpoints and the model's schemas. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nvmuser import __version__
from nvmuser.api import schemas
from nvmuser.api.problems import MEDIA_TYPE, title
from nvmuser.api.routing import Endpoint, Parameter
from nvmuser.model.names import NAME

_PLACE = re.compile(r"\{(\w+)\}")
_ALWAYS = (400, 401, 403, 429)
_ONE = (404,)
_CHANGE = (409, 412, 413, 415, 503, 507)
_NAMES = {"type": "string", "pattern": f"^({NAME})$"}


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nvmuser",
            "version": __version__,
            "description": "NVMe controllers for virtual machines: what is declared on one host, and how it fares.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.components(),
            "responses": {str(status): _refusal(status) for status in sorted({*_ALWAYS, *_ONE, *_CHANGE})},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`nvmuser token create`"},
                "certificate": {"type": "mutualTLS", "description": "`nvmuser token create --certificate`"},
            },
        },
        "security": [{"token": []}, {"certificate": []}],
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "tags": [endpoint.path.split("/")[2] if endpoint.path.startswith("/v1/") else "service"],
        "parameters": [*map(_in_path, _PLACE.findall(endpoint.path)), *map(_parameter, endpoint.parameters)],
        "responses": dict(_responses(endpoint)),
        "x-role": endpoint.role or None,
    }
    if not endpoint.role:
        found["security"] = []
    if endpoint.body is not None:
        media = {"application/json": {"schema": endpoint.body}}
        found["requestBody"] = {"required": True, "content": media}
    return found


def _in_path(name: str) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 0} if name == "id" else _NAMES
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _parameter(one: Parameter) -> dict[str, Any]:
    # A text of the query has one character or more; an empty header counts as none.
    extra: Mapping[str, Any] = {"minLength": 1} if one.type == "string" and one.where == "query" else {}
    schema = {"type": one.type, **extra, **one.rules}
    return {"name": one.name, "in": one.where, "required": False, "description": one.description, "schema": schema}


def _responses(endpoint: Endpoint) -> Iterable[tuple[str, dict[str, Any]]]:
    for status, schema in endpoint.results.items():
        media: dict[str, Any] = {endpoint.media_type if status == 200 else "application/json": {"schema": schema}}
        yield str(status), {"description": _description(status), "content": media}
    refusals = set(_ALWAYS if endpoint.role else (429,))
    refusals |= set(_CHANGE) if endpoint.method != "GET" else {503}
    refusals |= set(_ONE) if "{" in endpoint.path or endpoint.method != "GET" else set()
    for status in sorted(refusals):
        yield str(status), {"$ref": f"#/components/responses/{status}"}


def _refusal(status: int) -> dict[str, Any]:
    return {"description": title(status), "content": {MEDIA_TYPE: {"schema": schemas.ref("problem")}}}


def _description(status: int) -> str:
    return {200: "Done.", 201: "Made.", 202: "Begun: an operation, which goes on."}[status]
