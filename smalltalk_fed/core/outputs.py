"""A finished unit's outputs by name, and blobs under the names that a unit calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smalltalk_fed.core.units import BlobRef, UnitKey
from smalltalk_fed.errors import OurError

if TYPE_CHECKING:
    from smalltalk_fed.core.state import HardState


def output(state: HardState, key: UnitKey, name: str) -> BlobRef:
    """A finished unit's output. Raises OurError: it has none of this name."""
    accepted = state.finished.get(key.unit_id)
    for ref in accepted.outputs if accepted else ():
        if ref.name == name:
            return ref
    raise OurError(f"{key.unit_id} has no output '{name}'; this is a bug")


def named(name: str, ref: BlobRef) -> BlobRef:
    """The same bytes under another name."""
    return BlobRef(name, ref.digest, ref.size)
