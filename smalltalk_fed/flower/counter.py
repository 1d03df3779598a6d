"""What the ServerApp's attendants ask of the coordinator's host; no Flower in here.

Rules: the host decides; here are only identity, signatures and blobs, as in the native
carrier's service. A node enrols under the digest of its signing key, whose possession it has
proved: Flower let it in, so it needs no invitation of ours, and gets one made on the spot.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
from typing import Literal, cast

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.catalogue import size_limit
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.session import Session
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef, Unit
from smalltalk_fed.errors import Malformed, Refused, SmalltalkError, TooLarge, Unauthenticated
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.handed_in import check_signature, check_wanted
from smalltalk_fed.host.host import Host
from smalltalk_fed.telemetry.ledger import Ledger, kind_of
from smalltalk_fed.wire import convert
from smalltalk_fed.wire.signing import sign_manifest, sign_unit

log = logging.getLogger("smalltalk.flower")

INVITED_S = 600.0
NO_NAME = "node"


class Counter:
    """One run's host, as attendants see it."""

    def __init__(self, host: Host, folder: RunFolder, ledger: Ledger) -> None:
        self._host, self._ledger = host, ledger
        self._key, self._folder = folder.signing_key(), folder
        manifest = host.manifest.to_bytes()
        self._signed_manifest = (manifest, sign_manifest(self._key, manifest))
        self.stopping = False

    def now(self) -> float:
        """The host's time."""
        return self._host.clock.now()

    @property
    def round(self) -> int:
        """Of the routers, or moves of a private run's prices; what Flower shows as its round."""
        return len(self._state.moves) if is_private(self._host.manifest) else self._state.round

    @property
    def over(self) -> bool:
        """Whether the run is finished or failed."""
        return self._state.phase in (Phase.FINISHED, Phase.FAILED)

    # ----------------------------------------------------------------------------- presence

    def invitation(self) -> bytes:
        """A JoinReply to nobody yet: the signed manifest, for a node to see what the run is."""
        manifest, signature = self._signed_manifest
        nobody = msg.Joined("", "what the run is")
        welcome = convert.Welcome(nobody, manifest, signature, self._key.public_bytes)
        return convert.welcome_to_proto(welcome).SerializeToString()

    def tokenizer(self, missing: tuple[str, ...]) -> dict[str, bytes]:
        """The run's tokenizer by its digest, for a node that lacks it.

        Raises:
            Refused: it is something else that the node lacks.
            WorldError: the tokenizer is gone.
        """
        digest = self._host.manifest.tokenizer_sha256
        if missing != (digest,):
            raise Refused("a node asks for something else than the run's tokenizer")
        return {digest: self._folder.tokenizer()}

    async def welcome(self, join: msg.Join, key_sha256: str, name: str) -> convert.Welcome:
        """Enrol the node if it is new, and let it join.

        Raises:
            PeerError: it may not take part, or its corpus is another one.
        """
        node = self._state.nodes.get(join.node_id)
        if node is None:
            secret = secrets.token_hex(32)
            await self._host.ask(msg.MakeInvite(secret, self.now() + INVITED_S, 1, "by Flower"))
            await self._host.ask(msg.Enrol(secret, key_sha256, _plain(name)))
        elif node.signing_key not in ("", join.signing_key.hex()):
            raise Unauthenticated(f"node {join.node_id} signs with another key than before")
        joined = await self._host.ask(join)
        assert isinstance(joined, msg.Joined)
        manifest, signature = self._signed_manifest
        return convert.Welcome(joined, manifest, signature, self._key.public_bytes)

    async def exchange(self, question: msg.Exchange) -> msg.Order:
        """What the node did and does; the next order.

        Raises:
            PeerError: not acceptable.
            WorldError: the host is stopping.
        """
        for result in (question.finished, question.collected):
            if result is not None:
                check_signature(self._state, question, result)
        order = await self._host.ask(question)
        assert isinstance(order, msg.Order)
        return order

    async def leave(self, session: Session, reason: str) -> None:
        """The node is gone; its lease is free at once."""
        try:
            await self._host.ask(msg.Leave(session.node_id, session.incarnation, reason))
        except SmalltalkError as error:
            log.info("%s: %s", session.node_id, error)

    def signed(self, session: Session, unit: Unit) -> bytes:
        """An ExchangeReply that hands `unit` to this process of the node, signed."""
        reply = convert.order_to_proto(msg.Order("work", unit=unit))
        who = (self._host.manifest.run_id, session.node_id, session.incarnation)
        reply.unit_signature = sign_unit(self._key, *who, unit)
        return reply.SerializeToString()

    # -------------------------------------------------------------------------------- blobs

    def has(self, ref: BlobRef) -> bool:
        """Whether the blob is here."""
        return self._host.blobs.has(ref.digest)

    async def blob(self, ref: BlobRef) -> bytes:
        """A blob's bytes, to be sent. Raises SmalltalkError when it is damaged or gone."""
        try:
            return await asyncio.to_thread(self._host.blobs.get, ref.digest)
        except SmalltalkError:
            self._host.blob_lost(ref.digest)
            raise

    async def keep(self, node_id: str, unit_id: str, ref: BlobRef, data: bytes) -> None:
        """Store an output that a node brought.

        Raises:
            PeerError: the run has no use for it, it is too large, or it is another blob.
            WorldError: the disk refuses.
        """
        check_wanted(self._state, unit_id, ref.name)
        limit = size_limit(self._host.manifest, ref.name)
        if len(data) > limit:
            raise TooLarge(
                f"the output '{ref.name}' of {unit_id} has {len(data)} bytes; the run allows "
                f"{limit}"
            )
        if len(data) != ref.size or hashlib.sha256(data).hexdigest() != ref.digest:
            raise Malformed(f"the bytes of '{ref.name}' of {unit_id} are not those of its digest")
        if self.has(ref):
            return
        room = self._host.loose.admit(node_id, ref.digest, ref.size, self.now())

        def store() -> None:
            room()
            self._host.blobs.put(ref.name, data)

        await asyncio.to_thread(store)

    def count(self, node_id: str, name: str, direction: str, size: int) -> None:
        """Count bytes that a Flower message carries, by what they are."""
        kind = kind_of(name)
        self._ledger.count(node_id, kind, cast(Literal["up", "down"], direction), size)

    @property
    def _state(self) -> HardState:
        return self._host.coordinator.state


def _plain(name: str) -> str:
    """As nodes may be called."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")
    return plain or NO_NAME
