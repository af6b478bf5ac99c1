"""The ladder of fixtures: a bare target first, everything else on top of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory
from hypothesis import settings

settings.register_profile("nvmuser", deadline=None)
settings.load_profile("nvmuser")  # a loaded machine is no fault


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
