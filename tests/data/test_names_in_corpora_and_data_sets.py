"""Files that a corpus or a data set names lie inside its folder; links in a corpus are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.tables import dataset_files
from smalltalk_fed.errors import DataError
from smalltalk_fed.host.folder import Addresses, RunFolder, read_corpus_manifest


@pytest.fixture
def folder(tmp_path: Path, make_corpus: Callable[..., Path]) -> Path:
    made = make_corpus(tmp_path / "corpus", [np.zeros((3, 4), int)], [np.zeros((2, 4), int)])
    (made / "labels.json").write_text('{"names": ["a"]}')
    (made / "train-labels.bin").write_bytes(bytes(6))
    (made / "heldout-labels.bin").write_bytes(bytes(4))
    assert TokenCorpus.open(made).label_names == ["a"]
    return made


@pytest.mark.parametrize(
    "name",
    [
        "corpus.json", "labels.json", "train-00000.bin", "heldout-00000.bin", "train-labels.bin",
        "tokenizer", "tokenizer/tokenizer.json",
    ],
)  # fmt: skip
def test_a_corpus_is_never_read_through_a_link(folder: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(DataError, match="symbolic link"):
        TokenCorpus.open(folder)


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", "a/b", "..", "a\\b", "a\0b", ""])
def test_a_shard_has_a_plain_name(folder: Path, file: str) -> None:
    table = json.loads((folder / "corpus.json").read_bytes())
    table["train"]["shards"][0]["file"] = file
    (folder / "corpus.json").write_text(json.dumps(table))
    for read in (TokenCorpus.open, read_corpus_manifest):
        with pytest.raises(DataError, match=r"train\.shards\.0\.file"):
            read(folder)


def test_no_link_of_a_corpus_gets_into_a_run_folder(folder: Path, tmp_path: Path) -> None:
    from smalltalk_fed.config.loading import parse_config

    config = parse_config({"sequence": {"length": 4, "prefix": 2}, "run": {"experts": 2}}, "test")
    (tmp_path / "secret").write_text("secret")
    (folder / "tokenizer" / "more.json").symlink_to(tmp_path / "secret")
    addresses = Addresses("127.0.0.1:1", "127.0.0.1:2")
    with pytest.raises(DataError, match=r"more\.json is not a plain file"):
        RunFolder.create(tmp_path / "run", config, "", folder, addresses, now=1.0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["../x.arrow", "/etc/passwd", "a\\b", "", "..", "a\0b"])
def test_a_data_set_names_files_inside_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="names no file inside"):
        dataset_files(tmp_path)


@pytest.mark.parametrize("split", [".", "..", "../other", "/etc"])
def test_a_split_of_a_data_set_is_a_folder_inside_it(tmp_path: Path, split: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    with pytest.raises(DataError, match="names no file inside"):
        dataset_files(tmp_path)


@pytest.mark.parametrize("table", [{"_data_files": [3]}, {"_data_files": 3}, {"_data_files": [{}]}])
def test_a_data_set_without_names_is_refused(tmp_path: Path, table: object) -> None:
    (tmp_path / "state.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match="no list of names"):
        dataset_files(tmp_path)
