"""A blob that is damaged or gone is noticed, and the run repairs itself or says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hosts import enter, open_host, run
from support.routers import router_result

from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.events import BlobLost, RoundAssigned
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.errors import DamagedBlob, Refused
from smalltalk_fed.host.host import Host
from smalltalk_fed.host.journal import Journal

Harm = Callable[[Path], None]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def remove(path: Path) -> None:
    path.unlink()


async def order(host: Host, node_id: str, **said: object) -> msg.Order:
    answer = await host.ask(msg.Exchange(node_id, 1, **said))  # type: ignore[arg-type]
    assert isinstance(answer, msg.Order)
    return answer


async def do(host: Host, node_id: str, unit_id: str) -> None:
    """Hand in this unit's result, whoever holds it."""
    result = router_result(host.manifest, host.blobs, unit_id)
    await order(host, node_id, finished=result, wants_work=False)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def events(folder: Path) -> list[object]:
    journal = Journal(folder / "journal.sqlite")
    try:
        return list(journal.events())
    finally:
        journal.close()


@pytest.mark.parametrize("harm", [cut, remove])
def test_what_is_gone_at_the_start_is_made_again_with_the_same_content(
    tmp_path: Path, harm: Harm
) -> None:
    async def first() -> None:
        host = open_host(tmp_path)
        host.start()
        node_id = await enter(host)
        await order(host, node_id)
        await host.stop()
        for ref in host.coordinator.state.rounds[1].shares:
            harm(host.blobs.path(ref.digest))

    async def second() -> None:
        host = open_host(tmp_path)
        host.start()
        await until(lambda: host.coordinator.state.round == 0)
        await until(lambda: host.coordinator.state.round == 1)
        for ref in host.coordinator.state.rounds[1].shares:
            host.blobs.verify(ref.digest)
        await host.stop()

    run(first)
    run(second)
    divided = [event for event in events(tmp_path) if isinstance(event, RoundAssigned)]
    assert len(divided) == 2
    assert divided[0].shares == divided[1].shares


@pytest.mark.parametrize("harm", [flip_a_bit, cut, remove])
def test_a_job_that_finds_its_input_damaged_has_the_unit_done_again(
    tmp_path: Path, harm: Harm
) -> None:
    async def work() -> None:
        host = open_host(tmp_path)
        host.start()
        node_id = await enter(host)
        await order(host, node_id)
        await do(host, node_id, "router_round/0/1")
        scores = host.coordinator.state.finished["router_round/0/1"].outputs[1]
        harm(host.blobs.path(scores.digest))
        await do(host, node_id, "router_round/1/1")  # the chunk can be divided now
        await until(lambda: "router_round/0/1" not in host.coordinator.state.finished)
        assert host.coordinator.state.phase is Phase.ROUTING
        await do(host, node_id, "router_round/0/1")
        await until(lambda: host.coordinator.state.round == 2)
        assert host.blobs.get(scores.digest)
        await host.stop()

    run(work)
    assert [e.unit_id for e in events(tmp_path) if isinstance(e, BlobLost)] == ["router_round/0/1"]


def test_said_many_times_a_loss_is_one_event(tmp_path: Path) -> None:
    async def work() -> None:
        host = open_host(tmp_path)
        host.start()
        node_id = await enter(host)
        await order(host, node_id)
        await do(host, node_id, "router_round/0/1")
        parameters = host.coordinator.state.finished["router_round/0/1"].outputs[0]
        host.blob_lost("f" * 64)  # nobody needs it
        host.blob_lost(parameters.digest)  # it is there
        await order(host, node_id, wants_work=False)
        assert "router_round/0/1" in host.coordinator.state.finished
        host.blobs.path(parameters.digest).unlink()
        for _ in range(3):
            host.blob_lost(parameters.digest)
        await until(lambda: "router_round/0/1" not in host.coordinator.state.finished)
        await host.stop()

    run(work)
    assert sum(isinstance(event, BlobLost) for event in events(tmp_path)) == 1


def test_what_nobody_can_make_again_pauses_the_run_until_it_is_put_back(tmp_path: Path) -> None:
    async def work() -> None:
        host = open_host(tmp_path)
        host.start()
        node_id = await enter(host)
        await order(host, node_id)
        for expert in (0, 1):
            await do(host, node_id, f"router_round/{expert}/1")
        await until(lambda: host.coordinator.state.round == 2)
        old = host.coordinator.state.finished["router_round/0/1"].outputs[0]
        kept = host.blobs.get(old.digest)
        flip_a_bit(host.blobs.path(old.digest))
        with pytest.raises(DamagedBlob, match="is damaged"):
            host.blobs.verify(old.digest)
        host.blob_lost(old.digest)
        await until(lambda: host.coordinator.state.phase is Phase.PAUSED)
        assert "put it back from a backup" in host.coordinator.state.reason
        assert old.digest[:12] in host.coordinator.state.reason
        host.blobs.put("parameters", kept)
        await host.ask(msg.Resume())
        assert host.coordinator.state.phase is Phase.ROUTING
        await host.stop()

    run(work)


def test_an_upload_that_was_damaged_before_it_counted_is_asked_for_again(tmp_path: Path) -> None:
    async def work() -> None:
        host = open_host(tmp_path)
        host.start()
        node_id = await enter(host)
        await order(host, node_id)
        result = router_result(host.manifest, host.blobs, "router_round/0/1")
        flip_a_bit(host.blobs.path(result.outputs[1].digest))
        with pytest.raises(Refused, match=r"'scores' .* was damaged; put it again"):
            await order(host, node_id, finished=result, wants_work=False)
        await do(host, node_id, "router_round/0/1")
        assert "router_round/0/1" in host.coordinator.state.finished
        await host.stop()

    run(work)
