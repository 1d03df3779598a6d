"""Whether what a node brings may count at all, before the core hears of it; for every carrier.

Rules: a result must be signed by the key that its node registered when it joined, over the unit
as it is handed out; a blob must be an output of a unit that the run asks for now, or asked for.
Size, form and contents of blobs are the part of `blobs` and `checks`.
"""

from __future__ import annotations

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.admission import known
from smalltalk_fed.core.handout import handed_out_from, unit
from smalltalk_fed.core.results import brings
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import Result, UnitKey, UnitKind
from smalltalk_fed.core.withdrawal_book import is_over
from smalltalk_fed.errors import Malformed, Refused
from smalltalk_fed.wire.signing import verify_result


def check_signature(state: HardState, exchange: msg.Exchange, result: Result) -> None:
    """The result must be signed with the key that the node registered at Join.

    Raises:
        Unauthenticated: it is not.
        Refused: the unit is not asked for, or was never handed out like this.
    """
    key = UnitKey.parse(result.unit_id)
    node = known(state, exchange.node_id)
    if state.is_finished(key):
        return  # said again; it changes nothing
    if key.kind is UnitKind.AUDIT and not state.in_phase(key):
        return  # nobody asks for this opinion any more; the node is told to drop it
    if not state.in_phase(key):
        raise Refused(f"{result.unit_id} is not part of the run's present phase")
    begun = int(result.figures.get("from_step", 0.0))
    if not handed_out_from(state, key, begun):
        raise Refused(f"{result.unit_id} was never handed out to begin at step {begun}")
    verify_result(
        bytes.fromhex(node.signing_key),
        state.manifest.run_id,
        exchange.node_id,
        exchange.incarnation,
        unit(state, key, begun),
        result,
    )


def check_wanted(state: HardState, unit_id: str, name: str) -> None:
    """Whether the run has any use for a blob of this name, an output of this unit.

    Raises:
        Malformed: the unit has no such output.
        Refused: the unit is not asked for.
    """
    key = UnitKey.parse(unit_id)
    if is_over(state, key):
        raise Refused(f"expert {key.expert} was withdrawn; nothing of it is taken")
    if name not in brings(state, key):
        raise Malformed(f"{unit_id} has no output '{name[:40]}'")
    if not state.in_phase(key) and not state.is_finished(key):
        raise Refused(f"{unit_id} is not part of the run's present phase")
