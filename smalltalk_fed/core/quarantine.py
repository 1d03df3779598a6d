"""What falls with a node that gave a wrong result or opinion, and what had been made of its work.

Rules: what can still be done again is (`undone`): its results of the present phase that no
audit found good, its opinions that a result rests on alone, weights part-way of an expert.
What was built on its work before stays, and is named in words (`tainted`), a few entries
however long the run was; `smalltalk-coordinator trace` reads the whole of it in the journal.
Functions of hard state, before the node is out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from smalltalk_fed.core import events as ev
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.records import GOOD
from smalltalk_fed.core.state import HardState, all_rounds
from smalltalk_fed.core.units import HELDOUT, UnitKey, UnitKind

RANGES_NAMED = 12
ENTRIES_NAMED = 40


def quarantine(state: HardState, node_id: str, reason: str, at: float) -> ev.NodeQuarantined:
    """The event that puts a node out."""
    undone = tuple(_undone(state, node_id))
    tainted = tuple(_tainted(state, node_id, set(undone)))
    return ev.NodeQuarantined(at, node_id, reason, undone, tainted[:ENTRIES_NAMED])


def _undone(state: HardState, node_id: str) -> Iterator[str]:
    for unit_id, accepted in state.finished.items():
        if accepted.node_id != node_id:
            continue
        key, audit = UnitKey.parse(unit_id), state.audits.get(unit_id)
        if key.kind is UnitKind.AUDIT:
            if _rests_on(state, key, node_id):
                yield unit_id
        elif key.kind is UnitKind.TRAIN_SEED:
            if state.in_phase(key) and not _experts_begun(state):
                yield unit_id
        elif state.in_phase(key) and not (audit and audit.verdict == GOOD):
            yield unit_id
    for unit_id, contributors in state.contributors.items():
        if node_id in contributors:
            yield unit_id


def _rests_on(state: HardState, key: UnitKey, node_id: str) -> bool:
    """Whether an opinion is all that speaks for a result, or waits to be judged."""
    audit = state.audits.get(key.target)
    if audit is None or key.unit_id not in audit.opinions:
        return False
    if not audit.verdict:
        return True
    alone = set(audit.opinions.values()) == {node_id}
    return audit.verdict == GOOD and alone and state.in_phase(UnitKey.parse(key.target))


def _experts_begun(state: HardState) -> bool:
    prefix = f"{UnitKind.TRAIN_EXPERT}/"
    return any(unit_id.startswith(prefix) for unit_id in (*state.finished, *state.started))


def _tainted(state: HardState, node_id: str, undone: set[str]) -> Iterator[str]:
    since: dict[int, int] = {}  # router -> first round that stays
    divided: set[int] = set()
    for number, past in sorted(all_rounds(state).items()):
        for expert, worker in enumerate(past.nodes):
            stays = UnitKey(UnitKind.ROUTER_ROUND, expert, number).unit_id not in undone
            if worker == node_id and stays:
                since.setdefault(expert, number)
                divided.add(number + 1)
    for expert, number in sorted(since.items()):
        yield f"router {expert} since round {number}"
    divided = {number for number in divided if number <= state.round}
    if divided:
        yield f"divisions of rounds {ranges(divided)}"
    slices, experts, seed = set(), set(), False
    for unit_id, accepted in state.finished.items():
        key = UnitKey.parse(unit_id)
        if accepted.node_id != node_id or unit_id in undone:
            continue
        if key.kind is UnitKind.SHARD:
            slices.add(key.index)
        elif key.kind is UnitKind.TRAIN_EXPERT:
            experts.add(key.expert)
        seed = seed or key.kind is UnitKind.TRAIN_SEED
    if HELDOUT in slices:
        yield "the held-out text's routing"
    if slices - {HELDOUT}:
        yield f"slices {ranges(slices - {HELDOUT})}"
    if (since or slices) and state.segments is not None:
        yield "the segments, and all experts trained on them"
    if seed:
        yield "the seed model, and all experts that start from it"
    if experts:
        yield f"experts {ranges(experts)}, which an audit found good"
    if state.phase in (Phase.EVALUATING, Phase.FINISHED) and (since or experts or seed):
        yield "the mixture's evaluation"
    wrongly = sorted(
        other
        for audit in state.audits.values()
        if node_id in audit.opinions.values()
        for other in audit.wrong.values()
    )
    if wrongly:
        yield f"the quarantine of {', '.join(wrongly[:RANGES_NAMED])}"


def ranges(numbers: Iterable[int]) -> str:
    """Such as "2, 5-9"; the last ones are counted if there are many."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    named = [f"{a}" if a == b else f"{a}-{b}" for a, b in found[:RANGES_NAMED]]
    rest = sum(b - a + 1 for a, b in found[RANGES_NAMED:])
    return ", ".join(named) + (f" and {rest} more" if rest else "")
