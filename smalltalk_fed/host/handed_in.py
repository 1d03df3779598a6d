"""Whether what a node brings may count at all, before the core hears of it; for every carrier.

Rules: a result must be signed by the key that its node registered when it joined, over the unit
as it is handed out, or was before an expert left; a blob must be an output of a unit that the
run asks for now, or asked for. Size, form and contents of blobs are the part of `blobs` and
`checks`.
"""

from __future__ import annotations

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.admission import known
from smalltalk_fed.core.handout import forms, handed_out_from
from smalltalk_fed.core.results import brings
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import Result, Unit, UnitKey, UnitKind
from smalltalk_fed.core.withdrawal_book import is_over
from smalltalk_fed.errors import Malformed, Refused, Unauthenticated
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
    public_key, run_id = bytes.fromhex(node.signing_key), state.manifest.run_id
    who = (public_key, run_id, exchange.node_id, exchange.incarnation)
    now, *before = forms(state, key, begun)
    if any(_is_signed(who, form, result) for form in before):
        return  # begun before an expert left
    begun_anew = state.withdrawn and key.kind in (UnitKind.SILO_BLOCK, UnitKind.EVALUATE_SILO)
    if begun_anew and not _is_signed(who, now, result):
        raise Refused(
            f"{result.unit_id} was not begun as it is handed out since an expert left the run; it "
            "is asked for anew"
        )
    verify_result(*who, now, result)


def _is_signed(who: tuple[bytes, str, str, int], form: Unit, result: Result) -> bool:
    """Whether the signature is over the unit in this form."""
    try:
        verify_result(*who, form, result)
    except Unauthenticated:
        return False
    return True


def check_wanted(state: HardState, unit_id: str, name: str) -> None:
    """Whether the run has any use for a blob of this name, an output of this unit.

    Raises:
        Malformed: the unit has no such output.
        Refused: the unit is not asked for.
    """
    key = UnitKey.parse(unit_id)
    if is_over(state, key):
        whose = f"expert {key.expert}" if key.expert >= 0 else f"each expert of seat {key.seat}"
        raise Refused(f"{whose} was withdrawn; nothing of it is taken")
    if name not in brings(state, key):
        raise Malformed(f"{unit_id} has no output '{name[:40]}'")
    if not state.in_phase(key) and not state.is_finished(key):
        raise Refused(f"{unit_id} is not part of the run's present phase")
