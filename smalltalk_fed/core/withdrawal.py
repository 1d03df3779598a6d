"""Who may take an expert out of the mixture, and when. Decisions only.

Rules: the node that trained an expert, or has begun to, may withdraw it, and the operator any;
nobody is asked for a reason. It is for good, and may be said again. The run goes on without
it: nothing is trained again, and the others' text stays theirs. Before experts are trained
none is anybody's; in a private run each is, from the first block on, its silo's. How hard state
changes is `withdrawal_book`'s part.
"""

from __future__ import annotations

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.dispatch import Dispatcher
from smalltalk_fed.core.outbox import Outbox
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.retention import blobs_of_expert
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.withdrawal_book import owner
from smalltalk_fed.errors import Forbidden, Refused

MAX_REASON = 500
_EARLY = (Phase.RECRUITING, Phase.ROUTING, Phase.SHARDING)


def take(
    out: Outbox, dispatch: Dispatcher, message: msg.Withdraw, conversation: int, now: float
) -> None:
    """Let the experts leave and answer. Raises what `decide` raises; nothing changed then."""
    events, answer = decide(out.state, message, now)
    for event in events:
        out.emit(event)
        out.decide(f"expert {event.expert} left the mixture", event.reason)
        dispatch.over(event.expert)
    out.reply(conversation, answer)


def decide(
    state: HardState, message: msg.Withdraw, now: float
) -> tuple[list[silo_ev.ExpertWithdrawn], msg.Done]:
    """The events, one an expert that leaves now, and the answer.

    Raises:
        Forbidden: the expert is another node's.
        Refused: there is no such expert, or none is the node's, or it is too early.
    """
    experts = _named(state, message)
    phase = state.paused_from if state.phase is Phase.PAUSED else state.phase
    if is_private(state.manifest):
        if phase is Phase.RECRUITING:
            raise Refused(
                "the run is recruiting: nothing of any silo's text is in it yet, so there is "
                "nothing to withdraw; to free a seat let the organiser `revoke` its node"
            )
    elif phase in _EARLY:
        raise Refused(
            f"the run is {phase}: no expert is trained yet, so there is none to withdraw; stop "
            "the node to take no part in it"
        )
    by = "owner" if message.by_owner else "operator"
    reason = message.reason[:MAX_REASON] or f"by its {by}"
    leaving = [expert for expert in experts if expert not in state.withdrawn]
    events = [
        silo_ev.ExpertWithdrawn(
            now, e, owner(state, e), by, reason, blobs_of_expert(state, e, leaving)
        )
        for e in leaving
    ]
    return events, msg.Done(_said(leaving, experts))


def _named(state: HardState, message: msg.Withdraw) -> list[int]:
    """The experts that are meant, in order."""
    if not message.by_owner and message.node_id and message.node_id not in state.nodes:
        raise Refused(f"no node is called '{message.node_id}'; `status` lists them")
    for expert in message.experts:
        if not 0 <= expert < state.experts:
            raise Refused(f"the run has no expert {expert}; there are 0 to {state.experts - 1}")
        whose = owner(state, expert)
        if message.by_owner and whose != message.node_id:
            raise Forbidden(
                f"expert {expert} is {f'node {whose}' if whose else 'nobody'}'s; only its owner or "
                "the organiser can withdraw it"
            )
    if message.experts:
        return sorted(set(message.experts))
    found = [e for e in range(state.experts) if message.node_id == owner(state, e) != ""]
    if not found:
        raise Refused(f"no expert is node {message.node_id or '(none named)'}'s at present")
    return found


def _said(leaving: list[int], experts: list[int]) -> str:
    before = [expert for expert in experts if expert not in leaving]
    parts = [f"{_list(leaving)} left the mixture"] if leaving else []
    parts += [f"{_list(before)} had left it before"] if before else []
    return "; ".join(parts)


def _list(experts: list[int]) -> str:
    numbers = ", ".join(map(str, experts))
    return f"expert {numbers}" if len(experts) == 1 else f"experts {numbers}"
