"""What a unit takes besides being computed: inputs at hand, outputs named, a signed result.

Rules: sizes and room are checked before anything is fetched; a result with a figure that is no
number is never handed in; what this very node will need again stays in its cache. How inputs
come and outputs go is the carrier's part.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.units import BlobRef, Result, Unit, UnitKind
from smalltalk_fed.errors import Refused, SmalltalkError, WorldError
from smalltalk_fed.wire.signing import SigningKey, sign_result
from smalltalk_fed.worksite.cache import BlobCache, ref_of
from smalltalk_fed.worksite.folders import Workplace, forget_passed, known_file
from smalltalk_fed.worksite.guard import Guard
from smalltalk_fed.worksite.unit_inputs import check_inputs
from smalltalk_fed.worksite.work import Done, Output, needed

log = logging.getLogger("smalltalk.node")


def inputs_needed(place: Workplace, cache: BlobCache, guard: Guard, unit: Unit) -> list[BlobRef]:
    """Make ready for `unit`; the inputs that must be here before it is computed.

    Raises:
        TooLarge: an input is larger than the manifest implies.
        WorldError: there is no room within the owner's limits.
    """
    check_inputs(place.manifest, unit)
    forget_passed(place, unit)
    guard.before(unit)
    refs = [ref for ref in unit.inputs if needed(place, unit, ref)]
    cache.need(refs)
    return refs


def made_here(place: Workplace, unit: Unit, ref: BlobRef) -> Path | None:
    """The file of an input that this node made itself, whole and unchanged; else None."""
    known = known_file(place, unit, ref)
    return known if known is not None and ref_of(ref.name, known) == ref else None


def outputs_named(unit: Unit, done: Done, cache: BlobCache) -> list[tuple[BlobRef, Output]]:
    """What came of `unit`, by digest, in the coordinator's order.

    Raises:
        Refused: a figure is no number; none of it may be handed in.
        WorldError: the disk refuses.
    """
    odd = [name for name, value in done.figures.items() if not math.isfinite(value)]
    if odd:
        raise Refused(f"the figure '{odd[0]}' of {unit.unit_id} is no number: it diverged")
    outputs = [(ref_of(name, source), source) for name, source in done.outputs.items()]
    for ref, source in outputs:
        # Needed again, by this very node if it can be arranged.
        router = ref.name == "parameters" or ref.name.startswith("router-")
        if router or unit.key.kind is UnitKind.TRAIN_SEED:
            cache.put(ref, source)
    return outputs


def why_not(manifest: RunManifest, unit_id: str, error: Exception) -> tuple[str, WorldError | None]:
    """What an error that ended a unit means: a sentence, and this machine's trouble if it was.

    Of an error that is not ours a silo says nothing that might quote its text.
    """
    match error:
        case WorldError():
            return str(error), error
        case SmalltalkError():
            return str(error), None
        case OSError():
            where = f" ({error.filename})" if error.filename else ""
            reason = f"this machine's disk refuses{where}: {error.strerror or error}."
            return reason, WorldError(reason)
        case _:  # a bug, or a device out of memory: others may manage
            log.error("unit failed", exc_info=error, extra={"facts": {"unit": unit_id}})
            name = type(error).__name__
            if is_private(manifest):
                return f"{name}; its words are in this node's log", None
            return f"{name}: {error}", None


@dataclass(frozen=True)
class Signer:
    """Signs what one process of a node hands in."""

    key: SigningKey
    run_id: str
    node_id: str
    incarnation: int

    def signed(self, unit: Unit, result: Result) -> Result:
        """`result` of `unit` with this node's signature."""
        who = (self.run_id, self.node_id, self.incarnation)
        return replace(result, signature=sign_result(self.key, *who, unit, result))
