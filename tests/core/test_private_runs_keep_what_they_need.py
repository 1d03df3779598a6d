"""Hard state of a private run: the fold of its journal; blobs that are kept, let go, made again."""

from __future__ import annotations

import pytest
from support.core_rules import sound
from support.core_world import World, blob
from support.silo_world import private_manifest, steps, three_silos, work, work_until

from smalltalk_fed.core import silos
from smalltalk_fed.core.retention import needed_blobs
from smalltalk_fed.core.units import Result, UnitKey
from smalltalk_fed.errors import Refused


@pytest.fixture
def world() -> World:
    return World(private_manifest())


def test_state_is_the_fold_of_the_journal_and_survives_a_snapshot(world: World) -> None:
    nodes = three_silos(world, share="operator")
    for until in ("training", "evaluating", "finished"):
        work(world, nodes, until)
        sound(world)


def test_a_restarted_coordinator_goes_on_in_the_middle_of_a_step(world: World) -> None:
    nodes = three_silos(world)
    work_until(world, nodes, "count/1/2/1")
    world.restart()
    for node in nodes:
        node.question = 0
        node.join()
    work(world, nodes, "finished", turns=1000)
    assert steps(world.journal) == [(1, 0), (2, 0), (2, 1), (2, 2)]


def test_what_is_released_is_what_nothing_needs(world: World) -> None:
    nodes = three_silos(world)
    ever: dict[str, str] = {}
    for until in ("count/0/2/0", "count/0/2/2"):
        work_until(world, nodes, until)
        needed = needed_blobs(world.coordinator.state)
        assert not set(world.released) & set(needed)
        ever |= {ref.digest: ref.name for ref in needed.values()}
    work(world, nodes, "finished")
    needed = needed_blobs(world.coordinator.state)
    assert {ref.name for ref in needed.values()} == {"counts", *(f"router-{e}" for e in range(4))}
    assert len([1 for name in ever.values() if name == "counts"]) > 3
    assert len([1 for ref in needed.values() if ref.name == "counts"]) == 3  # of the last step
    assert set(world.released) >= {d for d, name in ever.items() if name == "counts"} - set(needed)


def test_counts_that_did_not_change_are_still_there(world: World) -> None:
    nodes = three_silos(world)
    same = blob("counts", "as before")
    for turn in (0, 1, 2):
        work_until(world, nodes, f"count/0/2/{turn}")
        unit = nodes[0].unit
        assert unit
        nodes[0].unit = None
        nodes[0].poll(finished=Result(unit.unit_id, (same,)))
    assert same.digest in needed_blobs(world.coordinator.state)
    assert same.digest not in world.released
    work(world, nodes, "training")
    assert same.digest not in world.released


def test_routers_of_the_last_two_blocks_are_kept() -> None:
    world = World(private_manifest(rounds=8))
    nodes = three_silos(world)
    for block in (2, 3, 4):
        work_until(world, nodes, f"silo_block/0/{block}")
        kept = {
            UnitKey.parse(unit_id).index
            for unit_id in world.coordinator.state.finished
            if unit_id.startswith("silo_block")
        }
        assert kept == {block - 1, block - 2} - {0}
    old = blob("router-1", "silo_block/1/1/router-1")
    assert old.digest in world.released


def test_a_lost_router_of_the_present_block_is_trained_again(world: World) -> None:
    nodes = three_silos(world)
    work_until(world, nodes, "count/0/1/0")
    lost = silos.router(world.coordinator.state, 1, 1)
    world._settle(world.coordinator.blob_damaged(lost.digest, "damaged", world.now))
    with pytest.raises(Refused, match="not part of the run's present phase"):
        nodes[0].done()  # its count is of no use now: it was begun with all routers there
    nodes[1].poll()
    assert nodes[1].unit and nodes[1].unit.unit_id == "silo_block/1/1"
    nodes[0].question = 0
    work(world, nodes, "finished", turns=1000)
