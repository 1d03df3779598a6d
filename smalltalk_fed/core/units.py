"""Work units: pieces of work whose id, inputs and outputs are fixed by the run's seed.

A unit id is a path such as `router_round/2/7` (expert 2, round 7), `shard/3`,
`shard/heldout`, `train_seed`, `train_expert/2` or `evaluate/2`; `audit/1/router_round/2/7` is
the first other node's opinion on a result. Any node can do any unit, but nobody audits its
own work: what it needs is named by digest in `Unit.inputs`, the rest is in the run's manifest.
In a private run, where text stays on its node, units belong to a seat: `silo_block/2/7` (seat
2, block 7 of rounds), `count/2/7/0` (its first count after that block) and `evaluate_silo/2`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from smalltalk_fed.errors import Malformed, shown


class UnitKind(StrEnum):
    """The kinds of work."""

    ROUTER_ROUND = "router_round"
    SHARD = "shard"
    TRAIN_SEED = "train_seed"
    TRAIN_EXPERT = "train_expert"
    EVALUATE = "evaluate"
    AUDIT = "audit"
    SILO_BLOCK = "silo_block"
    COUNT = "count"
    EVALUATE_SILO = "evaluate_silo"


HELDOUT = -1  # the `index` of the unit that routes the held-out split
# Of one silo, whose text nobody else has: for its node alone, and nobody can look at them.
OF_A_SILO = (UnitKind.SILO_BLOCK, UnitKind.COUNT, UnitKind.EVALUATE_SILO)
AUDITED = (UnitKind.ROUTER_ROUND, UnitKind.SHARD, UnitKind.TRAIN_EXPERT)
COUNT_DIGITS = 18


@dataclass(frozen=True, order=True)
class UnitKey:
    """A unit's id in parts. `expert` is -1 where the unit belongs to none."""

    kind: UnitKind
    expert: int = -1
    index: int = 0  # round (1..T), slice of a shard, number (1..) of an audit, block (1..X)
    target: str = ""  # id of the unit that an audit is of
    seat: int = -1  # of the silo whose text the unit is about
    turn: int = 0  # of a count: the how-many-th after its block

    @property
    def unit_id(self) -> str:
        """The id as it travels and is journaled."""
        match self.kind:
            case UnitKind.ROUTER_ROUND:
                return f"router_round/{self.expert}/{self.index}"
            case UnitKind.SHARD:
                return "shard/heldout" if self.index == HELDOUT else f"shard/{self.index}"
            case UnitKind.TRAIN_SEED:
                return "train_seed"
            case UnitKind.AUDIT:
                return f"audit/{self.index}/{self.target}"
            case UnitKind.SILO_BLOCK:
                return f"silo_block/{self.seat}/{self.index}"
            case UnitKind.COUNT:
                return f"count/{self.seat}/{self.index}/{self.turn}"
            case UnitKind.EVALUATE_SILO:
                return f"evaluate_silo/{self.seat}"
            case _:
                return f"{self.kind}/{self.expert}"

    @classmethod
    def parse(cls, unit_id: str) -> UnitKey:
        """Raises Malformed when `unit_id` is not one of the forms above."""
        parts = unit_id.split("/")
        try:
            match parts:
                case ["router_round", expert, round_]:
                    key = cls(UnitKind.ROUTER_ROUND, _count(expert), _count(round_))
                case ["shard", "heldout"]:
                    key = cls(UnitKind.SHARD, index=HELDOUT)
                case ["shard", index]:
                    key = cls(UnitKind.SHARD, index=_count(index))
                case ["train_seed"]:
                    key = cls(UnitKind.TRAIN_SEED)
                case ["train_expert" | "evaluate" as kind, expert]:
                    key = cls(UnitKind(kind), _count(expert))
                case ["audit", number, *target] if _count(number) > 0:
                    key = audit_key(cls.parse("/".join(target)), _count(number))
                case ["silo_block", seat, block]:
                    key = cls(UnitKind.SILO_BLOCK, index=_count(block), seat=_count(seat))
                case ["count", seat, block, turn]:
                    where = (_count(seat), _count(turn))
                    key = cls(UnitKind.COUNT, -1, _count(block), "", *where)
                case ["evaluate_silo", seat]:
                    key = cls(UnitKind.EVALUATE_SILO, seat=_count(seat))
                case _:
                    raise ValueError
        except ValueError:
            raise Malformed(f"'{shown(unit_id)}' is not a work unit's id") from None
        if key.unit_id != unit_id:  # leading zeros: one unit, one name
            raise Malformed(f"'{shown(unit_id)}' is not a work unit's id")
        return key


def _count(text: str) -> int:
    """A number as unit ids have them, within 64 bits. Raises ValueError."""
    if len(text) > COUNT_DIGITS or not (text.isascii() and text.isdigit()):
        raise ValueError(text[:COUNT_DIGITS])
    return int(text)


def audit_key(target: UnitKey, number: int) -> UnitKey:
    """The `number`th opinion (1..) on a result of `target`. ValueError: it is not audited."""
    if target.kind not in AUDITED:
        raise ValueError(f"{target.unit_id} is not audited")
    return UnitKey(UnitKind.AUDIT, target.expert, number, target.unit_id)


@dataclass(frozen=True)
class BlobRef:
    """Content-addressed bytes. `digest` is their hexadecimal SHA-256."""

    name: str
    digest: str
    size: int


@dataclass(frozen=True)
class Unit:
    """A unit with all that a node needs to do it.

    `start_step` > 0: an expert goes on at this step from the input "state", the weights that
    were collected there. `weights`: the experts' shares of a slice; empty: as configured. In a
    private run: each expert's part of all silos' training text.
    `sample`: which sequences an audit looks at; drawn after the result was in. `redo`: an audit
    of a router's round trains the round again, and looks at what comes of it too.
    `prices`: nats by which the routers' scores are corrected, one an expert; empty: not at all.
    `withdrawn`: experts that the unit is done without, since they have left the mixture; only
    in a private run, where the inputs have no routers of theirs.
    """

    key: UnitKey
    inputs: tuple[BlobRef, ...] = ()
    start_step: int = 0
    weights: tuple[float, ...] = ()
    sample: int = 0
    prices: tuple[float, ...] = ()
    redo: bool = False
    withdrawn: tuple[int, ...] = ()

    @property
    def unit_id(self) -> str:
        """The id as it travels and is journaled."""
        return self.key.unit_id

    def input(self, name: str) -> BlobRef | None:
        """The input called `name`, or None."""
        return next((ref for ref in self.inputs if ref.name == name), None)


@dataclass(frozen=True)
class Result:
    """A finished unit: its outputs by digest and its figures (finite numbers only)."""

    unit_id: str
    outputs: tuple[BlobRef, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)
    signature: bytes = b""

    def output(self, name: str) -> BlobRef | None:
        """The output called `name`, or None."""
        return next((ref for ref in self.outputs if ref.name == name), None)
