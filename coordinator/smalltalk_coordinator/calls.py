"""What every gRPC method does before and after its own work: who calls, what it cost, errors.

`served` wraps a handler: the caller's identity comes from its certificate and from nothing
it says; bytes of request and reply go to the ledger; our errors become gRPC statuses with
one sentence. Anything else is a bug: logged with its traceback, answered INTERNAL.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from smalltalk_fed.errors import Forbidden, SmalltalkError, Unauthenticated
from smalltalk_fed.host.clock import Clock
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire.certificates import certificate_facts

log = logging.getLogger("smalltalk.coordinator")

Handler = Callable[..., Awaitable[Any]]


# Reading a certificate costs as much as the rest of a call. What it says never changes; whether
# it has ended is asked on every call.
_facts = functools.lru_cache(maxsize=1024)(certificate_facts)


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
    log.info("refused: %s", error)
    await context.abort(grpc.StatusCode[error.hint], str(error)[:1000])


def counted(ledger: Ledger, node_id: str, kind: str, request: Message, reply: Message) -> None:
    """Count one request and its reply."""
    ledger.message(node_id, kind, "up", request.ByteSize())
    ledger.message(node_id, kind, "down", reply.ByteSize())
