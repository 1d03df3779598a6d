"""What the state asks for: units with their inputs, and who has an input at hand.

Functions of hard state alone: a restarted coordinator hands out exactly what the one before
would have. What silos with text of their own are asked for is `silos`' part.
"""

from __future__ import annotations

from smalltalk_fed.core import seats, silos
from smalltalk_fed.core.outputs import named, output
from smalltalk_fed.core.redos import is_redo
from smalltalk_fed.core.silo_book import block_count, is_private
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import HELDOUT, BlobRef, Unit, UnitKey, UnitKind
from smalltalk_fed.errors import OurError, Refused

# A node that is this much slower or faster than the usual still gets no smaller or larger
# share of the text: measurements are rough, and an expert needs some text.
SPEED_RATIO_MAX = 8.0


def weights(state: HardState) -> tuple[float, ...]:
    """Shares by the measured speed of the node that did each router's latest round.

    Tokens a second relative to their mean, within a factor of `SPEED_RATIO_MAX`; empty
    where shares are configured, or not every speed is known. Call it when a round is done.
    """
    if state.manifest.config.assignment.capacity != "throughput":
        return ()
    speeds = []
    for expert in range(state.experts):
        key = UnitKey(UnitKind.ROUTER_ROUND, expert, state.round)
        accepted = state.finished.get(key.unit_id)
        speeds.append(accepted.figures.get("tokens_per_s", 0.0) if accepted else 0.0)
    if not all(speed > 0 for speed in speeds):
        return ()
    mean = sum(speeds) / len(speeds)
    low, high = 1 / SPEED_RATIO_MAX, SPEED_RATIO_MAX
    return tuple(min(max(speed / mean, low), high) for speed in speeds)


def score_blocks(state: HardState) -> tuple[BlobRef, ...]:
    """The present round's score blocks, by expert."""
    return tuple(
        output(state, UnitKey(UnitKind.ROUTER_ROUND, expert, state.round), "scores")
        for expert in range(state.experts)
    )


def final_routers(state: HardState) -> tuple[BlobRef, ...]:
    """The finished routers' parameters, by expert. A silo's are gone once it has left."""
    return tuple(final_router(state, expert) for expert in range(state.experts))


def final_router(state: HardState, expert: int) -> BlobRef:
    """One finished router's parameters."""
    if is_private(state.manifest):
        return silos.router(state, expert, block_count(state.manifest))
    key = UnitKey(UnitKind.ROUTER_ROUND, expert, state.rounds_total)
    return output(state, key, "parameters")


def unit(state: HardState, key: UnitKey, from_step: int | None = None) -> Unit:
    """The unit with its inputs, as it is handed out.

    An expert goes on from the weights collected last; with `from_step`, as it was handed
    out when those of that step were (0: none).
    """
    if is_private(state.manifest):
        return silos.unit(state, key)
    inputs: list[BlobRef] = []
    match key.kind:
        case UnitKind.ROUTER_ROUND:
            if key.index > 1:
                before = UnitKey(UnitKind.ROUTER_ROUND, key.expert, key.index - 1)
                inputs.append(output(state, before, "parameters"))
            inputs.append(named("share", state.rounds[key.index].shares[key.expert]))
        case UnitKind.SHARD:
            inputs += [
                named(f"router-{expert}", ref) for expert, ref in enumerate(final_routers(state))
            ]
            return Unit(key, tuple(inputs), weights=weights(state))
        case UnitKind.TRAIN_EXPERT:
            return _expert_unit(state, key, from_step)
        case UnitKind.AUDIT:
            return _audit_unit(state, key)
        case UnitKind.EVALUATE:
            routed = output(state, UnitKey(UnitKind.SHARD, index=HELDOUT), "experts")
            inputs.append(named("routed", routed))
            if state.manifest.config.expert.collects:
                trained = UnitKey(UnitKind.TRAIN_EXPERT, key.expert)
                inputs += [output(state, trained, "config"), output(state, trained, "weights")]
    return Unit(key, tuple(inputs))


def _expert_unit(state: HardState, key: UnitKey, from_step: int | None) -> Unit:
    if state.segments is None:
        raise OurError(f"{key.unit_id} has no segment yet; this is a bug")
    inputs = [named("segment", state.segments.segments[key.expert])]
    if state.manifest.config.expert.init == "seed":
        seed = output(state, UnitKey(UnitKind.TRAIN_SEED), "weights")
        inputs.append(named("seed", seed))
    latest = state.collected.get(key.unit_id)
    step = (latest[-1].step if latest else 0) if from_step is None else from_step
    if step:
        inputs.append(named("state", state.lineage[key.unit_id][step]))
    return Unit(key, tuple(inputs), step)


def _audit_unit(state: HardState, key: UnitKey) -> Unit:
    """What an opinion is made from: never the scores or the list that it is about.

    Raises:
        Refused: nobody asks for this opinion any more.
    """
    audit, target = state.audits.get(key.target), UnitKey.parse(key.target)
    if audit is None or not state.in_phase(key):
        raise Refused(f"{key.unit_id} is asked for no more")
    made = unit(state, target, 0)
    match target.kind:
        case UnitKind.ROUTER_ROUND:
            before, share = made.input("parameters"), made.input("share")
            inputs = [output(state, target, "parameters")]
            inputs += [named("before", before)] if before else []
            inputs += [share] if share else []
        case UnitKind.SHARD:
            inputs = list(made.inputs)
        case _:
            inputs = [output(state, target, "config"), output(state, target, "weights")]
            inputs += [ref for ref in made.inputs if ref.name == "segment"]
            if state.manifest.heldout_sequences:
                routed = output(state, UnitKey(UnitKind.SHARD, index=HELDOUT), "experts")
                inputs.append(named("routed", routed))
            routers = enumerate(final_routers(state))
            inputs += [named(f"router-{expert}", ref) for expert, ref in routers]
    redo = is_redo(state, key)
    return Unit(key, tuple(inputs), weights=made.weights, sample=audit.sample, redo=redo)


def forms(state: HardState, key: UnitKey, from_step: int) -> list[Unit]:
    """The unit in each form in which it may be in work: as it is handed out now comes first."""
    now = unit(state, key, from_step)
    return [now, *silos.earlier_forms(state, key)] if is_private(state.manifest) else [now]


def handed_out_from(state: HardState, key: UnitKey, step: int) -> bool:
    """Whether an expert's unit was ever handed out to begin at `step`."""
    return step == 0 or step in state.lineage.get(key.unit_id, ())


def holder(state: HardState, key: UnitKey) -> str | None:
    """The node that has this unit's large input at hand: it did the work before."""
    if pinned(state, key) and is_private(state.manifest):
        return seats.node_of(state, key)
    started = state.started.get(key.unit_id)
    if started is not None:
        return started.node_id
    match key.kind:
        case UnitKind.ROUTER_ROUND:
            before = UnitKey(UnitKind.ROUTER_ROUND, key.expert, key.index - 1)
        case UnitKind.TRAIN_EXPERT:
            before = UnitKey(UnitKind.ROUTER_ROUND, key.expert, state.rounds_total)
        case UnitKind.EVALUATE:
            before = UnitKey(UnitKind.TRAIN_EXPERT, key.expert)
        case _:
            return None
    accepted = state.finished.get(before.unit_id)
    return accepted.node_id if accepted else None


def holders(state: HardState) -> set[str]:
    """Nodes that have an expert's or router's latest state, or a silo's text, at hand."""
    found = {taken.node_id for taken in state.seats.values()}
    for expert in range(state.experts):
        for key in (
            UnitKey(UnitKind.TRAIN_EXPERT, expert),
            UnitKey(UnitKind.ROUTER_ROUND, expert, state.round),
            UnitKey(UnitKind.ROUTER_ROUND, expert, state.round - 1),
        ):
            latest = state.started.get(key.unit_id) or state.finished.get(key.unit_id)
            if latest is not None:
                found.add(latest.node_id)
                break
    return found


def pinned(state: HardState, key: UnitKey) -> bool:
    """Whether only the holder can do this unit: its text, or the expert, never left its node."""
    if is_private(state.manifest):
        return key.kind is not UnitKind.SHARD  # of the public text
    return key.kind is UnitKind.EVALUATE and not state.manifest.config.expert.collects
