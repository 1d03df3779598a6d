"""Asking experts elsewhere: what is here is run here, and a relay that is not there says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.local_run import make_run_folder
from support.tiny_mixture import EXPERTS, KINDS, PREFIX
from support.tiny_run import write_tiny_corpus

from smalltalk_fed.cli import run as smalltalk
from smalltalk_fed.errors import UserError, WorldError
from smalltalk_fed.evaluate.federated import RelayedExperts, generate_federated, relayed_sums
from smalltalk_fed.evaluate.generate import Sampling, generate
from smalltalk_fed.evaluate.heldout import Heldout, heldout_of_tokens
from smalltalk_fed.evaluate.mixture import Mixture
from smalltalk_fed.mixture.package import MixtureError

NOWHERE = Path("/nowhere")


def test_experts_that_are_here_are_not_asked_for(whole_mixture: Path) -> None:
    mixture, alone = Mixture.load(whole_mixture, federated=True), Mixture.load(whole_mixture)
    with RelayedExperts(NOWHERE) as experts:  # nobody answers there
        for words in KINDS.values():
            sampling = Sampling(8, seed=2)
            choice, answer, pieces = generate_federated(mixture, experts, words, sampling)
            expected, text = generate(alone, words, sampling)
            assert (choice, answer, "".join(pieces)) == (expected, None, "".join(text))


def test_what_is_not_here_can_be_chosen_and_not_be_run(mixture: Path) -> None:
    shutil.rmtree(mixture / "experts" / "1")
    loaded = Mixture.load(mixture, federated=True)
    assert loaded.present == tuple(range(EXPERTS))
    assert loaded.here == (0, 2)
    with pytest.raises(MixtureError, match="no expert 1 that is present"):
        loaded.expert(1)
    assert Mixture.load(mixture).present == (0, 2)


def test_a_relay_that_can_not_start_is_an_error(tmp_path: Path) -> None:
    with (
        RelayedExperts(tmp_path) as experts,
        pytest.raises(UserError, match="the relay ended"),
    ):
        experts.ask(0, [1, 2, 3], Sampling(4), None, 1)


def test_a_run_that_nobody_serves_is_an_error_in_a_sentence(tmp_path: Path) -> None:
    corpus = write_tiny_corpus(tmp_path / "corpus")
    make_run_folder(tmp_path / "run", corpus)
    with RelayedExperts(tmp_path / "run") as experts:
        for _ in range(2):  # the child goes on after the first
            with pytest.raises(WorldError, match="no coordinator answers at 127"):
                experts.ask(0, [1, 2, 3], Sampling(4), None, 1)


class Sums(RelayedExperts):
    """Notes what is asked, and tells sums that can be checked."""

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def measure(
        self, expert: int, tokens_NxS: np.ndarray, prefix_tokens: int
    ) -> tuple[float, float]:
        self.asked.append(tokens_NxS)
        return float(tokens_NxS[:, :prefix_tokens].sum()), float(
            tokens_NxS[:, prefix_tokens:].sum()
        )


def test_rows_of_one_message_have_one_label_and_its_sums_come_out_right() -> None:
    random = np.random.default_rng(5)
    tokens_NxS = random.integers(0, 9, (50, 4000))  # four rows a message
    labels_N = random.integers(0, 3, 50)
    heldout = Heldout(heldout_of_tokens(tokens_NxS).sequences, 4000, labels_N, ("a", "b", "c"))
    ids, relay = np.arange(3, 47), Sums()
    sums = relayed_sums(relay, 0, heldout, ids, PREFIX)
    assert max(len(rows) for rows in relay.asked) == 4
    assert sum(len(rows) for rows in relay.asked) == len(ids)
    for label in range(3):
        mine = labels_N[ids] == label
        rows = tokens_NxS[ids[mine]]
        assert sums.prefix_nll_N[mine].sum() == pytest.approx(rows[:, :PREFIX].sum())
        assert sums.suffix_nll_N[mine].sum() == pytest.approx(rows[:, PREFIX:].sum())


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("generate", ["--federated", "--prompt", "x"]),
        ("generate", ["--run", "somewhere", "--prompt", "x"]),
        ("evaluate", ["--federated", "--corpus", "somewhere"]),
        ("evaluate", ["--federated", "--run", "r", "--oracle", "--corpus", "somewhere"]),
    ],
)
def test_what_goes_together_is_said(
    whole_mixture: Path, command: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert smalltalk([command, str(whole_mixture), *options]) == 2
    said = capsys.readouterr().err
    assert "--federated and --run RUN go together" in said or "--oracle asks every" in said
