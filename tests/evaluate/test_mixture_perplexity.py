"""The evaluation against a naive twin: one sequence at a time, plain transformers, plain sums."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.tiny_mixture import EXPERTS, LENGTH, PREFIX, ROUTER, change_manifest
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.prepare import PrepareOptions, prepare
from smalltalk_fed.data.tokenizer import load_tokenizer
from smalltalk_fed.errors import DataError
from smalltalk_fed.evaluate.perplexity import evaluate
from smalltalk_fed.evaluate.report import SequenceSums, Shape, make_report
from smalltalk_fed.mixture.package import MixtureError
from smalltalk_fed.model.build import model_config


def token_losses(model: torch.nn.Module, row: np.ndarray) -> np.ndarray:
    """-log p of tokens 2..S, the slow way."""
    tokens = torch.tensor(row.astype(np.int64))[None]
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=tokens).logits[0].double(), dim=1)
    return np.array([-log_p[i, tokens[0, i + 1]].item() for i in range(len(row) - 1)])


class Naive:
    """The whole evaluation, written plainly."""

    def __init__(self, mixture: Path, corpus: Path, dense: Path, prices: list[float]) -> None:
        opened = TokenCorpus.open(corpus)
        vocabulary = opened.manifest.vocabulary
        rows = opened.heldout.rows(np.arange(len(opened.heldout)))
        experts = [
            AutoModelForCausalLM.from_pretrained(mixture / "experts" / str(e)).eval()
            for e in range(EXPERTS)
        ]
        routers = []
        for e in range(EXPERTS):
            router = LlamaForCausalLM(LlamaConfig(**model_config(ROUTER, vocabulary, LENGTH)))
            weights = load_file(mixture / "routers" / f"{e}.safetensors")
            router.load_state_dict(weights, strict=False)
            router.tie_weights()
            routers.append(router.eval())
        dense_model = AutoModelForCausalLM.from_pretrained(dense).eval()
        tokenizer = load_tokenizer(corpus / "tokenizer")

        self.chosen, self.mine, self.every, self.dense, self.bytes = [], [], [], [], 0
        for row in rows:
            scores = [
                -token_losses(r, row[:PREFIX]).sum() - p
                for r, p in zip(routers, prices, strict=True)
            ]
            self.chosen.append(int(np.argmax(scores)))
            losses = [token_losses(e, row) for e in experts]
            self.every.append([loss[PREFIX - 1 :].sum() for loss in losses])
            self.mine.append(losses[self.chosen[-1]])
            self.dense.append(token_losses(dense_model, row))
            whole, first = tokenizer.decode(row.tolist()), tokenizer.decode(row[:1].tolist())
            self.bytes += len(whole.encode()) - len(first.encode())

    def ppl(self, losses: list[np.ndarray], start: int) -> float:
        chosen = np.concatenate([loss[start:] for loss in losses])
        return math.exp(chosen.mean())


@pytest.mark.parametrize("prices", [[0.0, 0.0, 0.0], [0.0, 30.0, -5.0]])
def test_every_figure_is_that_of_the_naive_twin(
    mixture: Path, corpus: Path, dense: Path, prices: list[float]
) -> None:
    change_manifest(mixture, prices=prices)
    report = evaluate(mixture, corpus=corpus, dense=dense, oracle=True, device="cpu")
    naive = Naive(mixture, corpus, dense, prices)
    close = pytest.approx

    assert report.mixture.suffix_ppl == close(naive.ppl(naive.mine, PREFIX - 1), rel=1e-4)
    assert report.mixture.all_ppl == close(naive.ppl(naive.mine, 0), rel=1e-4)
    nats = sum(loss.sum() for loss in naive.mine)
    bits = nats / naive.bytes / math.log(2)
    assert report.mixture.bits_per_byte == close(bits, rel=1e-4)
    assert report.dense is not None
    assert report.dense.suffix_ppl == close(naive.ppl(naive.dense, PREFIX - 1), rel=1e-4)
    assert report.dense.all_ppl == close(naive.ppl(naive.dense, 0), rel=1e-4)
    assert report.ratio_suffix == close(report.mixture.suffix_ppl / report.dense.suffix_ppl)
    every = np.array(naive.every) / (LENGTH - PREFIX)
    assert report.oracle_suffix_ppl == close(math.exp(every.min(axis=1).mean()), rel=1e-4)
    assert report.random_suffix_ppl == close(math.exp(every.mean()), rel=1e-4)

    labels = TokenCorpus.open(corpus).heldout.labels
    names = TokenCorpus.open(corpus).label_names
    for row in report.experts:
        ids = [i for i, e in enumerate(naive.chosen) if e == row.expert]
        assert row.sequences == len(ids)
        assert row.tokens == len(ids) * LENGTH
        assert row.domains == {
            name: n for k, name in enumerate(names) if (n := sum(labels[i] == k for i in ids))
        }
        if ids:
            here = naive.ppl([naive.mine[i] for i in ids], PREFIX - 1)
            there = naive.ppl([naive.dense[i] for i in ids], PREFIX - 1)
            assert row.suffix_ppl == close(here, rel=1e-4)
            assert row.dense_suffix_ppl == close(there, rel=1e-4)
    for row in report.domains:
        ids = [i for i, label in enumerate(labels) if names[label] == row.domain]
        assert row.experts == [sum(naive.chosen[i] == e for i in ids) for e in range(EXPERTS)]
        here = naive.ppl([naive.mine[i] for i in ids], PREFIX - 1)
        assert row.suffix_ppl == close(here, rel=1e-4)


def test_without_the_oracle_the_figures_are_the_same(whole_mixture: Path, corpus: Path) -> None:
    alone = evaluate(whole_mixture, corpus=corpus, device="cpu")
    oracle = evaluate(whole_mixture, corpus=corpus, oracle=True, device="cpu")
    assert alone.mixture.suffix_ppl == pytest.approx(oracle.mixture.suffix_ppl, rel=1e-6)
    assert alone.oracle_suffix_ppl is None
    assert alone.dense is None
    assert json.loads(json.dumps(alone.to_json()))["ratio_suffix"] is None


def test_text_is_cut_as_prepare_cuts_it(whole_mixture: Path, corpus: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in (corpus.parent / "text.jsonl").open()]
    heldout = [record for record in records if record["split"] == "validation"]
    text = tmp_path / "heldout.jsonl"
    text.write_text("".join(json.dumps({"text": r["text"]}) + "\n" for r in heldout))
    by_corpus = evaluate(whole_mixture, corpus=corpus, device="cpu")
    by_text = evaluate(whole_mixture, text=[text], device="cpu")
    assert by_text.sequences == by_corpus.sequences
    assert by_text.mixture == by_corpus.mixture
    assert by_text.domains == []


def test_text_that_fills_no_sequence_is_refused(whole_mixture: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("one two")
    with pytest.raises(DataError, match=r"too short.*the 24 that one sequence needs"):
        evaluate(whole_mixture, text=[tmp_path / "short.txt"], device="cpu")


def test_a_corpus_of_another_tokenizer_is_refused(
    mixture: Path, corpus: Path, tmp_path: Path
) -> None:
    other = tmp_path / "corpus"
    prepare(
        PrepareOptions(
            inputs=(corpus.parent / "text.jsonl",),
            out=other,
            sequence_tokens=LENGTH,
            vocabulary=270,
            heldout_fraction=0.5,
            workers=1,
        )
    )
    with pytest.raises(DataError, match="another tokenizer"):
        evaluate(mixture, corpus=other, device="cpu")


def test_a_dense_model_of_another_tokenizer_is_refused(
    whole_mixture: Path, corpus: Path, dense: Path, tmp_path: Path
) -> None:
    shutil.copytree(dense, tmp_path / "dense")
    (tmp_path / "dense" / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="another tokenizer"):
        evaluate(whole_mixture, corpus=corpus, dense=tmp_path / "dense", device="cpu")


def test_a_prefix_as_long_as_the_sequence_leaves_nothing_to_judge(
    mixture: Path, corpus: Path
) -> None:
    change_manifest(mixture, prefix_tokens=LENGTH)
    with pytest.raises(DataError, match="nothing after the prefix"):
        evaluate(mixture, corpus=corpus, device="cpu")


def test_changed_tokenizer_or_router_is_refused(mixture: Path, corpus: Path) -> None:
    router = mixture / "routers" / "1.safetensors"
    data = router.read_bytes()
    router.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(MixtureError, match="router 1"):
        evaluate(mixture, corpus=corpus, device="cpu")
    router.write_bytes(data)
    (mixture / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(MixtureError, match="tokenizer"):
        evaluate(mixture, corpus=corpus, device="cpu")


def test_routers_of_another_shape_are_refused(mixture: Path, corpus: Path) -> None:
    change_manifest(mixture, router_shape={"hidden": 32, "layers": 1, "heads": 2})
    with pytest.raises(MixtureError, match="another model"):
        evaluate(mixture, corpus=corpus, device="cpu")


SHAPE = Shape(sequence_tokens=10, prefix_tokens=4)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.floats(0.1, 40), st.floats(0.1, 40), st.floats(0.1, 40)),
        min_size=1,
        max_size=30,
    )
)
def test_parts_make_up_the_whole(rows: list[tuple[int, float, float, float]]) -> None:
    experts_N = np.array([row[0] for row in rows])
    every_NxE = np.array([row[1:] for row in rows])
    suffix_N = every_NxE[np.arange(len(rows)), experts_N]
    sums = SequenceSums(np.ones(len(rows)), suffix_N)
    report = make_report(SHAPE, experts_N, 3, sums, None, every_NxE, 1000)
    assert sum(row.sequences for row in report.experts) == len(rows)
    logs = [row.sequences * math.log(row.suffix_ppl) for row in report.experts if row.suffix_ppl]
    assert math.log(report.mixture.suffix_ppl) == pytest.approx(sum(logs) / len(rows))
    assert report.oracle_suffix_ppl is not None
    assert report.random_suffix_ppl is not None
    assert report.oracle_suffix_ppl <= report.mixture.suffix_ppl * (1 + 1e-9)
    assert report.oracle_suffix_ppl <= report.random_suffix_ppl * (1 + 1e-9)
