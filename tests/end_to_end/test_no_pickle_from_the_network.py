"""A whole run, watched from inside its processes: nothing that travelled is unpickled or run.

Every process, node or coordinator, has an audit hook from its start on. Pickles there are,
between a coordinator and its own worker process on the same machine; they are no network's,
and that they are seen shows that the hook sees.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support import deployment
from support.deployment import Deployment

Deploy = Callable[..., Deployment]
SITE = Path(deployment.__file__).with_name("watched_site")
OWN_PROCESSES = ("multiprocessing", "concurrent.futures.process")


def test_only_a_programs_own_processes_talk_in_pickles(
    deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    path = os.pathsep.join([str(SITE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    monkeypatch.setitem(deployment.ENV, "PYTHONPATH", path)
    monkeypatch.setitem(deployment.ENV, "WATCHED_NOTES", str(notes))
    run = deploy()
    run.init()
    run.serve()
    run.join("a")
    run.node("a")
    run.wait_phase("finished")
    assert run.children.pop("a").wait(60) == 0, run.log("a")

    seen = [json.loads(line) for file in notes.iterdir() for line in file.read_text().splitlines()]
    watched = [event for _, event, _, _ in seen].count("watching")
    assert watched >= 4  # init, the coordinator, join, the node, and more
    pickled = [each for each in seen if each[1] == "pickle.find_class"]
    assert any("smalltalk_fed.core.job_messages" in what[0] for _, _, what, _ in pickled), pickled
    for program, event, what, modules in seen:
        if event != "watching":
            own = any(module.startswith(OWN_PROCESSES) for module in modules)
            assert event == "pickle.find_class" and own, (program, event, what, modules)
