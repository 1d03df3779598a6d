"""Serving a run folder: two gRPC ports around one `Host`, until a signal or an error.

The nodes' port asks for a certificate of the run's authority, the enrolment port does not.
Server certificates are issued anew at every start, for the addresses in `addresses.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from smalltalk_coordinator.ports import connection_caps, newcomer_options, node_options
from smalltalk_coordinator.run_service import RunService
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.errors import WorldError
from smalltalk_fed.host.assemble import assemble_mixture
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.host.status import process_cost, run_status
from smalltalk_fed.proto.v1 import smalltalk_pb2_grpc as pb_grpc
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire.certificates import key_to_pem, make_key
from smalltalk_fed.wire.limits import NEWCOMERS, RunLimits

log = logging.getLogger("smalltalk.coordinator")

SERVER_CERTIFICATE_DAYS = 90
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

    gates = [
        Gate(allowed, lambda who, why: log.warning("dropped %s: %s", who, why))
        for allowed in (RunLimits.of(folder.manifest).nodes, NEWCOMERS)
    ]

    def status() -> dict[str, Any]:
        now = clock.now()
        return {
            **run_status(host.coordinator, now),
            "bytes": {**ledger.totals(), "rows": ledger.to_json()},
            "coordinator": process_cost(host.worker_cpu_s),
            "mixture": str(folder.mixture) if folder.mixture.exists() else None,
            "refused": [asdict(each) for gate in gates for each in gate.report(now)],
        }

    servers = _servers(folder, host, ledger, clock.now(), status, gates)
    stopping = asyncio.Event()
    _on_signals(stopping)
    try:
        for server in servers:
            await server.start()
        host.start()
        on_ready()
        flush = asyncio.create_task(_flush_ledger(host, ledger))
        waits = [asyncio.create_task(stopping.wait()), asyncio.create_task(host.wait_stopped())]
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        flush.cancel()
        await host.stop()
        for task in done:
            task.result()  # an error that stopped the host is raised here
    finally:
        await asyncio.gather(*(server.stop(grace=1.0) for server in servers))
        with contextlib.suppress(WorldError):
            host.keep("ledger", ledger.to_json())
        journal.close()


def _servers(
    folder: RunFolder,
    host: Host,
    ledger: Ledger,
    now: float,
    status: Callable[[], dict[str, Any]],
    gates: list[Gate],
) -> list[grpc.aio.Server]:
    authority = folder.authority()
    names = {_host(folder.addresses.run), _host(folder.addresses.enrolment)}
    key = make_key()
    certificate = authority.issue_server(key, sorted(names), now, SERVER_CERTIFICATE_DAYS)
    pair = [(key_to_pem(key), certificate)]
    nodes_max, newcomers_max = connection_caps()
    guards = [
        Guard(gate, who, host.clock) for gate, who in zip(gates, (name_of, address_of), strict=True)
    ]
    run = grpc.aio.server(options=node_options(nodes_max), interceptors=guards[:1])
    pb_grpc.add_RunServicer_to_server(RunService(host, ledger, folder.signing_key(), gates[0]), run)
    pb_grpc.add_AdminServicer_to_server(AdminService(host, status), run)
    mutual = grpc.ssl_server_credentials(pair, authority.certificate_pem, require_client_auth=True)
    _bind(run, folder.addresses.run, mutual)
    options = newcomer_options(newcomers_max)
    enrolment = grpc.aio.server(options=options, interceptors=guards[1:])
    pb_grpc.add_EnrolmentServicer_to_server(EnrolmentService(host, authority), enrolment)
    _bind(enrolment, folder.addresses.enrolment, grpc.ssl_server_credentials(pair))
    return [run, enrolment]


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> None:
    try:
        bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        raise WorldError(
            f"{address} can't be listened on; another program may use the port: stop it, or "
            "give other addresses with --run-address and --enrol-address"
        )


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


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
    log.info("%s: %s", decision.what, decision.reason)
