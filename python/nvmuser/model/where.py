"""What a person says of where something is to be: a host by its name, or labels that it must have and a rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from nvmuser.errors import UsageError
from nvmuser.model.names import check_name

FIELDS = ("host", "labels", "rule", "failover")
"""Of an object in a specification; the last one of a controller alone."""
RULES = ("spread", "pack")
FAILOVERS = ("auto", "off")


@dataclass(frozen=True)
class Where:
    """:param rule: spread: where there are fewest controllers; pack: where there are most. Empty: spread.
    :param failover: of a controller. auto: it goes elsewhere when its host has died; empty: as it was, else off.
    """

    host: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    rule: str = ""
    failover: str = ""

    def __post_init__(self) -> None:
        if self.host:
            check_name("host", self.host)
        if self.rule and self.rule not in RULES:
            raise UsageError(f"rule {self.rule!r}: choose {' or '.join(RULES)}")
        if self.failover and self.failover not in FAILOVERS:
            raise UsageError(f"failover {self.failover!r}: choose {' or '.join(FAILOVERS)}")
        if self.host and (self.labels or self.rule):
            raise UsageError("a host by its name leaves nothing to labels and rules: say one or the other")

    @property
    def places(self) -> bool:
        """It says something of where."""
        return bool(self.host or self.labels or self.rule)

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Self:
        """:raises UsageError: it says nothing that makes sense."""
        labels = data.get("labels", {})
        if not isinstance(labels, dict):
            raise UsageError("labels: expected a mapping, such as {rack: a}")
        for name in ("host", "rule", "failover"):
            if not isinstance(data.get(name, ""), str):
                raise UsageError(f"{name}: expected text")
        texts = {name: data.get(name, "") for name in ("host", "rule", "failover")}
        return cls(labels={str(key): str(value) for key, value in labels.items()}, **texts)
