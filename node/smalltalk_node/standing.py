"""Whether the coordinator still knows this node's certificate, and a new one if it ended.

Rules: a refused handshake carries no reason, so the enrolment port is asked for it, once in a
while. A certificate that ended while this machine or the coordinator was away is renewed with
the old key, and whoever was refused asks again; any other reason is for this node's operator.
Any thread may ask.
"""

from __future__ import annotations

import threading
import time

from smalltalk_fed.errors import PeerError, SmalltalkError, Unauthenticated, WorldError
from smalltalk_fed.wire.certificates import certificate_facts, make_request
from smalltalk_fed.wire.values import cut
from smalltalk_fed.worksite.identity import Identity, NodeFolder
from smalltalk_node.dialling import NoAnswer, at_any
from smalltalk_node.outgoing import Outgoing

EXPLAIN_EVERY_S = 20.0


class Standing:
    """One node's certificate, as the coordinator sees it."""

    def __init__(self, folder: NodeFolder, identity: Identity, outgoing: Outgoing) -> None:
        self._folder, self._outgoing = folder, outgoing
        self.identity = identity
        self._lock = threading.Lock()
        self._explained_at = float("-inf")
        self.renewed = 0  # certificates since the start of this process

    def renew(self) -> None:
        """Get a new certificate for the same key.

        Raises:
            PeerError: refused, with the reason.
            WorldError: no answer.
        """
        folder = self._folder
        request = make_request(folder.key(), self.identity.name)
        certificate = at_any(
            self.identity.enrolments,
            folder.authority,
            self._outgoing,
            lambda port: port.renew(folder.certificate, request),
        )
        folder.keep_certificate(certificate)
        self.renewed += 1

    def behind_silence(self, silence: NoAnswer) -> SmalltalkError:
        """Why nobody answered at the run's port: `silence` itself, or what it hides."""
        now = time.monotonic()
        with self._lock:
            if now - self._explained_at < EXPLAIN_EVERY_S:
                return silence
            self._explained_at = now
        return self._verdict(silence)

    def behind_refusal(self, refusal: Unauthenticated, renewed: int) -> SmalltalkError:
        """What a refusal means; `renewed` is the count when the call began."""
        if renewed != self.renewed:
            return NoAnswer("the certificate was renewed meanwhile; asking again.")
        return self._verdict(refusal)

    def _verdict(self, found: SmalltalkError) -> SmalltalkError:
        folder = self._folder
        with self._lock:
            try:
                reply = at_any(
                    self.identity.enrolments,
                    folder.authority,
                    self._outgoing,
                    lambda port: port.explain(folder.certificate),
                )
                if reply.welcome:
                    return found
                if reply.now <= certificate_facts(folder.certificate).not_after:
                    return Unauthenticated(cut(str(reply.reason)))
                self.renew()
            except PeerError as refusal:
                return refusal
            except WorldError:
                return found
        return NoAnswer("the certificate had ended and was renewed; asking again.")
