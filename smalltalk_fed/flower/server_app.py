"""The ServerApp: a run folder's host, and an attendant for every node that Flower has.

Rules: journal, blobs and mixture are in the run's folder (`run-dir`), outside of Flower; a
ServerApp that was killed is started anew with the same `run-dir` and goes on. Nodes that come
later take part from then on; one that could not is tried again after a while. The app ends when
the run is finished and the nodes know; a run that failed is an error, for Flower to show.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.errors import Refused, SmalltalkError, WorldError
from smalltalk_fed.flower.attendant import Attendant
from smalltalk_fed.flower.counter import Counter
from smalltalk_fed.flower.history import History
from smalltalk_fed.flower.post import NoLink, Post
from smalltalk_fed.flower.settings import RunSettings
from smalltalk_fed.host.assemble import assemble_mixture
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.telemetry import logs
from smalltalk_fed.telemetry.ledger import Ledger

log = logging.getLogger("smalltalk.flower")

LOOK_S = 0.25  # for answers; a turn takes seconds, and each look is a request
NODES_EVERY_S = 1.0
AGAIN_S = 15.0  # before a node that could not take part is tried again
KEEP_EVERY_S = 5.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Take the run in `run-dir` to its end, or as far as it goes today."""
    logs.set_up()
    settings = RunSettings.of(context.run_config)
    folder = settings.folder(SystemClock().now())
    with folder.locked():
        asyncio.run(Conductor(folder, grid, settings.turn_s).conduct())


class Conductor:
    """One ServerApp's run. `conduct` it once."""

    def __init__(self, folder: RunFolder, grid: Grid, turn_s: float) -> None:
        self._folder, self._grid, self._turn_s = folder, grid, turn_s
        self._attendants: dict[int, asyncio.Task[None]] = {}
        self._again_at: dict[int, float] = {}
        self._why: dict[int, str] = {}  # a node took no part when it was last tried

    async def conduct(self) -> None:
        """Until the run is over.

        Raises:
            Refused: it failed.
            WorldError: this machine or Flower's link can't go on; the run can, later.
        """
        folder = self._folder
        journal = Journal(folder.journal, create=False)
        clock = SystemClock(not_before=journal.last_at)
        ledger = Ledger.from_json(journal.get("ledger") or [])
        history = History(ledger)
        host = Host(
            folder.manifest,
            journal,
            folder.blobs,
            clock,
            on_decision=_log_decision,
            audit_secret=folder.audit_secret(),
            on_finished=lambda coordinator, blobs: _assemble(folder, coordinator, blobs),
        )
        counter, post = Counter(host, folder, ledger), Post(self._grid, LOOK_S)
        host.start()
        post.start()
        stopped = asyncio.create_task(host.wait_stopped())
        keep_at = 0.0
        try:
            while not self._over(host):
                await self._look_for_nodes(post, counter)
                history.look(host.coordinator.state)
                if clock.now() >= keep_at:
                    keep_at = clock.now() + KEEP_EVERY_S
                    await asyncio.to_thread(host.keep, "ledger", ledger.to_json())
                self._check_not_paused(host)
                await asyncio.wait({stopped, *self._attendants.values()}, timeout=NODES_EVERY_S)
                if stopped.done():
                    stopped.result()
                    raise WorldError("the coordinator stopped")
            history.look(host.coordinator.state)
        finally:
            counter.stopping = True
            for task in self._attendants.values():
                task.cancel()
            await post.stop()
            await host.stop()
            with contextlib.suppress(WorldError, OSError):
                host.keep("ledger", ledger.to_json())
                history.save(host.coordinator.state, folder.path)
            journal.close()
        state = host.coordinator.state
        log.info("the run in Flower's form:\n%s", history.result(state))
        if state.phase is Phase.FAILED:
            raise Refused(f"the run failed: {state.reason}")

    def _over(self, host: Host) -> bool:
        """Whether the run is, its mixture is there, and no node is to be told any more."""
        phase = host.coordinator.state.phase
        if phase is Phase.FINISHED and not self._folder.mixture.exists():
            return False
        return phase in (Phase.FINISHED, Phase.FAILED) and not self._attendants

    def _check_not_paused(self, host: Host) -> None:
        """Raises Refused: nobody could resume the run while this app holds its folder."""
        state = host.coordinator.state
        if state.phase is Phase.PAUSED:
            raise Refused(
                f"the run is paused: {state.reason}; `smalltalk-coordinator resume "
                f"{self._folder.path}`, then start the app again with the same run-dir"
            )

    async def _look_for_nodes(self, post: Post, counter: Counter) -> None:
        for node, task in list(self._attendants.items()):
            if task.done():
                del self._attendants[node]
                self._again_at[node] = counter.now() + AGAIN_S
                self._say_why(node, task)
        if counter.over:
            return  # who comes now has nothing to do
        for node in await post.nodes():
            if node not in self._attendants and self._again_at.get(node, 0.0) <= counter.now():
                attendant = Attendant(node, post, counter, self._turn_s)
                self._attendants[node] = asyncio.create_task(attendant.attend())

    def _say_why(self, node: int, task: asyncio.Task[None]) -> None:
        """Why an attendant ended, if not with the run; the same once. Raises NoLink: all will."""
        try:
            task.result()
            self._why.pop(node, None)
        except NoLink:
            raise
        except SmalltalkError as error:
            if self._why.get(node) != str(error):
                self._why[node] = str(error)
                log.warning("node %d of Flower's takes no part for now: %s", node, error)


def _assemble(folder: RunFolder, coordinator: Coordinator, blobs: BlobStore) -> None:
    if assemble_mixture(folder, coordinator.state, blobs):
        log.info("the mixture is in %s", folder.mixture)


def _log_decision(decision: msg.Decision) -> None:
    level = logging.WARNING if decision.warning else logging.INFO
    log.log(level, "%s: %s", decision.what, decision.reason)
