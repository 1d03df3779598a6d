"""A finding of the proof that a journal is: which check, where, what is not as it must be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that is not as it must be. `where`: a unit, a round, a blob."""

    check: str
    where: str
    what: str
