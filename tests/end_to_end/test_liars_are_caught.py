"""Whole runs in which nodes lie: they are caught, and the mixture is the honest one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.local_run import ADDRESSES
from support.lying_nodes import (
    Ended,
    Work,
    accusing,
    honest,
    play,
    random_scores,
    wrong_domain,
    wrong_share,
)
from support.tiny_units import UnitDoer
from support.two_kinds import write_two_kinds

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.host.folder import RunFolder

SHAPE = {"hidden": 16, "layers": 1, "heads": 2, "feed_forward": 32}
CONFIG = {
    "run": {"experts": 4, "nodes_to_start": 5, "poll_s": 1.0, "spare_copies": 0},
    "sequence": {"length": 16, "prefix": 8},
    "router": {
        "model": SHAPE,
        "rounds": 4,
        "chunk_sequences": 128,
        "batch_sequences": 8,
        "optimizer": {"learning_rate": 0.02, "schedule": "constant", "clip": 1.0},
    },
    "expert": {
        "model": SHAPE,
        "steps": 60,
        "batch_sequences": 8,
        "optimizer": {"learning_rate": 0.02, "warmup_steps": 2, "clip": 1.0},
    },
    "compute": {"threads": 1, "train_dtype": "float32"},
}
Run = Callable[..., Ended]
HONEST = tuple((name, honest) for name in ("ann", "bob", "cem"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`run(("liar", work), ...)`: a run of three honest nodes and of these, which are faster."""
    corpus = write_two_kinds(tmp_path_factory.mktemp("text") / "corpus", 512, 128)
    config = parse_config(CONFIG, "test")
    doers: list[UnitDoer] = []

    def start(*liars: tuple[str, Work]) -> Ended:
        path = tmp_path_factory.mktemp("run") / "run"
        folder = RunFolder.create(path, config, "# test\n", corpus.folder, ADDRESSES, now=1.0)
        doers.append(UnitDoer(folder.manifest, corpus, doers[0].done if doers else {}))
        return play(folder, doers[-1], (*liars, *HONEST))

    return start


@pytest.fixture(scope="module")
def undisturbed(run: Run) -> Ended:
    """Five honest nodes."""
    return run(("dan", honest), ("eve", honest))


def quarantined(ended: Ended) -> set[str]:
    return {node.name for node in ended.state.nodes.values() if node.quarantined}


def test_nobody_is_caught_in_an_honest_run(undisturbed: Ended) -> None:
    assert quarantined(undisturbed) == set()
    assert any(
        unit_id.startswith("audit/") for node in undisturbed.nodes.values() for unit_id in node.done
    )


def test_random_scores_and_a_wrong_expert_are_caught_and_done_again(
    run: Run, undisturbed: Ended
) -> None:
    ended = run(("scores", random_scores), ("expert", wrong_domain))
    assert quarantined(ended) == {"scores", "expert"}
    reasons = {node.name: node.quarantined for node in ended.state.nodes.values()}
    assert "scores are not its router's" in reasons["scores"]
    assert "its router prefers a text" in reasons["expert"]
    assert ended.state.phase.value == "finished"
    assert ended.mixture.keys() == undisturbed.mixture.keys()
    assert ended.mixture == undisturbed.mixture


def test_routers_trained_on_the_wrong_share_are_caught_and_trained_again(
    run: Run, undisturbed: Ended
) -> None:
    ended = run(("share", wrong_share), ("dan", honest))
    assert quarantined(ended) == {"share"}
    (liar,) = (node for node in ended.state.nodes.values() if node.quarantined)
    assert "from what its share makes of it" in liar.quarantined
    assert ended.mixture == undisturbed.mixture


def test_a_node_that_accuses_others_is_the_one_that_is_caught(run: Run, undisturbed: Ended) -> None:
    ended = run(("accuser", accusing), ("dan", honest))
    assert quarantined(ended) == {"accuser"}
    assert ended.mixture == undisturbed.mixture
