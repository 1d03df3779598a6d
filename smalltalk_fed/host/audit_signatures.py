"""Whether a journaled result is signed by the node that it is counted for."""

from __future__ import annotations

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import handout
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import Result, UnitKey
from smalltalk_fed.errors import SmalltalkError
from smalltalk_fed.wire.signing import verify_result


def is_signed(state: HardState, event: ev.UnitAccepted | ev.WeightsCollected) -> bool:
    """Over the unit as `state`, that of just before the event, hands it out."""
    node = state.nodes.get(event.node_id)
    begun = int(event.figures.get("from_step", 0.0))
    try:
        signature = bytes.fromhex(event.signature)
        verify_result(
            bytes.fromhex(node.signing_key if node else ""),
            state.manifest.run_id,
            event.node_id,
            event.incarnation,
            handout.unit(state, UnitKey.parse(event.unit_id), begun),
            Result(event.unit_id, event.outputs, event.figures, signature),
        )
    except (SmalltalkError, LookupError, ValueError):
        return False
    return True
