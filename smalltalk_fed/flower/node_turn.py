"""A node's part of a turn: check the order, do the unit for a while, report what came of it.

Rules: work comes with the run's signature, for this node's key, or not at all. A turn ends after
`turn_s`, or with the hours that the owner set: the unit leaves its checkpoint and the report says
how far it is; the next turn goes on there, also in another process. All that lasts is in the
node's folder. Inputs that are not at hand are named in the report instead of being waited for.
Weights that the run collects on the way ride with the end of the turn, the newest only.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from google.protobuf.message import DecodeError

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.admission import node_id_of
from smalltalk_fed.core.units import BlobRef, Result, Unit
from smalltalk_fed.errors import Malformed
from smalltalk_fed.flower.arrival import (
    check_hours,
    key_of_node,
    limits_of,
    read_welcome,
    texts_of,
)
from smalltalk_fed.flower.known_runs import KnownRuns
from smalltalk_fed.flower.settings import NodeSettings
from smalltalk_fed.flower.turns import Order, Report
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire import convert
from smalltalk_fed.wire.signing import verify_unit
from smalltalk_fed.worksite import machine
from smalltalk_fed.worksite.cache import BlobCache, ref_of
from smalltalk_fed.worksite.folders import Workplace, forget_run, unit_folder
from smalltalk_fed.worksite.guard import Guard, cap_process_memory
from smalltalk_fed.worksite.hours import Hours
from smalltalk_fed.worksite.identity import NodeFolder
from smalltalk_fed.worksite.limits import compute_device, refuse
from smalltalk_fed.worksite.unit_work import (
    Signer,
    inputs_needed,
    made_here,
    outputs_named,
    why_not,
)
from smalltalk_fed.worksite.work import do_unit

log = logging.getLogger("smalltalk.node")

COLLECTED = "collected.safetensors"


def take_turn(settings: NodeSettings, order: Order) -> Report:
    """Do what `order` says, for a while.

    Raises:
        PeerError: the order is not one, not the run's, or not at this hour.
        UserError: the text is not that of the introduction, or the run exceeds the owner's limits.
        WorldError: the disk refuses.
    """
    began = time.monotonic()
    folder = NodeFolder.open(settings.folder)
    with folder.locked():
        welcome, known = read_welcome(order.welcome), KnownRuns(folder)
        try:
            reply = pb.ExchangeReply.FromString(order.exchange)
            said = convert.order_from_proto(reply)
        except DecodeError as error:
            raise Malformed(f"an order that can't be read ({error})") from None
        manifest = known.manifest(welcome)
        corpus, public = texts_of(folder, settings, manifest, known)
        key, limits = folder.signing_key(), limits_of(folder, settings)
        node_id = node_id_of(key_of_node(key))
        device = compute_device(settings.device, limits)
        place = Workplace.inside(folder, manifest, corpus, device, limits, public)
        if said.stop:
            forget_run(place)
            return Report()
        if said.unit is None:
            raise Malformed("an order without a unit")
        who = (manifest.run_id, node_id, order.incarnation)
        verify_unit(welcome.coordinator_key, *who, said.unit, reply.unit_signature)
        check_hours(limits)
        refuse(manifest, limits, on_gpu=settings.on_gpu)
        if not settings.on_gpu:
            cap_process_memory(limits.memory_gb)
        machine.settle_threads(0, manifest.config.compute.threads)
        turn = Turn(place, BlobCache(folder.place("cache")), Signer(key, *who), said.unit)
        return turn.take(order, began + order.turn_s)


@dataclass
class _Missing(Exception):
    """This input is not here."""

    ref: BlobRef


@dataclass
class Turn:
    """One unit in work in one process."""

    place: Workplace
    cache: BlobCache
    signer: Signer
    unit: Unit
    _fraction: float = 0.0
    _figures: dict[str, float] = field(default_factory=dict)
    _collected: tuple[Result, Path] | None = None

    def take(self, order: Order, until: float) -> Report:
        """Work until `until`, in seconds of the monotonic clock; say what came of it."""
        from smalltalk_fed.train.plan import Stopped

        unit = self.unit
        for digest, data in order.blobs.items():
            self.cache.put(BlobRef("", digest, len(data)), data)
        guard = Guard(self.place, self.cache)
        try:
            inputs, missing = self._inputs(inputs_needed(self.place, self.cache, guard, unit))
            if missing:
                return self._unfinished(missing)
            over = guard.watched(lambda: self._is_over(until), time.sleep)
            done = do_unit(unit, inputs, self.place, self._on_progress, self._on_state, over)
            outputs = outputs_named(unit, done, self.cache)
            for ref, source in outputs:  # so that they need not come back as inputs
                if isinstance(source, bytes):
                    self.cache.put(ref, source)
        except Stopped:
            try:
                guard.after_stop()
            except Exception as error:
                return self._failed(error)
            return self._unfinished(())
        except Exception as error:
            return self._failed(error)
        result = Result(unit.unit_id, tuple(ref for ref, _ in outputs), dict(done.figures))
        said = self._exchange(finished=self.signer.signed(unit, result))
        blobs = {ref.digest: _bytes(source) for ref, source in outputs}
        return Report(said, blobs, figures=done.figures)

    def _is_over(self, until: float) -> bool:
        hours = Hours.parse(self.place.limits.hours)
        return time.monotonic() >= until or not hours.open(datetime.now())

    def _inputs(self, refs: list[BlobRef]) -> tuple[dict[str, Path], tuple[str, ...]]:
        """Files by name, and digests of what is not here."""

        def fetch(ref: BlobRef, to: Path) -> None:
            raise _Missing(ref)

        inputs, missing = {}, []
        for ref in refs:
            try:
                inputs[ref.name] = made_here(self.place, self.unit, ref) or self.cache.get(
                    ref, fetch
                )
            except _Missing:
                missing.append(ref.digest)
        return inputs, tuple(missing)

    def _unfinished(self, missing: tuple[str, ...]) -> Report:
        working = msg.Working(self.unit.unit_id, self._fraction, dict(self._figures))
        if self._collected is None:
            return Report(self._exchange(working=working), {}, missing, figures=self._figures)
        result, path = self._collected
        said = self._exchange(working=working, collected=self.signer.signed(self.unit, result))
        data = path.read_bytes()
        path.unlink()
        return Report(said, {result.outputs[0].digest: data}, missing, figures=self._figures)

    def _failed(self, error: Exception) -> Report:
        reason, _ = why_not(self.place.manifest, self.unit.unit_id, error)
        log.warning("can't be done here: %s", reason, extra={"facts": {"unit": self.unit.unit_id}})
        return Report(self._exchange(failed=msg.Failure(self.unit.unit_id, reason)))

    def _exchange(self, **said: msg.Working | msg.Failure | Result) -> bytes:
        exchange = msg.Exchange(self.signer.node_id, self.signer.incarnation, wants_work=False)
        return convert.exchange_to_proto(replace(exchange, **said)).SerializeToString()  # type: ignore[arg-type]

    def _on_progress(self, fraction: float, figures: dict[str, float]) -> None:
        self._fraction = min(1.0, max(0.0, fraction))
        self._figures.update({k: v for k, v in figures.items() if math.isfinite(v)})

    def _on_state(self, step: int, path: Path) -> None:
        """Take over the weights of an unfinished expert; training writes the next ones then."""
        from smalltalk_fed.train.lineage import note_handed_out

        folder = unit_folder(self.place, self.unit)
        ref = ref_of("weights", path)
        note_handed_out(folder, step, ref.digest)
        figures = {"step": float(step), "from_step": float(self.unit.start_step)}
        kept = path.replace(folder / COLLECTED)
        self._collected = (Result(self.unit.unit_id, (ref,), figures), kept)


def _bytes(source: bytes | Path) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()
