"""The real programs with a bad line between them: far, lossy, narrow, and at times dead.

The outage lasts until both ends have noticed; with `SMALLTALK_OUTAGE_S=600` ten minutes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.deployment import SMALL_RUN, Deployment, deployment, wait_for
from support.netns import COORDINATOR, Line, Quality, bad_line, missing

OUTAGE_S = float(os.environ.get("SMALLTALK_OUTAGE_S", "0"))
WHY_NOT = missing()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.timeout(OUTAGE_S + 300),
]

Deploy = Callable[..., tuple[Deployment, Line]]


@pytest.fixture
def apart(tmp_path: Path, small_corpus: Path) -> Iterator[Deploy]:
    """`apart(Quality(..), **settings)`: a served run, and one node behind a bad line."""
    with ExitStack() as stack:

        def make(quality: Quality, **changes: object) -> tuple[Deployment, Line]:
            line = stack.enter_context(bad_line(quality))
            run = stack.enter_context(
                deployment(tmp_path, small_corpus, {**SMALL_RUN, "run.lease_s": 60.0, **changes})
            )
            run.host = COORDINATOR
            run.at_coordinator = line.inside(line.coordinator)
            run.at_nodes = line.inside(line.node)
            run.init()
            run.serve()
            run.join("a")
            run.node("a")
            return run, line

        yield make


def sent_up(rows: list[dict[str, Any]], kind: str) -> int:
    """Bytes of one kind that went to the coordinator, in a ledger's lines."""
    return sum(row["bytes"] for row in rows if (row["kind"], row["direction"]) == (kind, "up"))


def test_a_run_finishes_at_300_ms_with_2_percent_loss_and_1_mbit_up(apart: Deploy) -> None:
    run, _ = apart(Quality(delay_s=0.15, loss=0.02, up_bits_s=1e6))
    status = run.wait_phase("finished")
    assert run.children.pop("a").wait(60) == 0, run.log("a")
    size = sum(path.stat().st_size for path in (run.run / "mixture" / "routers").iterdir())
    rounds = 3
    # Lost packets come again, blobs don't.
    assert sent_up(status["bytes"]["rows"], "parameters") < 1.02 * rounds * size


def established(run: Deployment) -> int:
    """Connections that the coordinator has open to nodes."""
    net, port = Path(f"/proc/{run.children['coordinator'].pid}/net"), f":{run.run_port:04X}"
    lines = [line for name in ("tcp", "tcp6") for line in (net / name).read_text().splitlines()]
    fields = [line.split() for line in lines]
    return sum(1 for field in fields if field[1].endswith(port) and field[3] == "01")


def test_an_outage_in_the_middle_of_an_upload_resumes_at_the_offset(apart: Deploy) -> None:
    run, line = apart(
        Quality(delay_s=0.02, loss=0.0, up_bits_s=1e6),
        **{"run.experts": 1, "expert.model.hidden": 384, "expert.model.feed_forward": 1024},
    )
    uploads = run.run / "blobs" / "uploads"

    def half_there() -> bool:
        return any(path.stat().st_size > 3 << 20 for path in uploads.glob("*.part"))

    wait_for(half_there, "half of the expert's weights to arrive")
    assert established(run)
    line.cut()
    over = time.monotonic() + OUTAGE_S
    wait_for(lambda: "Trying again" in run.log("a"), "the node to notice")
    wait_for(lambda: not established(run), "the coordinator to hang up on a dead line")
    wait_for(lambda: time.monotonic() > over, "the outage to pass", OUTAGE_S + 60)
    line.restore()
    status = run.wait_phase("finished")
    assert run.children.pop("a").wait(60) == 0, run.log("a")
    size = (run.run / "mixture" / "experts" / "0" / "model.safetensors").stat().st_size
    arrived = sent_up(status["bytes"]["rows"], "weights")
    left = json.loads((run.folder / "a" / "node-status.json").read_text())["bytes"]["weights_up"]
    # What was under way when the line died comes again: a few parts of 256 KiB.
    assert size < arrived <= left < size + (1 << 20)


def test_a_silent_line_that_dies_is_closed_by_the_coordinator(apart: Deploy) -> None:
    """A held question: neither side has anything to send, so TCP notices nothing."""
    run, line = apart(
        Quality(delay_s=0.02, loss=0.0), **{"run.nodes_to_start": 2, "run.poll_s": 600.0}
    )
    wait_for(lambda: any(node["present"] for node in run.glance()["nodes"]), "the node to join")
    assert established(run)
    line.cut()
    wait_for(lambda: not established(run), "the coordinator to hang up on a dead line")
