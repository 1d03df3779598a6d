"""A small run, and nodes that have joined it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.core_world import FakeNode, World, make_manifest


@pytest.fixture
def world() -> World:
    """A run of two experts that nobody has joined."""
    return World(make_manifest())


@pytest.fixture
def node(world: World) -> Callable[[str], FakeNode]:
    """Makes nodes that have joined `world`."""
    return lambda name: FakeNode(world, name).enrol().join()
