"""What hard state is made of: invitations, nodes, rounds gone by, audits. Plain data.

Nothing here decides anything; `state.py` and `audit_book.py` fold events into these.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from smalltalk_fed.core.units import UnitKey, audit_key

GOOD, BAD, WAIVED = "good", "bad", "waived"  # what an audit settles on


@dataclass
class Invite:
    """An invitation, by its secret's digest."""

    secret_sha256: str
    expires_at: float
    uses: int
    name: str
    used_by: list[str] = field(default_factory=list)
    cancelled: bool = False


@dataclass
class Node:
    """An enrolled machine, and what audits found of its work."""

    node_id: str
    name: str
    key_sha256: str
    signing_key: str = ""
    revoked: str = ""  # the reason, or empty
    quarantined: str = ""  # the reason, or empty
    doubted: str = ""  # why its results are all audited again
    proven: int = 0  # results found good since it came, came back or was doubted
    good: int = 0  # of its results, in all
    bad: int = 0
    waived: int = 0
    opinions: int = 0  # that it gave on others' results

    @property
    def takes_part(self) -> bool:
        """Whether it joined and may work."""
        return bool(self.signing_key) and not self.revoked and not self.quarantined


@dataclass(frozen=True)
class PastRound:
    """What is remembered of a round whose results are needed no more; lists by expert."""

    at: float
    figures: dict[str, float]
    losses: tuple[float | None, ...]
    nodes: tuple[str | None, ...]
    seconds: tuple[float | None, ...]


@dataclass
class Audit:
    """What other nodes were asked about one result, and what they said."""

    unit_id: str  # of the result
    node_id: str  # whose it is
    sample: int
    reason: str  # why it was opened
    number: int  # of the opinion that was asked for last
    doubt: str = ""  # why one more was asked for
    opinions: dict[str, str] = field(default_factory=dict)  # audit's unit id -> node; those kept
    wrong: dict[str, str] = field(default_factory=dict)  # likewise, found wrong
    verdict: str = ""  # GOOD, BAD, WAIVED; empty while it is open
    why: str = ""  # the verdict's reason
    figures: dict[str, float] = field(default_factory=dict)
    redo_from: int = 0  # number of the first opinion that trains the round again; 0: none

    @property
    def key(self) -> UnitKey:
        """The unit of the opinion that was asked for last."""
        return audit_key(UnitKey.parse(self.unit_id), self.number)
