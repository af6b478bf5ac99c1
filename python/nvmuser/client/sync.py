"""The client without asyncio."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from nvmuser.client import answers
from nvmuser.client.answers import Event, Object, Operation

_PAGE = 500


class Client:
    """Of one host's API. A context manager.

    :param url: `https://host:8460`, or `unix:PATH`.
    :param token: as `nvmuser token create` has printed it; empty where a certificate or a UNIX socket will do.
    :param tls: how the host is verified, and by what certificate this client is known; None: the system's CAs.
    :param timeout: seconds for one answer.
    """

    def __init__(self, url: str, token: str = "", *, tls: ssl.SSLContext | None = None, timeout: float = 600.0) -> None:
        self._url = url
        base, uds = answers.settings(url)
        transport = httpx.HTTPTransport(uds=uds) if uds else httpx.HTTPTransport(verify=tls or True)
        self._token = token
        self._http = httpx.Client(base_url=base, transport=transport, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """May be called again."""
        self._http.close()

    def request(self, method: str, path: str, body: Any = None, *, match: str = "", **parameters: Any) -> Any:
        """Any request of the API. Returns its JSON.

        :param match: the revision that is to be changed.
        :raises NvmuserError: the host refuses, in its words; or nobody answers.
        """
        try:
            answer = self._http.request(
                method, path, json=body, params=answers.query(parameters), headers=answers.headers(self._token, match)
            )
            data = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise answers.unreachable(self._url, error) from error
        if not answer.is_success:
            raise answers.refuse(answer.status_code, data)
        return data

    def list(self, collection: str) -> Iterator[Object]:
        """All of a collection (`volumes`, `controllers` …), page by page."""
        after: str | None = None
        while True:
            page = self.request("GET", f"/v1/{collection}", limit=_PAGE, after=after)
            yield from map(Object.of, page["items"])
            after = page["next"]
            if after is None:
                return

    def get(self, collection: str, name: str) -> Object:
        """:raises NotFoundError: there is none of this name."""
        return Object.of(self.request("GET", f"/v1/{collection}/{name}"))

    def create(self, collection: str, spec: Mapping[str, Any]) -> Object:
        """:raises ConflictError: there is one of this name."""
        return Object.of(self.request("POST", f"/v1/{collection}", spec))

    def put(
        self, collection: str, name: str, spec: Mapping[str, Any], *, match: str = "", force: bool = False
    ) -> Object:
        """Declare it, or make it what `spec` says. The same again changes nothing."""
        return Object.of(self.request("PUT", f"/v1/{collection}/{name}", spec, match=match, force=force))

    def patch(
        self, collection: str, name: str, fields: Mapping[str, Any], *, match: str = "", force: bool = False
    ) -> Object:
        """Change some fields; None takes one back to its default."""
        return Object.of(self.request("PATCH", f"/v1/{collection}/{name}", fields, match=match, force=force))

    def delete(self, collection: str, name: str, *, match: str = "", wipe: bool = False, force: bool = False) -> None:
        """Take it away.

        :param wipe: its data may be deleted too.
        """
        self.request("DELETE", f"/v1/{collection}/{name}", match=match, wipe=wipe, force=force)

    def wait(self, operation: Mapping[str, Any]) -> Operation:
        """Wait until an operation has ended.

        :param operation: as a request has answered it.
        :raises NvmuserError: it failed.
        """
        found = operation
        while found["state"] == "running":
            found = self.request("GET", f"/v1/operations/{operation['id']}", wait=30)
        if found["problem"]:
            raise answers.refuse(found["problem"]["status"], found["problem"])
        return Operation(**found)

    def watch(self, after: int | None = None) -> Iterator[Event | None]:
        """Events as they come; None: some were missed, list again.

        :param after: the number of the last event that is known; None: from now on.
        :raises NvmuserError: it is refused, or the connection ends: watch again, from the last number.
        """
        headers = answers.headers(self._token, after=after)
        try:
            with self._http.stream("GET", "/v1/events?watch=true", headers=headers, timeout=60.0) as answer:
                if not answer.is_success:
                    answer.read()
                    raise answers.refuse(answer.status_code, answer.json())
                reader = answers.Reader()
                for line in answer.iter_lines():
                    yield from reader.feed(line)
        except (httpx.HTTPError, ValueError) as error:
            raise answers.unreachable(self._url, error) from error
