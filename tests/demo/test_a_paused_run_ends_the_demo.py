"""A run that pauses would never end by itself: the demonstration ends with its reason."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from support.deployment import good

from smalltalk_fed.demo.children import Children, program
from smalltalk_fed.demo.folder import claim
from smalltalk_fed.demo.live import DemoView
from smalltalk_fed.demo.plan import make_plan
from smalltalk_fed.demo.running import free_ports, watch
from smalltalk_fed.demo.stage import Findings, Stage
from smalltalk_fed.demo.watching import wait_for_line
from smalltalk_fed.errors import WorldError

COORDINATOR = "smalltalk-coordinator"
REASON = "the router of expert 1 failed 6 times"


def test_it_ends_with_the_reason(findings: Findings, labelled_corpus: Path, tmp_path: Path) -> None:
    folder, _ = claim(tmp_path / "demo")
    view = DemoView(Console(file=io.StringIO()), make_plan(findings.config, 2, 2))
    run, enrolment = free_ports(2)
    folder.config.write_text(findings.config_toml)
    good(
        *(COORDINATOR, "init", folder.coordinator, "--config", folder.config),
        *("--corpus", labelled_corpus, "--run-address", f"127.0.0.1:{run}"),
        *("--enrol-address", f"127.0.0.1:{enrolment}"),
    )
    with Children(folder.logs) as children, view:
        serving = children.start("it", [program(COORDINATOR), "serve", str(folder.coordinator)])
        wait_for_line(serving, "serving ", 60.0)
        good(COORDINATOR, "pause", folder.coordinator, "--reason", REASON)
        with pytest.raises(WorldError, match=f"the run stopped: {REASON}"):
            watch(Stage(folder, findings, view), children, serving, [])
