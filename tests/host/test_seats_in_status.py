"""What the operator of a private run sees: seats, whom the run waits for, counts, perplexity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.core_world import World
from support.silo_world import private_manifest, silo, three_silos, work

from smalltalk_fed.core.outputs import output
from smalltalk_fed.core.units import BlobRef, Result, UnitKey
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.seat_status import count_rows, perplexities, private_status
from smalltalk_fed.host.status import run_status
from smalltalk_fed.mixture.silo_prices import encode_counts, withhold


@pytest.fixture
def world() -> World:
    return World(private_manifest(private={"count_floor": 2}))


def test_free_seats_are_named_while_the_run_recruits(world: World) -> None:
    silo(world, "a", seat=1).join()
    status = private_status(world.coordinator, world.now)
    assert status["free_seats"] == [0, 2]
    assert [row["name"] for row in status["seats"]] == [None, "a", None]
    assert [row["experts"] for row in status["seats"]] == [[0], [1], [2, 3]]


def test_who_is_not_here_is_named_as_whom_the_run_waits_for(world: World) -> None:
    nodes = three_silos(world)
    for node in nodes:
        node.poll()
    status = private_status(world.coordinator, world.now)
    assert status["waiting_for"] == []
    for _ in range(5):
        world.advance(10.0)
        for node in nodes[:2]:
            node.beat()
    status = private_status(world.coordinator, world.now)
    assert status["waiting_for"] == ["c"]
    assert [row["present"] for row in status["seats"]] == [True, True, False]


def test_a_run_on_shared_text_has_no_seats() -> None:
    from support.core_world import make_manifest

    assert "seats" not in run_status(World(make_manifest()).coordinator, 1000.0)


def test_perplexity_is_over_what_could_be_evaluated(world: World) -> None:
    nodes = three_silos(world)
    work(world, nodes, "finished")
    found = run_status(world.coordinator, world.now)["evaluation"]
    assert found["suffix_ppl"] == pytest.approx(np.e)  # a nat a token at each of the three
    assert found["elsewhere"] == 0
    assert len(found["silos"]) == 3


def test_no_tokens_are_no_perplexity() -> None:
    assert perplexities([{"elsewhere": 9.0}]) == {"suffix_ppl": None, "all_ppl": None}
    rows = [{"suffix_nll": 2.0, "suffix_tokens": 1.0, "prefix_nll": 1.0, "prefix_tokens": 2.0}, {}]
    assert perplexities(rows) == {
        "suffix_ppl": pytest.approx(np.exp(2.0)), "all_ppl": pytest.approx(np.e)
    }  # fmt: skip


def test_the_rows_that_silos_showed_last(world: World, tmp_path: Path) -> None:
    blobs, nodes = BlobStore(tmp_path), three_silos(world)
    assert count_rows(world.coordinator.state, blobs) is None
    sent = [[6, 0, 0, 0], [1, 5, 0, 0], [0, 0, 4, 2]]
    rows = [encode_counts(withhold(np.array(row), 2)) for row in sent]
    for _ in range(60):
        for seat, node in enumerate(nodes):
            node.look()
            if node.unit and node.unit.unit_id.startswith("count"):
                ref: BlobRef = blobs.put("counts", rows[seat])
                unit, node.unit = node.unit, None
                node.poll(finished=Result(unit.unit_id, (ref,)))
            elif node.unit:
                node.done()
            elif node.question == 0 or node.question in world.answers:
                node.poll()
        if world.coordinator.state.moves:
            break
    # Below the floor is withheld; the rest is rounded down to a multiple of it.
    assert count_rows(world.coordinator.state, blobs) == [
        [6, None, None, None], [None, 4, None, None], [None, None, 4, 2],
    ]  # fmt: skip
    last = world.coordinator.state.moves[-1]
    key = UnitKey.parse(f"count/0/{last.block}/{last.turn}")
    blobs.drop(output(world.coordinator.state, key, "counts").digest)
    assert count_rows(world.coordinator.state, blobs) is None
