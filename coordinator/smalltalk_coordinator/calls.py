"""What every gRPC method does before and after its own work: who calls, what it cost, errors.

`served` wraps a handler: the caller's identity comes from its certificate and from nothing
it says; bytes of request and reply go to the ledger; our errors become gRPC statuses with
one sentence. Anything else is a bug: logged with its traceback, answered INTERNAL.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import math
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from smalltalk_fed.errors import Forbidden, SlowDown, SmalltalkError, Unauthenticated
from smalltalk_fed.host.clock import Clock
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire.certificates import certificate_facts
from smalltalk_fed.wire.limits import CONNECTIONS_MAX, WAIT_KEY

log = logging.getLogger("smalltalk.coordinator")

PEER_CHARS_MAX = 100

Handler = Callable[..., Awaitable[Any]]


# Reading a certificate costs as much as the rest of a call. What it says never changes; whether
# it has ended is asked on every call.
_facts = functools.lru_cache(maxsize=2 * CONNECTIONS_MAX)(certificate_facts)


def caller(context: grpc.aio.ServicerContext, clock: Clock, role: str = "node") -> str:
    """The common name of the caller's certificate; for a node its id.

    A handshake happens once, so the certificate's end is checked on every call.

    Raises:
        Unauthenticated: no certificate, or one that has ended.
        Forbidden: a certificate of another role.
    """
    pem = context.auth_context().get("x509_pem_cert", [b""])[0]
    if not pem:
        raise Unauthenticated("this port wants a certificate; join the run with a token first")
    facts = _facts(pem)
    problem = facts.problem(clock.now())
    if problem:
        raise Unauthenticated(f"{problem}; renew it, and check the clock")
    if facts.role != role:
        raise Forbidden(f"{facts.node_id} may not do this; it needs a certificate of the {role}")
    return facts.node_id


def name_of(context: grpc.aio.ServicerContext) -> str:
    """The common name of the caller's certificate, whatever it is worth by now.

    Raises:
        Unauthenticated: no certificate.
    """
    pem = context.auth_context().get("x509_pem_cert", [b""])[0]
    if not pem:
        raise Unauthenticated("this port wants a certificate; join the run with a token first")
    return _facts(pem).node_id


def address_of(context: grpc.aio.ServicerContext) -> str:
    """The caller's address without its port; of IPv6 the network, which one machine can fill."""
    peer = str(context.peer())
    place = urllib.parse.unquote(peer.partition(":")[2])
    host = place.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return peer[:PEER_CHARS_MAX]
    if isinstance(number, ipaddress.IPv4Address):
        return str(number)
    if number.ipv4_mapped:  # a port that listens for both kinds
        return str(number.ipv4_mapped)
    return str(ipaddress.ip_network((number, 64), strict=False))


def served(handler: Handler) -> Handler:
    """Turn our errors into gRPC statuses."""

    @functools.wraps(handler)
    async def wrapper(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await handler(self, request, context)
        except SmalltalkError as error:
            await abort(context, error)
        except ValueError as error:  # a decoder's; the request did not count
            log.exception("a request of %s could not be read", handler.__name__)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:500])

    return wrapper


async def abort(context: grpc.aio.ServicerContext, error: SmalltalkError) -> None:
    """End the call with the status that the error hints at."""
    code, said = grpc.StatusCode[error.hint], str(error)[:1000]
    if isinstance(error, SlowDown):  # may come many times a second
        log.debug("refused: %s", error)
        wait_ms = math.ceil(error.wait_s * 1000)
        await context.abort(code, said, ((WAIT_KEY, str(wait_ms)),))
    log.info("refused: %s", error)
    await context.abort(code, said)


def counted(ledger: Ledger, node_id: str, kind: str, request: Message, reply: Message) -> None:
    """Count one request and its reply."""
    ledger.message(node_id, kind, "up", request.ByteSize())
    ledger.message(node_id, kind, "down", reply.ByteSize())
