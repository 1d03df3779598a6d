"""Hard state as JSON and back, so that a restart need not fold the whole journal.

Rules: `from_json(manifest, to_json(state)) == state`, also after a trip through text; a
snapshot of another format is refused, and the caller replays the journal instead. The
manifest is not part of it: it lies beside, signed.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import silo_events as silo_ev
from smalltalk_fed.core.field_types import wrong_field
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.records import Audit, Invite, Node, PastRound
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import WorldError, shown

FORMAT_VERSION = 4


def to_json(state: HardState) -> dict[str, Any]:
    """Everything but the manifest, as plain data."""
    return {
        "format_version": FORMAT_VERSION,
        "phase": state.phase.value,
        "reason": state.reason,
        "paused_from": state.paused_from.value if state.paused_from else None,
        "entered_at": dict(state.entered_at),
        "invites": [vars(invite) for invite in state.invites.values()],
        "nodes": [vars(node) for node in state.nodes.values()],
        "joined": state.joined,
        "rounds": [asdict(each) for each in state.rounds.values()],
        "history": {str(number): vars(past) for number, past in state.history.items()},
        "finished": [asdict(each) for each in state.finished.values()],
        "started": [vars(each) for each in state.started.values()],
        "collected": [asdict(each) for states in state.collected.values() for each in states],
        "lineage": {
            unit_id: [[step, vars(ref)] for step, ref in states.items()]
            for unit_id, states in state.lineage.items()
        },
        "contributors": {unit_id: dict(by) for unit_id, by in state.contributors.items()},
        "segments": asdict(state.segments) if state.segments else None,
        "audits": [vars(audit) for audit in state.audits.values()],
        "asked": dict(state.asked),
        "redos": state.redos,
        "waived": dict(state.waived),
        "withdrawn": [vars(each) for each in state.withdrawn.values()],
        "to_judge": list(state.to_judge),
        "last_at": state.last_at,
        "seats": [vars(each) for each in state.seats.values()],
        "moves": [asdict(each) for each in state.moves],
    }


def from_json(manifest: RunManifest, data: dict[str, Any]) -> HardState:
    """The state that `to_json` wrote.

    Raises:
        WorldError: another format, or not a snapshot.
    """
    try:
        if data["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {data['format_version']}")
        state = HardState(
            manifest,
            Phase(data["phase"]),
            data["reason"],
            Phase(data["paused_from"]) if data["paused_from"] else None,
            data["entered_at"],
            {each["secret_sha256"]: Invite(**each) for each in data["invites"]},
            {each["node_id"]: Node(**each) for each in data["nodes"]},
            data["joined"],
            {each["round"]: _event(ev.RoundAssigned, each) for each in data["rounds"]},
            {int(number): _past(each) for number, each in data["history"].items()},
            {each["unit_id"]: _event(ev.UnitAccepted, each) for each in data["finished"]},
            {each["unit_id"]: _event(ev.UnitStarted, each) for each in data["started"]},
            contributors=data["contributors"],
            segments=_event(ev.SegmentsMade, data["segments"]) if data["segments"] else None,
            audits={each["unit_id"]: Audit(**each) for each in data["audits"]},
            asked=data["asked"],
            redos=data["redos"],
            waived=data["waived"],
            withdrawn={each["expert"]: _withdrawn(each) for each in data["withdrawn"]},
            last_at=data["last_at"],
            seats={each["seat"]: _event(silo_ev.SeatTaken, each) for each in data["seats"]},
            moves=[_event(silo_ev.PricesMoved, each) for each in data["moves"]],
            to_judge=dict.fromkeys(data["to_judge"]),
        )
        for each in data["collected"]:
            before = state.collected.get(each["unit_id"], ())
            state.collected[each["unit_id"]] = (*before, _event(ev.WeightsCollected, each))
        for unit_id, states in data["lineage"].items():
            state.lineage[unit_id] = {step: BlobRef(**ref) for step, ref in states}
        for unit_id, audit in state.audits.items():
            if not audit.verdict:
                state.unsettled[unit_id] = None
        if odd := wrong_field(state):
            raise ValueError(f"its '{odd}' is not what it must be")
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        why = shown(str(error), 200)
        raise WorldError(f"a snapshot of the run's state can't be read ({why})") from None
    return state


def _event(kind: type, fields: dict[str, Any]) -> Any:
    for name in ("shares", "outputs", "segments"):
        if name in fields:
            fields = fields | {name: tuple(BlobRef(**ref) for ref in fields[name])}
    if "prices" in fields:
        fields = fields | {"prices": tuple(fields["prices"])}
    return kind(**fields)


def _withdrawn(fields: dict[str, Any]) -> silo_ev.ExpertWithdrawn:
    return silo_ev.ExpertWithdrawn(**fields | {"blobs": tuple(fields["blobs"])})


def _past(fields: dict[str, Any]) -> PastRound:
    return PastRound(
        fields["at"],
        fields["figures"],
        tuple(fields["losses"]),
        tuple(fields["nodes"]),
        tuple(fields["seconds"]),
    )
