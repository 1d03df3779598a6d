"""`serve-experts`: the same tokens as drawn here, within the owner's bounds, over its own line.

A real coordinator and a real node in this process, over sockets; the expert is untrained.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from smalltalk_coordinator.operator_client import OperatorClient
from smalltalk_node import serving
from smalltalk_node.options import Options
from smalltalk_node.recording import EgressRecorder
from smalltalk_node.serving import Bounds, Serving
from support.deployment import wait_for
from support.owners import finish, keep_expert, node_folder
from support.served_run import ServedRun, free_addresses, make_served_folder, served_run
from support.tiny_mixture import LENGTH
from support.tiny_run import VOCABULARY
from transformers import AutoModelForCausalLM

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import Forbidden, UserError, WorldError
from smalltalk_fed.evaluate.generate import Sampling, continue_tokens
from smalltalk_fed.model.build import load_model
from smalltalk_fed.wire.convert_measuring import Text
from smalltalk_fed.wire.convert_serving import Answered, Prompt
from smalltalk_fed.wire.egress_record import read_record, undeclared
from smalltalk_fed.worksite.identity import NodeFolder

SOON_S = 30.0
PROMPT = Prompt(0, (5, 6, 7), tokens_max=20, temperature=0.7, top_p=0.9, seed=11)


@pytest.fixture(scope="module")
def served(corpus: TokenCorpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedRun]:
    place = tmp_path_factory.mktemp("served")
    with served_run(make_served_folder(place / "run", corpus, free_addresses())) as run:
        yield run


@pytest.fixture(scope="module")
def folder(served: ServedRun, tmp_path_factory: pytest.TempPathFactory) -> NodeFolder:
    """The owner of expert 0; expert 1 is another node's."""
    place = tmp_path_factory.mktemp("nodes")
    anna, berta = (node_folder(served, place / name, name) for name in ("anna", "berta"))
    finish(served, [anna.identity().node_id, berta.identity().node_id])
    keep_expert(anna, served, 0)
    return anna


@pytest.fixture
def start(served: ServedRun, folder: NodeFolder) -> Iterator[Callable[..., Future[str]]]:
    """Serve in a thread, and wait until it is known; the future is `run`'s."""
    begun: list[Serving] = []
    with ThreadPoolExecutor(2) as threads:

        def begin(options: Options = Options(device="cpu"), **bounds: int) -> Future[str]:
            begun.append(Serving(folder, options, Bounds(**bounds)))
            ended = threads.submit(begun[-1].run)
            wait_for(lambda: ended.done() or serves(served), "the node to serve")
            return ended

        yield begin
        for each in begun:
            each.stop()
    wait_for(lambda: not serves(served), "the node to be gone")


def serves(run: ServedRun) -> bool:
    with OperatorClient(run.folder) as client:
        return "0" in client.status()["serving_experts"]


def ask(run: ServedRun, prompt: Prompt = PROMPT) -> Answered:
    with OperatorClient(run.folder) as client:
        return client.generate(prompt)


def drawn_here(folder: NodeFolder, run: ServedRun, prompt: Prompt) -> tuple[int, ...]:
    place = folder.path / "experts" / run.folder.manifest.run_id / "0"
    model = load_model(place, run.folder.manifest.vocabulary, 1).eval()
    sampling = Sampling(prompt.tokens_max, prompt.temperature, prompt.top_p, prompt.seed)
    return tuple(continue_tokens(model, list(prompt.tokens), sampling, prompt.end, LENGTH))


def test_the_answer_is_what_is_drawn_here_with_the_same_seed(
    served: ServedRun, folder: NodeFolder, start: Callable[..., Future[str]]
) -> None:
    start()
    for seed in (11, 12):
        prompt = replace(PROMPT, seed=seed)
        answered = ask(served, prompt)
        assert answered.tokens == drawn_here(folder, served, prompt)
        assert (answered.node_id, answered.node_name) == (folder.identity().node_id, "anna")
    assert ask(served).tokens != answered.tokens


def test_an_answer_is_no_longer_than_the_owner_allows(
    served: ServedRun, folder: NodeFolder, start: Callable[..., Future[str]]
) -> None:
    start(tokens_max=3)
    assert ask(served).tokens == drawn_here(folder, served, PROMPT)[:3]


def test_it_ends_after_so_many_answers(
    served: ServedRun, start: Callable[..., Future[str]]
) -> None:
    ended = start(answers=2)
    ask(served)
    assert not ended.done()
    ask(served)
    assert ended.result(SOON_S) == "2 prompts were answered"


def test_several_at_a_time_give_the_same_answers(
    served: ServedRun, folder: NodeFolder, start: Callable[..., Future[str]]
) -> None:
    start(at_once=3)
    prompts = [replace(PROMPT, seed=seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda prompt: ask(served, prompt), prompts))
    assert [each.tokens for each in found] == [drawn_here(folder, served, p) for p in prompts]


def test_a_text_is_measured_as_it_is_here(
    served: ServedRun, folder: NodeFolder, start: Callable[..., Future[str]]
) -> None:
    start()
    tokens_NxS = np.random.default_rng(1).integers(0, VOCABULARY, (7, LENGTH))
    text = Text(0, tuple(map(int, tokens_NxS.ravel())), LENGTH, 8)
    with OperatorClient(served.folder) as client:
        measured = client.measure(text)
    place = folder.path / "experts" / served.folder.manifest.run_id / "0"
    model = AutoModelForCausalLM.from_pretrained(place).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(tokens_NxS)).logits[:, :-1].double()
    chosen = torch.log_softmax(logits, -1).gather(2, torch.tensor(tokens_NxS)[:, 1:, None])
    losses_NxS = -chosen[..., 0]
    assert measured.prefix_nll == pytest.approx(float(losses_NxS[:, :7].sum()), rel=1e-5)
    assert measured.suffix_nll == pytest.approx(float(losses_NxS[:, 7:].sum()), rel=1e-5)


def test_a_prompt_that_can_not_be_is_told_and_the_next_is_answered(
    served: ServedRun, start: Callable[..., Future[str]]
) -> None:
    start()
    with pytest.raises(WorldError, match="could not answer: a token is beyond"):
        ask(served, replace(PROMPT, tokens=(5, served.folder.manifest.vocabulary)))
    assert ask(served).tokens


def test_a_restarted_coordinator_is_dialled_again(
    served: ServedRun, start: Callable[..., Future[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "RETRY_LAST_S", 0.1)
    ended = start()
    served.stop()
    served.start()
    wait_for(lambda: serves(served), "the node to come back")
    assert ask(served).tokens
    assert not ended.done()


def test_stopping_it_ends_the_line(
    served: ServedRun, folder: NodeFolder, start: Callable[..., Future[str]]
) -> None:
    made = Serving(folder, Options(device="cpu"))
    caught: list[BaseException] = []

    def run() -> None:
        try:
            made.run()
        except KeyboardInterrupt as end:
            caught.append(end)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: serves(served), "the node to serve")
    made.stop()
    thread.join(SOON_S)
    assert len(caught) == 1


def test_an_expert_that_is_not_its_own_ends_it_with_the_reason(
    served: ServedRun, folder: NodeFolder
) -> None:
    place = keep_expert(folder, served, 1)
    try:
        with pytest.raises(Forbidden, match="expert 1 can't be served by node"):
            Serving(folder, Options(device="cpu")).run()
    finally:
        for path in place.iterdir():
            path.unlink()


def test_all_that_leaves_while_it_serves_is_declared(
    served: ServedRun, start: Callable[..., Future[str]], tmp_path: Path
) -> None:
    record = tmp_path / "egress"
    start(Options(device="cpu", recorder=EgressRecorder(record)), answers=1)
    answered = ask(served)
    sent = [each for each in read_record(record) if each.call == "Serve"]
    assert len(sent) == 2  # the offer and the answer
    assert [problem for each in sent if (problem := undeclared(each))] == []
    assert answered.tokens


@pytest.mark.parametrize(
    ("experts", "says"), [((), "no finished expert"), ((1,), "has no expert 1")]
)
def test_without_the_expert_nothing_is_dialled(
    served: ServedRun, tmp_path: Path, experts: tuple[int, ...], says: str
) -> None:
    folder = NodeFolder.open(tmp_path / "new")
    with pytest.raises(UserError, match="taken part in no run"):
        Serving(folder, Options(device="cpu"), experts=experts)
    folder.file("manifest.json").write_bytes(served.folder.manifest.to_bytes())
    with pytest.raises(UserError, match=says):
        Serving(folder, Options(device="cpu"), experts=experts)


def test_of_those_that_are_named_each_must_be_here(folder: NodeFolder) -> None:
    with pytest.raises(UserError, match="has no expert 1 of this run; it has 0"):
        Serving(folder, Options(device="cpu"), experts=(0, 1))
