"""The host around a real journal, blob store and worker process: durable first, then answers."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.core_world import make_manifest
from support.hosts import enter, open_host, run

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import Event, RoundAssigned
from smalltalk_fed.core.units import BlobRef, Result
from smalltalk_fed.errors import OurError, PeerError, WorldError
from smalltalk_fed.host.clock import ManualClock
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.mixture.idlists import decode_ids

SECRET = hashlib.sha256(b"secret").hexdigest()
KEY = hashlib.sha256(b"key").hexdigest()


def test_an_answer_means_that_the_journal_has_it(tmp_path: Path) -> None:
    async def work() -> None:
        host = open_host(tmp_path)
        host.start()
        await host.ask(msg.MakeInvite(SECRET, host.clock.now() + 60))
        await host.ask(msg.Enrol(SECRET, KEY, "a"))
        kinds = [type(e).__name__ for e in Journal(tmp_path / "journal.sqlite").events()]
        assert kinds == ["InviteMade", "NodeEnrolled"]
        await host.stop()

    run(work)


def test_the_first_assignment_comes_out_of_the_worker_process(tmp_path: Path) -> None:
    async def work() -> None:
        host = open_host(tmp_path)
        host.start()
        node_id = await enter(host)
        order = await host.ask(msg.Exchange(node_id, 1))
        assert isinstance(order, msg.Order)
        assert order.unit
        share = order.unit.input("share")
        assert share
        assert len(decode_ids(host.blobs.get(share.digest))) == 5
        await host.stop()
        assigned = [
            e for e in Journal(tmp_path / "journal.sqlite").events() if isinstance(e, RoundAssigned)
        ]
        ids = np.concatenate([decode_ids(host.blobs.get(s.digest)) for s in assigned[0].shares])
        assert len(set(ids.tolist())) == 10

    run(work)


def test_a_restarted_host_goes_on(tmp_path: Path) -> None:
    async def first() -> None:
        host = open_host(tmp_path)
        host.start()
        node_id = await enter(host)
        await host.ask(msg.Exchange(node_id, 1))
        await host.stop()

    async def second() -> None:
        host = open_host(tmp_path)
        host.start()
        assert host.coordinator.state.round == 1
        assert host.coordinator.leases.frozen_until > host.clock.now()
        await host.stop()

    run(first)
    run(second)


def test_a_refused_message_fails_alone(tmp_path: Path) -> None:
    async def work() -> None:
        host = open_host(tmp_path)
        host.start()
        good = host.ask(msg.MakeInvite(SECRET, host.clock.now() + 60))
        bad = host.ask(msg.Enrol("0" * 64, KEY, "a"))
        outcomes = await asyncio.gather(good, bad, return_exceptions=True)
        assert isinstance(outcomes[0], msg.Done)
        assert isinstance(outcomes[1], PeerError)
        await host.stop()

    run(work)


def test_a_result_whose_blob_is_missing_or_wrong_never_becomes_an_event(tmp_path: Path) -> None:
    async def work() -> None:
        host = open_host(tmp_path)
        host.start()
        node_id = await enter(host)
        order = await host.ask(msg.Exchange(node_id, 1))
        assert isinstance(order, msg.Order)
        assert order.unit
        missing = (BlobRef("parameters", "1" * 64, 9), BlobRef("scores", "2" * 64, 9))
        with pytest.raises(PeerError, match="not uploaded"):
            await host.ask(msg.Exchange(node_id, 1, finished=Result(order.unit.unit_id, missing)))
        wrong = (host.blobs.put("parameters", b"no weights"), host.blobs.put("scores", b"none"))
        with pytest.raises(PeerError, match="parameters"):
            await host.ask(msg.Exchange(node_id, 1, finished=Result(order.unit.unit_id, wrong)))
        assert not host.coordinator.state.finished
        await host.stop()

    run(work)


def test_a_journal_that_fails_stops_the_host_and_answers_nobody(tmp_path: Path) -> None:
    class FullDisk(Journal):
        def append(self, events: object) -> None:
            if events:
                raise WorldError("the journal can't be written (disk full)")

    async def work() -> None:
        journal = FullDisk(tmp_path / "journal.sqlite")
        host = Host(make_manifest(), journal, tmp_path / "blobs", ManualClock())
        host.start()
        with pytest.raises(WorldError, match="stopping"):
            await host.ask(msg.MakeInvite(SECRET, host.clock.now() + 60))
        with pytest.raises(WorldError, match="disk full"):
            await host.wait_stopped()

    run(work)


def test_a_bug_in_a_job_stops_the_host_instead_of_letting_everybody_wait(tmp_path: Path) -> None:
    class Buggy(ThreadPoolExecutor):
        def submit(self, *arguments: object, **named: object) -> Future[Any]:
            return super().submit({}.__getitem__, "no such thing")

    async def work() -> None:
        host = open_host(tmp_path, executor=Buggy())
        host.start()
        with pytest.raises(WorldError, match="stopping"):
            await host.ask(msg.Exchange(await enter(host), 1))
        with pytest.raises(OurError, match="assign/1 failed"):
            await host.wait_stopped()

    run(work)


def test_a_peer_that_goes_is_forgotten(tmp_path: Path) -> None:
    async def work() -> None:
        host = open_host(tmp_path, make_manifest(nodes_to_start=2))
        host.start()
        node_id = await enter(host)
        question = asyncio.create_task(host.ask(msg.Exchange(node_id, 1)))
        while not host.coordinator.leases.waiting:
            await asyncio.sleep(0)
        question.cancel()
        await asyncio.gather(question, return_exceptions=True)
        assert not host.coordinator.leases.waiting
        await host.stop()

    run(work)


class Counting(Journal):
    """Counts transactions, which are what the disk syncs."""

    def __init__(self, path: Path) -> None:
        self.commits: list[int] = []
        super().__init__(path)

    def append(self, events: Sequence[Event]) -> None:
        self.commits.append(len(events))
        super().append(events)


def test_a_thousand_nodes_are_a_few_syncs(tmp_path: Path) -> None:
    journal = Counting(tmp_path / "journal.sqlite")

    async def work() -> None:
        host = Host(make_manifest(nodes_to_start=2000), journal, tmp_path / "blobs", ManualClock())
        host.start()
        await asyncio.gather(*(enter(host, f"node-{n}") for n in range(1000)))
        assert host.coordinator.state.joined == 1000
        await host.stop()

    run(work)
    assert sum(journal.commits) == 3 * 1000  # an invitation, an enrolment, a signing key each
    assert len(journal.commits) < 60
    assert journal.verify() == 3000


def test_a_commit_does_not_queue_behind_uploads_and_checks(tmp_path: Path) -> None:
    async def work() -> None:
        host = open_host(tmp_path)
        host.start()
        done = threading.Event()
        busy = [asyncio.create_task(asyncio.to_thread(done.wait)) for _ in range(100)]
        await asyncio.sleep(0)
        await host.ask(msg.MakeInvite(SECRET, host.clock.now() + 60))
        assert not any(task.done() for task in busy)
        done.set()
        await asyncio.gather(*busy)
        await host.stop()

    run(work)
