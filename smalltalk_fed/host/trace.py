"""What a node's results were used for, read from a run's journal: for who finds that it lied.

Rules: it reads, and changes nothing; the run may be served meanwhile. Every result of the node
is listed with what audits found and whether it was taken back, every opinion with whether it
was wrong, and everything that rests on a result that stood when it was used. What was divided,
trained or measured on top of that again is named, too: "through" says by which way.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import events as ev
from smalltalk_fed.core.quarantine import ranges
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.errors import UserError
from smalltalk_fed.host.audit import journal_events
from smalltalk_fed.host.folder import RunFolder


@dataclass
class TracedResult:
    """A result or an opinion of the node."""

    unit_id: str
    at: float
    verdict: str = ""  # good, bad, waived; of an opinion: wrong; empty: nobody looked
    taken_back: str = ""  # why, or empty


@dataclass
class Use:
    """Something that rests on the node's results, and by which way."""

    what: str
    through: str


@dataclass
class NodeTrace:
    """All that the journal says of one node's work."""

    node_id: str
    name: str
    revoked: str = ""
    quarantined: str = ""
    results: list[TracedResult] = field(default_factory=list)
    opinions: list[TracedResult] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def trace_node(folder: RunFolder, node_id: str) -> NodeTrace:
    """Read the journal of `folder`.

    Raises:
        UserError: no node of this id enrolled.
        WorldError: the journal is damaged.
    """
    tracer: _Tracer | None = None
    for event in journal_events(folder.journal, 0):
        if isinstance(event, ev.NodeEnrolled) and event.node_id == node_id:
            tracer = _Tracer(folder.manifest, NodeTrace(node_id, event.name))
        elif tracer is not None:
            tracer.take(event)
    if tracer is None:
        raise UserError(f"no node is called '{node_id}' in {folder.path}; `status` lists them.")
    return tracer.finish()


class _Tracer:
    """Folds events; what it remembers grows with the node's results and with experts."""

    def __init__(self, manifest: RunManifest, found: NodeTrace) -> None:
        self._manifest, self._found = manifest, found
        self._stands: dict[str, TracedResult] = {}  # its results that count now
        self._divided: dict[int, list[int]] = {}  # router -> rounds whose blocks were used
        self._since: dict[int, int] = {}  # router -> the round since which it goes back to it
        self._until: dict[int, int] = {}
        self._lists = ""  # by which way the segments rest on it
        self._seed = False

    def take(self, event: ev.Event) -> None:
        """One event more."""
        found, me = self._found, self._found.node_id
        match event:
            case ev.UnitAccepted():
                self._accept(event, UnitKey.parse(event.unit_id))
            case ev.RoundAssigned():
                for expert in range(self._manifest.experts):
                    unit_id = UnitKey(UnitKind.ROUTER_ROUND, expert, event.round - 1).unit_id
                    rounds = self._divided.setdefault(expert, [])
                    if unit_id in self._stands and event.round not in rounds:
                        rounds.append(event.round)
            case ev.SegmentsMade():
                self._segments()
            case ev.WeightsCollected() if event.node_id == me:
                self._use(f"{event.unit_id} from step {event.step} on", "weights collected of it")
            case ev.AuditSettled():
                if event.unit_id in self._stands:
                    self._stands[event.unit_id].verdict = event.verdict
                for opinion in found.opinions:
                    if opinion.unit_id in event.wrong:
                        opinion.verdict = "wrong"
            case ev.UnitRejected():
                self._take_back(event.unit_id, event.reason)
            case ev.BlobLost():
                self._take_back(event.unit_id, event.reason)
            case ev.NodeQuarantined():
                for unit_id in event.undone:
                    self._take_back(unit_id, f"node {event.node_id} was quarantined")
                if event.node_id == me:
                    found.quarantined = event.reason
            case ev.NodeReadmitted() if event.node_id == me:
                found.quarantined = ""
            case ev.NodeRevoked() if event.node_id == me:
                found.revoked = event.reason

    def finish(self) -> NodeTrace:
        """The whole trace, with its uses in the order of the run."""
        first: list[Use] = []
        for expert, rounds in sorted(self._divided.items()):
            if rounds:
                way = f"score blocks of router {expert}"
                first.append(Use(f"divisions of rounds {ranges(rounds)}", way))
        for expert, since in sorted(self._since.items()):
            until = self._until[expert]
            if until > since:
                rounds = list(range(since + 1, until + 1))
                way = f"parameters of router {expert} of round {since}"
                first.append(Use(f"router {expert} of rounds {ranges(rounds)}", way))
        self._found.uses = first + self._found.uses
        return self._found

    def _accept(self, event: ev.UnitAccepted, key: UnitKey) -> None:
        mine = event.node_id == self._found.node_id
        result = TracedResult(event.unit_id, event.at)
        if mine and key.kind is UnitKind.AUDIT:
            self._found.opinions.append(result)
        elif mine:
            self._found.results.append(result)
            self._stands[event.unit_id] = result
        match key.kind:
            case UnitKind.ROUTER_ROUND:
                if mine:
                    self._since.setdefault(key.expert, key.index)
                if key.expert in self._since:
                    self._until[key.expert] = key.index
            case UnitKind.TRAIN_SEED:
                self._seed = mine
            case UnitKind.TRAIN_EXPERT:
                if self._lists:
                    self._use(event.unit_id, self._lists)
                if self._seed:
                    self._use(event.unit_id, "the seed model")
                if mine:
                    self._use("the mixture", event.unit_id)
            case UnitKind.SILO_BLOCK if mine:
                self._use("the mixture's routers", f"routers of seat {key.seat}")
                self._use("every silo's counts, and the prices", f"routers of seat {key.seat}")
            case UnitKind.COUNT if mine:
                self._use("the prices", f"counts of seat {key.seat}")
            case UnitKind.EVALUATE | UnitKind.EVALUATE_SILO if mine:
                self._use("the mixture's perplexity", event.unit_id)

    def _segments(self) -> None:
        slices = [UnitKey.parse(unit_id) for unit_id in self._stands]
        indices = [key.index for key in slices if key.kind is UnitKind.SHARD and key.index >= 0]
        ways = [f"router {expert}" for expert in sorted(self._since)]
        if indices:
            ways.append(f"slices {ranges(indices)}")
        self._lists = ", ".join(ways)
        if ways:
            self._use("the segments", self._lists)

    def _take_back(self, unit_id: str, reason: str) -> None:
        result = self._stands.pop(unit_id, None)
        if result is not None:
            result.taken_back = reason
            key = UnitKey.parse(unit_id)
            if key.kind is UnitKind.ROUTER_ROUND and self._since.get(key.expert) == key.index:
                del self._since[key.expert]
                self._until.pop(key.expert, None)
        for opinion in self._found.opinions:
            if opinion.unit_id == unit_id:
                opinion.taken_back = reason

    def _use(self, what: str, through: str) -> None:
        use = Use(what, through)
        if use not in self._found.uses:
            self._found.uses.append(use)
