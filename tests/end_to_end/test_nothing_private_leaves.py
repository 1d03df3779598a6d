"""All that two nodes send in a whole run, before encryption: only what is declared, no text.

A sentence is planted in the corpus. It must not be found in what left, nor must its tokens, in
any encoding; scores leave as declared in this regime, as blobs of 2 bytes a sequence, and in no
other form.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.deployment import SMALL_RUN, Deployment, command, deployment, good
from support.leaks import Haystack, score_pieces, text_pieces, token_pieces
from tokenizers import Tokenizer

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.units import UnitKey
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.packs import unpack_small
from smalltalk_fed.mixture.permutation import chunk_ids
from smalltalk_fed.mixture.scores import encode_scores
from smalltalk_fed.train.routers import build_router
from smalltalk_fed.train.scoring import score_one
from smalltalk_fed.wire.egress_record import (
    Sent,
    Upload,
    read_record,
    undeclared,
    undeclared_upload,
    uploads,
)

SENTENCE = (
    "Zephyrine Quillwater buried the cobalt astrolabe beneath the seventh willow of Marrowbridge."
)
DOMAINS, DOCUMENTS = ("python", "scripture"), 8
NODES = ("a", "b")


def prepare(folder: Path) -> Path:
    """A corpus with the sentence in the middle of one of its documents."""
    pack = unpack_small(folder / "pack")
    for domain in DOMAINS:
        lines = [json.loads(line) for line in (pack / f"{domain}.jsonl").read_text().splitlines()]
        kept = [line for line in lines if line["split"] == "train"][:DOCUMENTS]
        text = kept[0]["text"]
        kept[0]["text"] = f"{text[:200]} {SENTENCE} {text[200:]}"
        kept += [line for line in lines if line["split"] != "train"][:2]
        (folder / f"{domain}.jsonl").write_text("\n".join(map(json.dumps, kept)) + "\n")
    good(
        "smalltalk", "prepare", *(folder / f"{d}.jsonl" for d in DOMAINS),
        "--out", folder / "corpus",
        "--sequence-tokens", 64, "--vocabulary", 300, "--label-field", "domain",
        "--split-field", "split",
    )  # fmt: skip
    return folder / "corpus"


class Finished:
    """A run that has come to its end, and all that left its nodes."""

    def __init__(self, run: Deployment) -> None:
        self.manifest = RunManifest.from_bytes((run.run / "manifest.json").read_bytes())
        self.corpus = TokenCorpus.open(run.corpus)
        self.messages: list[Sent] = []
        self.uploads: list[Upload] = []
        places: dict[str, bytes] = {}
        for name in NODES:
            messages = list(read_record(record(run, name)))
            self.messages += messages
            self.uploads += uploads(messages)
            found = Haystack.of(messages).places
            places |= {f"{name}: {place}": data for place, data in found.items()}
        self.left = Haystack(places)


def record(run: Deployment, name: str) -> Path:
    return run.folder / f"{name}.egress"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A deployment of the past: its processes have ended, its files are there."""
    folder = tmp_path_factory.mktemp("run")
    settings = {**SMALL_RUN, "expert.collect": "every 2 steps", "expert.steps": 6}
    with deployment(folder, prepare(tmp_path_factory.mktemp("text")), settings) as run:
        run.init()
        run.serve()
        for name in NODES:
            run.join(name)
            run.start(
                name, "smalltalk-node", "run", "--dir", folder / name, "--corpus", run.corpus,
                "--threads", 1, "--record-egress", record(run, name),
            )  # fmt: skip
        run.wait_phase("finished")
        for name in NODES:
            assert run.children.pop(name).wait(60) == 0, run.log(name)
    return run


@pytest.fixture(scope="module")
def finished(run: Deployment) -> Finished:
    return Finished(run)


def test_only_declared_messages_and_blobs_leave(finished: Finished) -> None:
    assert [problem for sent in finished.messages if (problem := undeclared(sent))] == []
    wrong = [undeclared_upload(upload, finished.manifest) for upload in finished.uploads]
    assert [problem for problem in wrong if problem] == []
    assert {"parameters", "scores", "experts", "config", "weights"} <= {
        upload.name for upload in finished.uploads
    }


def test_the_planted_text_is_in_the_corpus_and_not_in_what_left(finished: Finished) -> None:
    folder = finished.corpus.folder
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    tokens = tokenizer.encode(" " + SENTENCE).ids
    shard = Haystack({"shard": (folder / "train-00000.bin").read_bytes()})
    assert len(tokens) > 20
    assert shard.find(token_pieces(tokens)), "the search does not find what is there"
    assert finished.left.find(token_pieces(tokens)) == []
    assert finished.left.find(text_pieces(SENTENCE)) == []


def test_no_run_of_tokens_of_any_sequence_leaves(finished: Finished) -> None:
    """Not only the planted ones: every tenth sequence of the corpus, from its start."""
    count = finished.corpus.manifest.train.sequences
    pieces: set[bytes] = set()
    for row in finished.corpus.train.rows(np.arange(0, count, 10)):
        pieces |= token_pieces(row[:12].tolist())
    assert finished.left.find(pieces) == []


def test_scores_leave_as_declared_and_in_no_other_form(finished: Finished) -> None:
    manifest, config = finished.manifest, finished.manifest.config
    blobs = {(u.unit_id, u.name): bytes(u.data) for u in finished.uploads}
    blocks = [unit_id for unit_id, name in blobs if name == "scores"]
    assert len(blocks) >= (config.router.rounds - 1) * manifest.experts
    for unit_id in blocks:
        key = UnitKey.parse(unit_id)
        router = build_router(manifest, key.expert, blobs[unit_id, "parameters"])
        chunk = config.router.chunk_sequences
        ids = chunk_ids(config.run.seed, manifest.train_sequences, key.index, chunk)
        scores = score_one(
            router, finished.corpus.train, ids, config.sequence.prefix,
            batch_sequences=config.compute.score_batch,
        )  # fmt: skip
        # The block is these scores, rounded, and nothing besides.
        assert encode_scores(scores) == blobs[unit_id, "scores"]
        assert finished.left.find(score_pieces(scores.tolist())) == []
    assert (
        finished.left.score_like(-8.0 * config.sequence.prefix, -1.0 * config.sequence.prefix) == []
    )


def test_the_operator_can_check_it(run: Deployment) -> None:
    for name in NODES:
        arguments = ("egress", record(run, name), "--dir", run.folder / name)
        assert "All of it declared." in good("smalltalk-node", *arguments)
        assert command("smalltalk-node", *arguments, "--find", SENTENCE[:20]).returncode == 0
