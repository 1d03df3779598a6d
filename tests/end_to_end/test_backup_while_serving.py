"""`smalltalk-coordinator backup` in the middle of a run of real processes, and going on from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest
from support.deployment import Deployment, command, good, wait_for

Deploy = Callable[..., Deployment]


@pytest.mark.slow
def test_a_backup_made_while_serving_is_continued_to_the_end(deploy: Deploy) -> None:
    run = deploy(**{"router.rounds": 120})
    run.init()
    run.serve()
    run.join("a")
    run.node("a")
    wait_for(lambda: run.glance()["round"] >= 3, "round 3")
    copy = run.folder / "copy"
    report = json.loads(good("smalltalk-coordinator", "backup", run.run, copy, "--json"))
    assert report["phase"] == "routing"
    assert report["events"] > 10
    assert report["blobs"] >= 8
    assert "is not empty" in command("smalltalk-coordinator", "backup", run.run, copy).stderr
    later = run.status()["round"] + 1
    wait_for(lambda: run.glance()["round"] > later, "the run to go on meanwhile")
    # The VM is lost with its disk; the node lives on and finds the restored coordinator.
    run.kill("coordinator")
    shutil.rmtree(run.run)
    copy.rename(run.run)
    restored = run.status()
    assert 3 <= restored["round"] < later
    run.serve()
    if run.children["a"].poll() is not None:  # it saw the lost run's end
        run.children.pop("a")
        run.node("a")
    status = run.wait_phase("finished")
    assert len(status["routing"]) == 120
    wait_for(lambda: (run.run / "mixture" / "mixture.json").exists(), "the mixture")
    assert run.children.pop("a").wait(60) == 0, run.log("a")


def test_a_stopped_run_can_be_backed_up_too(deploy: Deploy) -> None:
    run = deploy()
    run.init()
    good("smalltalk-coordinator", "invite", run.run, "--name", "kept")
    copy = run.folder / "copy"
    said = command("smalltalk-coordinator", "backup", run.run, copy)
    assert said.returncode == 0
    assert f"serve {copy}" in said.stderr
    status = json.loads(good("smalltalk-coordinator", "status", copy, "--json"))
    assert [invite["name"] for invite in status["invites"]] == ["kept"]
