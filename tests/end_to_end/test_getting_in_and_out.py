"""Programs as their users start them: a copied node folder, a revoked node, a second address."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from support.deployment import Deployment, free_port, good, wait_for

Deploy = Callable[..., Deployment]
REFUSED = 3


def node_of(status: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [node for node in status["nodes"] if node["name"] == name]
    return found


def last_line(run: Deployment, name: str) -> str:
    return run.log(name).strip().splitlines()[-1]


@pytest.fixture
def long_run(deploy: Deploy) -> Deployment:
    """A run that is under way for as long as a test looks at it."""
    run = deploy(**{"router.rounds": 200, "run.lease_s": 30.0})
    run.init()
    run.serve()
    return run


def test_a_copied_node_folder_is_noticed_and_both_sides_are_told(long_run: Deployment) -> None:
    run = long_run
    run.join("box")
    run.node("box")
    wait_for(lambda: node_of(run.glance(), "box")["present"], "the node to join")
    shutil.copytree(run.folder / "box", run.folder / "stolen")
    run.node("stolen")
    older = run.children.pop("box")
    assert older.wait(60) == REFUSED
    said = last_line(run, "box")
    assert "a newer process of node n-" in said
    assert "this node's key was copied: tell the organiser" in said
    node = node_of(run.status(), "box")
    assert node["two_places"] <= run.status()["now"]
    assert node["present"]  # the newer one works
    warned = [line for line in run.log("coordinator").splitlines() if "in two places" in line]
    assert len(warned) == 1
    assert "warning" in warned[0].lower()
    assert "in two places" in good("smalltalk-coordinator", "status", run.run)


@pytest.mark.slow
def test_a_revoked_node_ends_with_the_reason_and_its_work_goes_on_elsewhere(
    long_run: Deployment,
) -> None:
    run = long_run
    for name in ("a", "b"):
        run.join(name)
        run.node(name)
    wait_for(lambda: all(node["unit"] for node in run.glance()["nodes"]), "both to work")
    before = node_of(run.status(), "a")
    good("smalltalk-coordinator", "revoke", run.run, before["node_id"], "--reason", "it lies")
    assert run.children.pop("a").wait(60) == REFUSED
    assert last_line(run, "a").endswith(f"node {before['node_id']} was shut out: it lies")
    after = run.status()
    assert node_of(after, "a")["revoked"] == "it lies"
    round_then = after["round"]
    wait_for(lambda: run.glance()["round"] >= round_then + 2, "b alone to do whole rounds")
    # Started again it is refused again, also by a coordinator that was restarted.
    run.kill("coordinator")
    run.serve()
    run.node("a")
    assert run.children.pop("a").wait(60) == REFUSED
    assert last_line(run, "a").endswith("was shut out: it lies")


@pytest.mark.slow
def test_a_coordinator_gets_another_address_and_loses_the_first(long_run: Deployment) -> None:
    run = long_run
    run.join("a")
    token = good("smalltalk-coordinator", "invite", run.run)
    first = f"127.0.0.1:{run.run_port}/127.0.0.1:{run.enrol_port}"
    second = f"127.0.0.1:{free_port()}/127.0.0.1:{free_port()}"
    shown = good("smalltalk-coordinator", "addresses", run.run, "--add", second)
    assert shown.split() == [first, second]
    wait_for(lambda: "the addresses are now" in run.log("coordinator"), "the coordinator to see it")
    run.node("a")
    wait_for(lambda: run.glance()["round"] >= 1, "work")
    told = json.loads((run.folder / "a" / "node.json").read_text())
    assert told["run_addresses"] == [pair.split("/")[0] for pair in (first, second)]
    # A token from before still lets a machine in.
    good("smalltalk-node", "join", token, "--dir", run.folder / "late", "--name", "late")
    good("smalltalk-coordinator", "addresses", run.run, "--remove", first)
    wait_for(lambda: run.log("coordinator").count("the addresses are now") == 2, "the removal")
    round_then = run.status()["round"]
    wait_for(lambda: run.glance()["round"] >= round_then + 2, "the node to find the new address")
