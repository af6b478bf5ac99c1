"""The ladder of fixtures: a bare target first, everything else on top of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory


@pytest.fixture
def target_factory(tmp_path: Path) -> Iterator[TargetFactory]:
    """Bare targets, as many as the test starts."""
    factory = TargetFactory(tmp_path)
    yield factory
    factory.end()


@pytest.fixture
def spdk_target(target_factory: TargetFactory) -> BareTarget:
    """One bare target that answers."""
    return target_factory.start()
