"""Serving a run folder: two gRPC ports around one `Host`, until a signal or an error.

The nodes' port asks for a certificate of the run's authority, the enrolment port does not. Where
the ports are is the part of `listening`, what they show that of `server_certificate`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import grpc

from smalltalk_coordinator.admin_service import AdminService
from smalltalk_coordinator.calls import address_of, name_of
from smalltalk_coordinator.enrolment_service import EnrolmentService
from smalltalk_coordinator.gate import Gate
from smalltalk_coordinator.guard import Guard
from smalltalk_coordinator.listening import Listeners, PresentAddresses
from smalltalk_coordinator.ports import connection_caps, newcomer_options, node_options
from smalltalk_coordinator.relay import Relay
from smalltalk_coordinator.run_service import RunService
from smalltalk_coordinator.server_certificate import ServerCertificate
from smalltalk_coordinator.serving_service import ServingService
from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.core.withdrawal_book import serves
from smalltalk_fed.errors import WorldError
from smalltalk_fed.host.assemble import assemble_mixture
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.host.seat_status import count_rows
from smalltalk_fed.host.status import process_cost, run_status
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire.limits import NEWCOMERS, RunLimits

log = logging.getLogger("smalltalk.coordinator")

LEDGER_FLUSH_S = 5.0


async def serve(folder: RunFolder, on_ready: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        WorldError: a port is in use, or the journal can't be written.
    """
    journal = Journal(folder.journal, create=False)
    clock = SystemClock(not_before=journal.last_at)
    ledger = Ledger.from_json(journal.get("ledger") or [])
    host = Host(
        folder.manifest,
        journal,
        folder.blobs,
        clock,
        on_decision=_log_decision,
        audit_secret=folder.audit_secret(),
        on_finished=lambda coordinator, blobs: _assemble(folder, coordinator, blobs),
    )

    if is_private(folder.manifest):  # what its nodes read their text with, before they join
        host.blobs.put("tokenizer", folder.tokenizer())
    gates = make_gates(folder.manifest)

    def status() -> dict[str, Any]:
        now = clock.now()
        return {
            **run_status(host.coordinator, now),
            "bytes": {**ledger.totals(), "rows": ledger.to_json()},
            "counts": count_rows(host.coordinator.state, host.blobs),
            "coordinator": process_cost(host.worker_cpu_s),
            "mixture": str(folder.mixture) if folder.mixture.exists() else None,
            "refused": [asdict(each) for gate in gates for each in gate.report(now)],
        }

    listeners = make_listeners(folder, host, ledger, status, gates)
    stopping = asyncio.Event()
    _on_signals(stopping)
    try:
        await listeners.start()
        host.start()
        on_ready()
        aside = [asyncio.create_task(_flush_ledger(host, ledger))]
        aside.append(asyncio.create_task(listeners.watch()))
        waits = [asyncio.create_task(stopping.wait()), asyncio.create_task(host.wait_stopped())]
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for background in aside:
            background.cancel()
        await host.stop()
        for task in done:
            task.result()  # an error that stopped the host is raised here
    finally:
        await listeners.stop()
        with contextlib.suppress(WorldError):
            host.keep("ledger", ledger.to_json())
        journal.close()


def make_gates(manifest: RunManifest) -> list[Gate]:
    """The budgets of callers: of the nodes' port and of the enrolment port."""
    return [
        Gate(allowed, lambda who, why: log.warning("dropped %s: %s", who, why))
        for allowed in (RunLimits.of(manifest).nodes, NEWCOMERS)
    ]


def make_listeners(
    folder: RunFolder,
    host: Host,
    ledger: Ledger,
    status: Callable[[], dict[str, Any]],
    gates: list[Gate],
) -> Listeners:
    """The run's ports with all services, not opened yet; `gates` as `make_gates` makes them."""
    authority, addresses = folder.authority(), PresentAddresses(folder)
    relay = make_relay(host)
    serving = ServingService(relay, ledger)
    key = folder.signing_key()
    run = RunService(host, ledger, key, gates[0], lambda: addresses.value, serving)
    admin, enrolment = AdminService(host, status, relay), EnrolmentService(host, authority)
    caps = functools.cache(connection_caps)
    guards = [
        Guard(gate, who, host.clock) for gate, who in zip(gates, (name_of, address_of), strict=True)
    ]

    def run_server() -> grpc.aio.Server:
        options = node_options(caps(len(addresses.value.pairs))[0])
        server = grpc.aio.server(options=options, interceptors=guards[:1])
        pb_grpc.add_RunServicer_to_server(run, server)
        pb_grpc.add_AdminServicer_to_server(admin, server)
        return server

    def enrolment_server() -> grpc.aio.Server:
        options = newcomer_options(caps(len(addresses.value.pairs))[1])
        server = grpc.aio.server(options=options, interceptors=guards[1:])
        pb_grpc.add_EnrolmentServicer_to_server(enrolment, server)
        return server

    certificate = ServerCertificate(authority, addresses.hosts, host.clock)
    return Listeners(addresses, certificate, run_server, enrolment_server)


def make_relay(host: Host) -> Relay:
    """Who may serve which expert is the journal's word at that moment."""

    def may(node_id: str) -> frozenset[int]:
        return serves(host.coordinator.state, node_id)

    def named(node_id: str) -> str:
        node = host.coordinator.state.nodes.get(node_id)
        return node.name if node else ""

    return Relay(may, named)


def _on_signals(stopping: asyncio.Event) -> None:
    """The first signal stops in good order, the second at once."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):

        def stop(number: int = number) -> None:
            if stopping.is_set():
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            log.info("stopping; once more stops at once")
            stopping.set()

        loop.add_signal_handler(number, stop)


async def _flush_ledger(host: Host, ledger: Ledger) -> None:
    while True:
        await asyncio.sleep(LEDGER_FLUSH_S)
        try:
            # Made plain in the thread, too: a thousand nodes' rows take a while.
            await asyncio.to_thread(lambda: host.keep("ledger", ledger.to_json()))
        except WorldError as error:  # counts of bytes; the next commit says it to all
            log.warning("%s", error)


def _assemble(folder: RunFolder, coordinator: Coordinator, blobs: BlobStore) -> None:
    if assemble_mixture(folder, coordinator.state, blobs):
        log.info("the mixture is in %s", folder.mixture)


def _log_decision(decision: msg.Decision) -> None:
    level = logging.WARNING if decision.warning else logging.INFO
    log.log(level, "%s: %s", decision.what, decision.reason)
