"""The ports: a pair of gRPC servers for each pair of the run's addresses.

Rules: the first pair must be free, or there is no serving. A further one may be an address
that only leads here (port forwarding, a public address that this machine does not have): then
it is told to nodes and not listened at, and said so. `addresses.json` is looked at while
serving: pairs that were added are opened, removed ones closed, without a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc

from smalltalk_coordinator.server_certificate import ServerCertificate
from smalltalk_fed.errors import UserError, WorldError
from smalltalk_fed.host.addresses import Addresses, Pair, show_pair
from smalltalk_fed.host.folder import ADDRESSES_FILE, RunFolder

log = logging.getLogger("smalltalk.coordinator")

LOOK_EVERY_S = 2.0
GRACE_S = 1.0

MakesServer = Callable[[], grpc.aio.Server]  # with its services, without a port


class PresentAddresses:
    """The addresses in the run folder, as of the last look."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.path / ADDRESSES_FILE
        self._seen = self._appearance()
        self.value = folder.addresses

    def look(self) -> bool:
        """Read them again if the file changed; whether they are others now."""
        appearance = self._appearance()
        if appearance == self._seen:
            return False
        self._seen, before = appearance, self.value
        try:
            self.value = Addresses.load(self._path)
        except (OSError, ValueError, UserError) as error:
            log.warning("%s can't be read (%s); the addresses stay as they were", self._path, error)
        return self.value != before

    def hosts(self) -> tuple[str, ...]:
        """Names for the server's certificate."""
        return self.value.hosts

    def _appearance(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return (0, 0)
        return (status.st_mtime_ns, status.st_ino)


class Listeners:
    """All servers of a run. Create and use it inside one event loop."""

    def __init__(
        self,
        addresses: PresentAddresses,
        certificate: ServerCertificate,
        run_server: MakesServer,
        enrolment_server: MakesServer,
    ) -> None:
        self._addresses, self._certificate = addresses, certificate
        self._kinds = ((run_server, True), (enrolment_server, False))
        self._servers: dict[Pair, list[grpc.aio.Server]] = {}

    async def start(self) -> None:
        """Listen at all addresses.

        Raises:
            WorldError: the first pair can't be listened at.
        """
        first, *others = self._addresses.value.pairs
        await self._open(first)
        await self._open_if_here(others)

    async def watch(self) -> None:
        """Follow changes of the addresses, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Open what was added and close what was removed since the last look."""
        if not self._addresses.look():
            return
        wanted = self._addresses.value.pairs
        log.info("the addresses are now %s", ", ".join(show_pair(pair) for pair in wanted))
        await self._open_if_here([pair for pair in wanted if pair not in self._servers])
        for pair in [pair for pair in self._servers if pair not in wanted]:
            await self._close(self._servers.pop(pair))

    async def stop(self) -> None:
        """Close all ports; calls under way get a second to end."""
        servers, self._servers = self._servers, {}
        await self._close([server for pair in servers.values() for server in pair])

    async def _open_if_here(self, pairs: list[Pair]) -> None:
        for pair in pairs:
            try:
                await self._open(pair)
            except WorldError as error:
                log.warning("nodes are told of %s, but %s", show_pair(pair), error)

    async def _open(self, pair: Pair) -> None:
        opened: list[grpc.aio.Server] = []
        try:
            for address, (make, mutual) in zip(pair, self._kinds, strict=True):
                server = make()
                opened.append(server)
                _bind(server, address, self._certificate.credentials(mutual=mutual))
            for server in opened:
                await server.start()
        except WorldError:
            await self._close(opened)
            raise
        self._servers[pair] = opened

    @staticmethod
    async def _close(servers: list[grpc.aio.Server]) -> None:
        await asyncio.gather(*(server.stop(grace=GRACE_S) for server in servers))


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> None:
    try:
        bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        raise WorldError(
            f"{address} can't be listened on; another program may use the port, or this machine "
            "does not have the address: stop the program, or change the addresses with "
            "`smalltalk-coordinator addresses`"
        )
