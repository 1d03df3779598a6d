"""Is a message about a unit acceptable? Checked completely before anything changes.

Form only: the unit is known, the node may have done it, the outputs are the right ones, within
the manifest's limits and not somebody else's, figures are finite numbers. What is inside a
blob is the host's part.
"""

from __future__ import annotations

import math
from dataclasses import replace

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.catalogue import outputs_of, size_limit
from smalltalk_fed.core.handout import handed_out_from, holder, pinned
from smalltalk_fed.core.leases import Leases
from smalltalk_fed.core.scheduling import barred
from smalltalk_fed.core.seats import stays
from smalltalk_fed.core.silos import unchanged_routers
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import Result, UnitKey, UnitKind
from smalltalk_fed.errors import Malformed, Refused, TooLarge

MAX_FIGURES = 64


def check_exchange(state: HardState, leases: Leases, message: msg.Exchange) -> None:
    """Check all that a node's question says.

    Raises:
        PeerError: a part is not acceptable.
    """
    if message.finished is not None:
        key = check_form(state, message.finished)
        _check_origin(state, leases, key, message.node_id)
    if message.collected is not None:
        key = check_collected(state, message.collected)
        _check_origin(state, leases, key, message.node_id)
    if message.working is not None:
        check_unit(state, UnitKey.parse(message.working.unit_id))
    if message.failed is not None:
        # Of a phase that is over (or, after a restored backup, to come) it is no news.
        UnitKey.parse(message.failed.unit_id)


def check_unit(state: HardState, key: UnitKey) -> None:
    """Raises Refused unless the unit is finished or of the run's present phase.

    An opinion that nobody asks for any more passes: it is dropped, no fault of the node's.
    """
    if key.kind is UnitKind.AUDIT:
        return
    if not state.is_finished(key) and not state.in_phase(key):
        raise Refused(f"{key.unit_id} is not part of the run's present phase")


def changes_nothing(state: HardState, result: Result) -> bool:
    """Whether it is said again, or is an opinion that nobody asks for any more.

    Raises:
        Malformed: it is of no unit.
    """
    key = UnitKey.parse(result.unit_id)
    return state.is_finished(key) or (key.kind is UnitKind.AUDIT and not state.in_phase(key))


def check_form(state: HardState, result: Result) -> UnitKey:
    """The unit that `result` is of.

    Raises:
        Refused: the unit is not of the present phase.
        Malformed: not the outputs that the unit must bring, or a figure that is no number.
        TooLarge: an output or the list of figures is over its limit.
    """
    key = UnitKey.parse(result.unit_id)
    check_unit(state, key)
    expected = brings(state, key)
    if key.kind is UnitKind.SILO_BLOCK and state.is_finished(key):  # said again, as it was then
        every = outputs_of(state.manifest, key)
        expected = tuple(name for name in every if result.output(name))
    elif key.kind is UnitKind.SILO_BLOCK:
        _check_nothing_left(state, result)
    _check_parts(state, result, expected)
    if key.kind is UnitKind.TRAIN_EXPERT and not state.is_finished(key):
        _check_lineage(state, key, result.figures.get("from_step", 0.0))
    if key.kind is UnitKind.ROUTER_ROUND and not state.is_finished(key):
        _check_new(state, key, result)
    if key.kind is UnitKind.SILO_BLOCK and unchanged_routers(state, key, result.outputs):
        raise Refused(f"a router of {key.unit_id} is unchanged; train it on its share")
    return key


def brings(state: HardState, key: UnitKey) -> tuple[str, ...]:
    """Names of the blobs that a result of this unit must bring, as the expert's owner allows.

    Of a withdrawn expert no router.
    """
    names = () if stays(state, key) else outputs_of(state.manifest, key)
    if key.kind is not UnitKind.SILO_BLOCK:
        return names
    gone = _routers_gone(state)
    return tuple(name for name in names if name not in gone)


def check_collected(state: HardState, result: Result) -> UnitKey:
    """The unit whose weights part-way `result` brings.

    Raises:
        Refused: the run doesn't collect on the way, or the unit is not of the present phase.
        Malformed: not weights, or no possible step.
        TooLarge: the weights are over their limit.
    """
    key = UnitKey.parse(result.unit_id)
    check_unit(state, key)
    expert = state.manifest.config.expert
    if key.kind is not UnitKind.TRAIN_EXPERT or not expert.collect_every_steps:
        raise Refused(f"the run does not collect {result.unit_id} on the way")
    _check_parts(state, result, ("weights",))
    step, begun = result.figures.get("step", 0.0), result.figures.get("from_step", 0.0)
    if not (step.is_integer() and 0 <= begun < step):
        raise Malformed(f"the weights of {result.unit_id} are of no possible step")
    if not state.is_finished(key):
        _check_lineage(state, key, begun)
    return key


def _check_origin(state: HardState, leases: Leases, key: UnitKey, node_id: str) -> None:
    """Raises Refused: others hold the unit and this node never did, or it is partial here."""
    if state.is_finished(key) or not state.in_phase(key):
        return
    if key.kind is UnitKind.AUDIT and node_id in barred(state, key):
        raise Refused(f"{key.unit_id} is for other nodes to do")
    started = state.started.get(key.unit_id)
    if pinned(state, key) and holder(state, key) != node_id:
        raise Refused(f"{key.unit_id} is for the node that has its text or its expert")
    began = started is not None and started.node_id == node_id
    if not began and not leases.may_hand_in(key, node_id):
        raise Refused(f"{key.unit_id} is held by another node, and this one never had it")


def _check_nothing_left(state: HardState, result: Result) -> None:
    """Raises Refused: a block was trained together with an expert that has left since."""
    gone = _routers_gone(state)
    for ref in result.outputs:
        if ref.name in gone:
            raise Refused(
                f"{result.unit_id} brings {ref.name}, of an expert that was withdrawn meanwhile; "
                "it is asked for again without it"
            )


def _routers_gone(state: HardState) -> set[str]:
    return {f"router-{expert}" for expert in state.withdrawn}


def _check_new(state: HardState, key: UnitKey, result: Result) -> None:
    """Raises Refused: what the result brings was there before, as of a node that is frozen."""
    before = state.finished.get(replace(key, index=key.index - 1).unit_id)
    parameters, scores = result.output("parameters"), result.output("scores")
    unchanged = before.outputs if before else ()
    if parameters and any(ref.digest == parameters.digest for ref in unchanged):
        raise Refused(f"the parameters of {key.unit_id} are unchanged; train them on the share")
    for number in (key.index - 1, key.index) if scores else ():
        for expert in range(state.experts):
            other = replace(key, expert=expert, index=number)
            accepted = state.finished.get(other.unit_id)
            blocks = [ref.digest for ref in accepted.outputs] if accepted else []
            if scores and scores.digest in blocks:
                raise Refused(f"the scores of {key.unit_id} are those of {other.unit_id}")


def _check_lineage(state: HardState, key: UnitKey, from_step: float) -> None:
    if not from_step.is_integer() or not handed_out_from(state, key, int(from_step)):
        raise Refused(f"{key.unit_id} was never handed out to begin at step {from_step:g}")


def _check_parts(state: HardState, result: Result, expected: tuple[str, ...]) -> None:
    names = tuple(ref.name for ref in result.outputs)
    if names != expected:
        wanted = ", ".join(expected) or "none"
        raise Malformed(f"{result.unit_id} must bring these outputs: {wanted}")
    for ref in result.outputs:
        limit = size_limit(state.manifest, ref.name)
        if ref.size > limit:
            raise TooLarge(f"output '{ref.name}' of {result.unit_id} is over {limit} bytes")
    if len(result.figures) > MAX_FIGURES:
        raise TooLarge(f"{result.unit_id} has more than {MAX_FIGURES} figures")
    if not all(math.isfinite(value) for value in result.figures.values()):
        raise Malformed(f"{result.unit_id} has a figure that is not a finite number")
