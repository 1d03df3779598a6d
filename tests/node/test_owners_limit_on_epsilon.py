"""What a silo's owner lets a run cost: held against the whole run before anything is said."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from smalltalk_node import cli
from smalltalk_node.options import Options
from smalltalk_node.program import Program
from support.node_stage import STOP, Stage
from support.tiny_run import LENGTH, SHAPE, VOCABULARY, tiny_manifest

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest, make_private_manifest
from smalltalk_fed.core.units import Unit, UnitKey
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.telemetry.console import run_program
from smalltalk_fed.train.silo_counts import silo_cost
from smalltalk_fed.worksite.folders import Workplace
from smalltalk_fed.worksite.limits import Limits
from smalltalk_fed.worksite.privacy_limit import TOLD, CostsTooMuch, refuse_cost
from smalltalk_fed.worksite.work import do_unit


def noised(count_noise: float = 5.0, router_noise: float = 1.0) -> RunManifest:
    """Two silos of one expert each, two blocks, two counts after the last."""
    optimizer = {"learning_rate": 0.01, "clip": 1.0}
    table = {
        "run": {"experts": 2, "regime": "private", "poll_s": 1.0},
        "sequence": {"length": LENGTH, "prefix": 8},
        "router": {"model": SHAPE, "rounds": 2, "chunk_sequences": 32, "batch_sequences": 8,
                   "optimizer": optimizer},
        "expert": {"model": SHAPE, "steps": 2, "batch_sequences": 4, "optimizer": optimizer},
        "private": {"exchange_rounds": 1, "price_rounds": 2},
        "privacy": {"router_noise": router_noise, "count_noise": count_noise},
        "compute": {"threads": 1},
    }  # fmt: skip
    tokenizer = hashlib.sha256(b"{}").hexdigest()  # that of the tiny corpora
    return make_private_manifest(parse_config(table, "test"), tokenizer, VOCABULARY, "run-1", 1)


def cost_of(corpus: TokenCorpus, manifest: RunManifest) -> tuple[float, float]:
    routers, counts = silo_cost(manifest, len(corpus.train), len(corpus.heldout))
    return routers.epsilon, counts.epsilon


def test_what_is_held_against_the_limit_is_what_the_last_units_report(
    corpus: TokenCorpus, tmp_path: Path
) -> None:
    manifest = noised()
    (tmp_path / "work").mkdir()
    place = Workplace(manifest, corpus, tmp_path / "work", tmp_path / "experts", "cpu")
    files: dict[str, Path] = {}

    def figures(unit_id: str) -> dict[str, float]:
        unit = Unit(UnitKey.parse(unit_id), prices=(0.0, 0.0))
        done = do_unit(
            unit, files, place, lambda part, seen: None, lambda step, path: None, lambda: False
        )
        for name, data in done.outputs.items():
            for expert in "01" if name == "router-0" else "":
                files[f"router-{expert}"] = tmp_path / f"{unit_id.replace('/', '-')}-{expert}"
                files[f"router-{expert}"].write_bytes(bytes(data))
        return done.figures

    units = ("silo_block/0/1", "count/0/1/0", "silo_block/0/2", "count/0/2/0", "count/0/2/1")
    told = {unit_id: figures(unit_id)["epsilon"] for unit_id in units}
    assert cost_of(corpus, manifest) == (told["silo_block/0/2"], told["count/0/2/1"])


def test_a_run_at_the_limit_is_let_in_and_one_above_it_is_not(corpus: TokenCorpus) -> None:
    manifest = noised()
    routers, counts = cost_of(corpus, manifest)
    assert routers > counts > 0
    refuse_cost(manifest, Limits(epsilon_at_most=routers), corpus)
    refuse_cost(manifest, Limits(), corpus)  # whoever sets none, has none
    with pytest.raises(CostsTooMuch) as refused:
        refuse_cost(manifest, Limits(epsilon_at_most=0.99 * routers), corpus)
    assert "routers would cost each training sequence" in str(refused.value)
    assert f"an epsilon of {routers:.3g} (delta" in str(refused.value)
    assert "--epsilon-at-most" in str(refused.value)


def test_counts_are_held_against_it_as_well(corpus: TokenCorpus) -> None:
    manifest = noised(count_noise=1.0)
    routers, counts = cost_of(corpus, manifest)
    assert counts > routers
    with pytest.raises(CostsTooMuch, match="counts would cost each held-out sequence"):
        refuse_cost(manifest, Limits(epsilon_at_most=(routers + counts) / 2), corpus)


def test_without_noise_no_limit_is_kept(corpus: TokenCorpus) -> None:
    manifest = noised(router_noise=0.0)
    with pytest.raises(CostsTooMuch, match=r"learn without noise .* allows 1000"):
        refuse_cost(manifest, Limits(epsilon_at_most=1000), corpus)
    refuse_cost(manifest, Limits(), corpus)


def test_in_a_run_on_shared_text_there_is_nothing_to_protect(corpus: TokenCorpus) -> None:
    refuse_cost(tiny_manifest(corpus), Limits(epsilon_at_most=0.1), corpus)


def test_a_smaller_text_costs_more(corpus: TokenCorpus) -> None:
    manifest = noised()
    many, few = (silo_cost(manifest, n, 20)[0].epsilon for n in (960, 96))
    assert few > many
    limits = Limits(epsilon_at_most=(few + many) / 2)
    with pytest.raises(CostsTooMuch):
        refuse_cost(manifest, limits, corpus)  # of 96


def test_a_refused_run_hears_nothing_of_the_text_and_not_what_it_would_cost(stage: Stage) -> None:
    stage.script(STOP, manifest=noised())
    options = Options(stage.corpus.folder, "cpu", 1, Limits(epsilon_at_most=0.01))
    with pytest.raises(CostsTooMuch, match="would cost"):
        Program(stage.folder, options).run()
    assert stage.loopback.joins == []
    assert stage.loopback.exchanges == []
    (look,) = stage.loopback.looks
    assert (look.capabilities.train_sequences, look.capabilities.corpus_digest) == (0, "")
    assert [left.reason for left in stage.loopback.left] == [TOLD]
    assert not any(character.isdigit() for character in TOLD)


def test_the_command_remembers_it_and_ends_with_a_users_exit_code(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*more: object) -> int:
        options = ("--dir", stage.folder.path, "--corpus", stage.corpus.folder, "--device", "cpu")
        return run_program(cli.app, cli.NAME, [str(each) for each in ("run", *options, *more)])

    stage.script(STOP, manifest=noised())
    assert command("--epsilon-at-most", 0.01) == 2
    assert "--epsilon-at-most" in capsys.readouterr().err.splitlines()[-1]
    assert Limits.load(stage.folder.path) == Limits(epsilon_at_most=0.01)
    stage.script(STOP, manifest=noised())
    assert command() == 2
    stage.script(STOP, manifest=noised())
    assert command("--epsilon-at-most", 0) == 0
    assert stage.loopback.joins[-1].capabilities.train_sequences > 0
