"""What is settled before a node works: the run that it enrols in and joins, its certificate.

Rules: certificates are renewed in good time, and a coordinator that does not answer is asked
again later. Whether the run fits this machine's text is `worksite.corpora`'s part.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from smalltalk_fed.core.messages import Join
from smalltalk_fed.errors import SlowDown, UserError, WorldError
from smalltalk_fed.wire.certificates import certificate_facts, make_request
from smalltalk_fed.wire.convert import Welcome
from smalltalk_fed.wire.token import JoinToken
from smalltalk_fed.worksite.identity import Identity, NodeFolder
from smalltalk_node.connection import Connection
from smalltalk_node.dialling import Newcomer

log = logging.getLogger("smalltalk.node")

JOIN_FIRST_S = 0.5
JOIN_LAST_S = 30.0
RENEW_BEFORE_S = 10 * 86400.0
RENEW_EVERY_S = 3600.0


def enrol(folder: NodeFolder, token: JoinToken, name: str) -> Identity:
    """Let this folder's key be certified, once; the folder then belongs to the token's run.

    Raises:
        UserError: the folder belongs to a run already.
        PeerError: the coordinator refuses the token or the name.
        WorldError: no answer.
    """
    if folder.enrolled:
        identity = folder.identity()
        raise UserError(
            f"{folder.path} belongs to node {identity.node_id} of the run at "
            f"{identity.run_address} already; `smalltalk-node run` goes on with it, --dir names "
            "another folder."
        )
    request = make_request(folder.key(), name)
    with Newcomer(token.enrolment_address, token.authority) as newcomer:
        node_id, certificate = newcomer.enrol(token.secret, request, name)
    folder.keep_certificate(certificate, token.authority)
    identity = Identity(node_id, name, token.run_address, token.enrolment_address)
    folder.keep_identity(identity)  # last: a folder without it is not enrolled
    return identity


def join_patiently(
    connection: Connection, join: Join, wait: Callable[[WorldError | SlowDown, float], None]
) -> Welcome:
    """Present this process; while nobody has time, `wait(error, seconds)` and try again.

    Raises:
        PeerError: refused, with the reason.
    """
    longest_s = JOIN_FIRST_S
    while True:
        try:
            return connection.join(join)
        except (WorldError, SlowDown) as error:
            asked_s = error.wait_s if isinstance(error, SlowDown) else 0.0
            wait(error, asked_s + longest_s * (0.5 + 0.5 * random.random()))
            longest_s = min(2 * longest_s, JOIN_LAST_S)


def learn_addresses(folder: NodeFolder, connection: Connection, welcome: Welcome) -> Identity:
    """Keep where the coordinator can be reached now, out of the answer to `Join`.

    An address that it does not name is the operator's own, such as a tunnel: it stays alone.
    """
    here = connection.line.address
    runs, enrolments = welcome.run_addresses, welcome.enrolment_addresses
    if here not in runs or len(runs) != len(enrolments):
        return folder.identity()
    identity = folder.remember(
        run_address=here,
        enrolment_address=enrolments[runs.index(here)],
        run_addresses=runs,
        enrolment_addresses=enrolments,
    )
    connection.meet(identity)
    return identity


class Renewal:
    """Keeps the certificate from ending."""

    def __init__(self, folder: NodeFolder, connection: Connection) -> None:
        self._folder, self._connection = folder, connection
        self._again_at = float("-inf")

    def when_due(self, now: float) -> None:
        """Renew if the certificate ends within ten days; ask at most once an hour.

        Raises:
            PeerError: the coordinator won't renew it, with the reason.
        """
        if now < self._again_at:
            return
        self._again_at = now + RENEW_EVERY_S
        if certificate_facts(self._folder.certificate).not_after - now > RENEW_BEFORE_S:
            return
        try:
            self._connection.renew_certificate()
            log.info("the certificate was renewed")
        except (WorldError, SlowDown) as error:
            log.warning("the certificate could not be renewed yet: %s", error)
