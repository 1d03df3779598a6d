"""run.toml and --set: what is accepted, and what a person is told when it is not."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from smalltalk_fed.config.loading import load_config, parse_config
from smalltalk_fed.config.manifest import CorpusManifest, RunManifest, make_manifest
from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.config.shapes import PRESETS, ModelShape
from smalltalk_fed.errors import ConfigError, DataError, Malformed

# arXiv 2410.03529, section 3.1, with tied embeddings and a vocabulary of 32,000
PAPER = {"router-4.4m": 4.4e6, "335m": 334.8e6, "1.3b": 1273.5e6}


@pytest.mark.parametrize(("name", "count"), PAPER.items())
def test_presets_have_the_papers_sizes_within_one_percent(name: str, count: float) -> None:
    assert PRESETS[name].parameters(32_000) == pytest.approx(count, rel=0.01)


def test_feed_forward_is_eight_thirds_rounded_up_to_a_multiple_of_64() -> None:
    widths = [PRESETS[name].feed_forward_width for name in PAPER]
    assert widths == [256, 2752, 5504]


def test_defaults_are_the_papers() -> None:
    config = RunConfig()
    assert (config.sequence.length, config.sequence.prefix) == (1024, 256)
    assert config.router.optimizer.schedule == "constant"
    assert config.router.optimizer.learning_rate == 1e-4
    assert config.expert.optimizer.warmup_steps == 3000
    assert config.expert.optimizer.schedule == "cosine"


def test_a_partial_table_keeps_its_sections_own_defaults() -> None:
    config = parse_config({"router": {"optimizer": {"learning_rate": 1e-3}}}, "x")
    assert config.router.optimizer.schedule == "constant"


def test_a_file_then_settings(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nseed = 3\n[assignment]\nmethod = "paper"\n[expert]\nmodel = "mini"\n')
    config = load_config(path, ["run.seed=7", "assignment.method=regret", "router.model.hidden=64",
                                "router.model.layers=1", "router.model.heads=2"])  # fmt: skip
    assert config.run.seed == 7
    assert config.assignment.method == "regret"
    assert config.expert.model == PRESETS["mini"]
    assert config.router.model == ModelShape(hidden=64, layers=1, heads=2)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"rum": {}}, "unknown key 'rum'; did you mean 'run'"),
        ({"router": {"roundz": 3}}, "unknown key 'router.roundz'; did you mean 'router.rounds'"),
        (
            {"router": {"optimizer": {"learning_rat": 3}}},
            "did you mean 'router.optimizer.learning_rate'",
        ),
        ({"run": {"zzz": 1}}, "see docs/configuration.md"),
        ({"run": {"experts": 0}}, "'run.experts'"),
        ({"run": {"experts": "four"}}, "'run.experts'"),
        ({"expert": {"model": "7b"}}, "no preset is called '7b'"),
        ({"expert": {"model": {"hidden": 65, "layers": 1, "heads": 2}}}, "even multiple of heads"),
        ({"sequence": {"length": 64, "prefix": 65}}, "longer than sequence.length"),
        ({"run": {"experts": 9}, "router": {"chunk_sequences": 8}}, "larger than router.chunk"),
        ({"assignment": {"capacity": [1.0, 2.0]}}, "2 weights for 4 experts"),
        ({"assignment": {"capacity": [1.0, 2.0, 3.0, 0.0]}}, "not a positive number"),
        ({"expert": {"batch_sequences": 10, "accumulate": 3}}, "must divide"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(table: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(table, "run.toml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("run.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"[run\n", "not valid TOML"), (b"\xff\xfe", "can't be read"), (None, "does not exist")],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load_config(path)


@pytest.mark.parametrize("setting", ["run.seed", "=3", "run..seed=3", "run.seed.x.y=3"])
def test_a_setting_that_is_none(setting: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, ["run.seed=3", setting])


# --------------------------------------------------------------------------------- manifests


def corpus(sequences: int = 100, tokens: int = 1024) -> CorpusManifest:
    split = {"shards": [{"file": "a.bin", "sequences": sequences, "sha256": "a" * 64}]}
    return CorpusManifest.model_validate(
        {
            "sequence_tokens": tokens,
            "dtype": "uint16",
            "vocabulary": 1000,
            "tokenizer_sha256": "b" * 64,
            "train": {**split, "documents": 3},
            "heldout": {**split, "documents": 3},
        }
    )


def test_the_digest_of_a_corpus_changes_with_any_of_its_parts() -> None:
    one = corpus()
    other = one.model_copy(update={"tokenizer_sha256": "c" * 64})
    assert len({one.digest, other.digest, corpus(101).digest}) == 3
    assert one.digest == corpus().digest


def test_corpus_and_configuration_must_fit() -> None:
    with pytest.raises(ConfigError, match="prepared with 512"):
        make_manifest(RunConfig(), corpus(tokens=512), "r", 0)
    with pytest.raises(DataError, match="3 training sequences for 4 experts"):
        make_manifest(RunConfig(), corpus(3), "r", 0)


def test_a_manifest_survives_its_bytes() -> None:
    manifest = make_manifest(RunConfig(), corpus(), "r", 0)
    assert RunManifest.from_bytes(manifest.to_bytes()) == manifest
    assert RunManifest.from_bytes(manifest.to_bytes()).to_bytes() == manifest.to_bytes()
    with pytest.raises(Malformed):
        RunManifest.from_bytes(manifest.to_bytes().replace(b'"run_id"', b'"run_ix"'))


@pytest.mark.parametrize("sequences", [4, 99, 100, 43_945, 43_946, 1_000_000])
def test_slices_cover_the_corpus_once_and_differ_by_at_most_one(sequences: int) -> None:
    manifest = make_manifest(RunConfig(), corpus(sequences), "r", 0)
    bounds = [manifest.shard_range(index) for index in range(manifest.shard_count)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == sequences
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 43_945
