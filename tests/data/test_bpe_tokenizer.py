"""Text survives the tokenizer byte for byte, and other programs can load it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from smalltalk_fed.data.tokenizer import (
    END_OF_TEXT,
    end_of_text_id,
    load_tokenizer,
    take_tokenizer,
    token_bytes,
    token_ids,
    tokenizing,
    train_tokenizer,
    vocabulary_size,
)
from smalltalk_fed.errors import ConfigError, DataError

TEXTS = [
    "the quick brown fox jumps over the lazy dog, and the dog sleeps on\n" * 4,
    "def handle(message, now):\n    return Ready(events=[], replies=[message])\n" * 3,
    "Die Würde des Menschen ist unantastbar. Sie zu achten ist Verpflichtung.\n",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(iter(TEXTS), 330, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@given(text=st.text(max_size=200))
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@given(text=st.text(max_size=200))
def test_bytes_of_tokens_add_up_to_the_texts(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())


def test_ids_are_laid_out_as_promised(folder: Path, tokenizer: Tokenizer) -> None:
    assert tokenizer.token_to_id(END_OF_TEXT) == 0 == end_of_text_id(folder, tokenizer)
    assert vocabulary_size(tokenizer) == 330
    sizes = token_bytes(tokenizer)
    assert sizes.dtype == np.int64
    assert sizes[0] == 0
    assert (sizes[1:257] == 1).all()
    assert (sizes[257:] > 1).all()


def test_the_special_token_cant_be_written_in_a_text(tokenizer: Tokenizer) -> None:
    text = f"a{END_OF_TEXT}b"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert 0 not in ids
    assert tokenizer.decode(ids) == text


def test_training_is_deterministic(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(iter(TEXTS), 330, tmp_path)
    again = (tmp_path / "tokenizer.json").read_bytes()
    assert again == (folder / "tokenizer.json").read_bytes()


def test_too_little_text_gives_a_smaller_vocabulary(tmp_path: Path) -> None:
    assert vocabulary_size(train_tokenizer(iter(["aaaa"]), 5000, tmp_path)) < 300


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be at least 257"):
        train_tokenizer(iter(TEXTS), 256, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [DataError("line 3 is broken."), KeyboardInterrupt()])
def test_errors_of_the_texts_pass_through(tmp_path: Path, error: BaseException) -> None:
    def texts() -> Iterator[str]:
        yield "some text"
        raise error

    with pytest.raises(type(error)) as caught:
        train_tokenizer(texts(), 300, tmp_path / "out")
    assert caught.value is error
    assert not (tmp_path / "out").exists()


def test_transformers_loads_the_folder(folder: Path, tokenizer: Tokenizer) -> None:
    import transformers

    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    text = "the dog sleeps, Würde"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert loaded(text)["input_ids"] == ids
    assert loaded.decode(ids) == text
    assert loaded.eos_token_id == 0
    assert len(loaded) == 330
    np.testing.assert_array_equal(token_bytes(loaded), token_bytes(tokenizer))


def test_a_taken_tokenizer_keeps_its_bytes_but_names_no_code(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = {"eos_token": {"content": "the"}, "auto_map": {"AutoTokenizer": "x.py"}, "note": 1}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    taken = take_tokenizer(source, tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    kept = json.loads((out / "tokenizer_config.json").read_bytes())
    assert kept == {"eos_token": {"content": "the"}, "note": 1}
    assert end_of_text_id(out, taken) == taken.token_to_id("the")


def test_a_lone_tokenizer_file_gets_a_configuration(folder: Path, tmp_path: Path) -> None:
    taken = take_tokenizer(folder / "tokenizer.json", tmp_path / "out")
    assert end_of_text_id(tmp_path / "out", taken) == 0
    ours = (folder / "tokenizer_config.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == ours


def test_truncation_and_padding_of_a_taken_tokenizer_are_off(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(3)
    cutting.enable_padding(length=50)
    cutting.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    text = "the quick brown fox jumps over the lazy dog"
    assert loaded.encode(text).ids == tokenizer.encode(text).ids


def test_bytes_of_sentencepieces_kind() -> None:
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "▁": 2, "▁a": 3, "ü": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    assert token_bytes(tokenizer).tolist() == [0, 1, 1, 2, 2]


def test_bytes_of_other_kinds_are_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match="bits per byte can't be computed"):
        token_bytes(tokenizer)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "has no tokenizer.json"), ("{}", "is not a tokenizer")]
)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=says):
        take_tokenizer(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "model", [models.WordLevel({"a": 0}, "?"), models.Unigram([("a", 0.0)]), models.WordPiece({})]
)
def test_a_text_that_it_fails_over_is_refused_and_not_quoted(model: models.Model) -> None:
    with pytest.raises(DataError, match="a text of 6 characters can't be made into") as caught:
        token_ids(Tokenizer(model), "secret")
    assert "secret" not in str(caught.value)


def test_a_panic_of_the_library_is_an_error_without_its_words(
    capfd: pytest.CaptureFixture[str],
) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, "a"))
    tokenizer.decoder = decoders.Strip("a", 1, 1)  # of one character
    with pytest.raises(DataError) as caught, tokenizing("it can't be read"):
        tokenizer.decode([0])
    assert str(caught.value) == (
        "it can't be read by this tokenizer (a panic of its library); use another tokenizer."
    )
    assert "panicked" in capfd.readouterr().err


def test_what_is_not_the_librarys_passes_through() -> None:
    for error in (KeyboardInterrupt(), MemoryError(), DataError("line 3 is broken.")):
        with pytest.raises(type(error)) as caught, tokenizing("it can't be read"):
            raise error
        assert caught.value is error


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        take_tokenizer(tmp_path / "nowhere", tmp_path / "out")
