"""Which run a node takes part in: the one that it knows, whose corpus it has, whose key it saw."""

from __future__ import annotations

from pathlib import Path

import pytest
from smalltalk_node.program import Options, Program
from support.node_stage import KEY, STOP, Stage
from support.tiny_run import tiny_manifest, write_tiny_corpus

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import DataError, Unauthenticated
from smalltalk_fed.wire import convert


def test_the_run_is_remembered_for_the_next_start(stage: Stage) -> None:
    stage.play(STOP)
    identity = stage.folder.identity()
    assert identity.run_id == "run-1"
    assert identity.coordinator_key == KEY.public_bytes.hex()
    stage.script(STOP)
    assert Program(stage.folder, Options()).run() == STOP.reason  # the corpus is known
    first, second = (join.incarnation for join in stage.loopback.joins)
    assert second > first


def test_no_corpus_is_a_users_mistake(stage: Stage) -> None:
    with pytest.raises(DataError, match="--corpus"):
        Program(stage.folder, Options())


def test_another_corpus_than_the_runs_is_not_worked_on(stage: Stage, tmp_path: Path) -> None:
    other = write_tiny_corpus(tmp_path / "other", seed=2)
    with pytest.raises(DataError, match="is not the run's"):
        stage.play(manifest=tiny_manifest(other))


def test_a_damaged_corpus_is_found_before_work(stage: Stage, tmp_path: Path) -> None:
    corpus = write_tiny_corpus(tmp_path / "damaged")
    shard = tmp_path / "damaged" / "train-00000.bin"
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        Program(stage.folder, Options(corpus.folder))


def test_a_corpus_is_read_through_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    real = TokenCorpus.open

    def counting(folder: Path, verify: bool = False) -> TokenCorpus:
        opened.append(verify)
        return real(folder, verify)

    monkeypatch.setattr(TokenCorpus, "open", counting)
    stage.program()
    stage.program()
    assert opened == [False, True, False]


def test_a_manifest_that_is_not_signed_is_refused(stage: Stage) -> None:
    stage.script()
    good = stage.welcome
    stage.loopback.behaviour.join = lambda join: convert.Welcome(
        good(join).joined, good(join).manifest, bytes(64), KEY.public_bytes
    )
    with pytest.raises(Unauthenticated, match="manifest"):
        stage.program().run()


def test_another_coordinator_than_the_first_time_is_refused(stage: Stage) -> None:
    stage.folder.remember(coordinator_key="ab" * 32)
    with pytest.raises(Unauthenticated, match="another signing key"):
        stage.play()
