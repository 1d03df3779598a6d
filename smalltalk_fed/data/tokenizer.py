"""The tokenizer of a corpus: trained here, or taken from elsewhere.

A trained one is byte-level BPE with GPT-2's splitting rule, the form that transformers and
llama.cpp's GGUF conversion (as `gpt-2`) both know: special token `<|endoftext|>` with id 0,
then all 256 bytes, then merges, so that no text is unknown and decoding gives back every
byte. A folder holds `tokenizer.json`, whose SHA-256 is the tokenizer's identity, and the two
small files that `AutoTokenizer.from_pretrained` wants. No transformers, no torch; nothing
is downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from smalltalk_fed.errors import ConfigError, DataError, shown

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # all bytes and the special token
GAPS_MAX = 1 << 16  # ids that stand for nothing, beyond three times the tokens
TOKENIZER_FILE = "tokenizer.json"

_CONFIG_FILE = "tokenizer_config.json"
_SPECIAL_FILE = "special_tokens_map.json"
_USUAL_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def train_tokenizer(texts: Iterator[str], vocabulary: int, out: Path) -> Tokenizer:
    """Train byte-level BPE on `texts` and write the folder `out`.

    The vocabulary gets smaller than asked if the text has nothing more to merge.

    Raises:
        ConfigError: `vocabulary` is below 257.
        Whatever iterating over `texts` raises.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"a vocabulary of {vocabulary} is too small; it must be at least "
            f"{SMALLEST_VOCABULARY}: all 256 bytes and {END_OF_TEXT}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / TOKENIZER_FILE))
    _write_config(out, END_OF_TEXT)
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `folder`/tokenizer.json (or the file itself).

    Text never becomes a special token: `<|endoftext|>` written in a document is encoded as
    ordinary characters. Nothing is truncated or padded.

    Raises:
        DataError: missing, unreadable, or with ids far beyond the number of tokens.
    """
    path = folder if folder.is_file() else folder / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} has no {TOKENIZER_FILE}; give such a file, or a folder that transformers' "
            "save_pretrained wrote with a fast tokenizer."
        ) from None
    except BaseException as error:
        if not (isinstance(error, Exception) or _of_the_library(error)):
            raise
        why = shown(str(error), 200)
        raise DataError(f"{path} is not a tokenizer that can be read ({why}).") from None
    vocabulary_size(tokenizer)  # before anything is made of that size, in here or in the library
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def take_tokenizer(source: Path, out: Path) -> Tokenizer:
    """Copy an existing tokenizer (a tokenizer.json, or a folder with one) to the folder `out`.

    tokenizer.json is copied byte for byte. Of the folder's configuration everything is kept
    but `auto_map`, which would name code to run.

    Raises:
        DataError: `source` is missing or unreadable.
    """
    if not source.exists():
        raise DataError(f"the tokenizer {source} does not exist.")
    tokenizer = load_tokenizer(source)
    folder = source.parent if source.is_file() else source
    file = source if source.is_file() else source / TOKENIZER_FILE
    out.mkdir(parents=True, exist_ok=True)
    (out / TOKENIZER_FILE).write_bytes(file.read_bytes())
    config = _read_json(folder / _CONFIG_FILE)
    if config:
        config.pop("auto_map", None)
        _write_json(out / _CONFIG_FILE, config)
        special = _read_json(folder / _SPECIAL_FILE)
        if special:
            _write_json(out / _SPECIAL_FILE, special)
    else:
        usual = (end for end in _USUAL_ENDS if tokenizer.token_to_id(end) is not None)
        _write_config(out, next(usual, None))
    return tokenizer


def end_of_text_id(folder: Path, tokenizer: Tokenizer) -> int | None:
    """Id of the token that ends a document, or None if the tokenizer has none."""
    named = _read_json(folder / _CONFIG_FILE).get("eos_token")
    if isinstance(named, dict):
        named = named.get("content")
    for content in (named, *_USUAL_ENDS):
        if isinstance(content, str):
            index = tokenizer.token_to_id(content)
            if index is not None:
                return index
    return None


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id: what an embedding needs, also where ids have gaps.

    Raises:
        DataError: there are no tokens, or an id is far beyond their number.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    size = max(ids, default=-1) + 1
    if not 0 < size <= 4 * len(ids) + GAPS_MAX:
        raise DataError(
            f"the tokenizer has {len(ids)} tokens with ids up to {size - 1}; a model of that size "
            "would be mostly empty, so use another tokenizer."
        )
    return size


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of the tokens of `text`, without special ones.

    Raises:
        DataError: this tokenizer fails over it, such as one that lacks a token for what it does
            not know. The text is not in the message, which may travel.
    """
    with tokenizing(f"a text of {len(text)} characters can't be made into tokens"):
        # The batch is of one: the library spreads a batch over threads of its own. "Fast" leaves
        # out which characters a token stands for.
        batch = tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return list(batch[0].ids)


@contextmanager
def tokenizing(what: str) -> Iterator[None]:
    """Have what the library fails over inside raised as an error that begins with `what`.

    Raises:
        DataError: it failed; its own words stand in it, but those of a panic, which may quote the
            text that it had.
    """
    try:
        yield
    except BaseException as error:
        if not _of_the_library(error):
            raise
        why = shown(str(error), 200) if isinstance(error, Exception) else "a panic of its library"
        raise DataError(f"{what} by this tokenizer ({why}); use another tokenizer.") from None


def _of_the_library(error: BaseException) -> bool:
    """It raises bare Exception, and where it panics a class that is none and can't be imported."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """int64 [V]: UTF-8 bytes that each token stands for; 0 for special and unused ids.

    Exact for byte-level BPE; for SentencePiece's kind (`▁`, `<0x0A>`) exact but for the
    space that it puts before a text. Takes a `tokenizers.Tokenizer`, or a fast tokenizer of
    transformers.

    Raises:
        DataError: the tokenizer is of a kind whose tokens don't stand for definite bytes.
    """
    inner: Tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
    kinds = _decoder_kinds(json.loads(inner.to_str()).get("decoder"))
    sizes = np.zeros(vocabulary_size(inner), dtype=np.int64)
    added = inner.get_added_tokens_decoder()
    for token, index in inner.get_vocab(with_added_tokens=True).items():
        if index in added:
            sizes[index] = 0 if added[index].special else len(token.encode())
        elif "ByteLevel" in kinds:
            sizes[index] = len(token)  # its alphabet has one character a byte
        elif kinds & {"Metaspace", "ByteFallback"}:
            is_byte = "ByteFallback" in kinds and _BYTE_TOKEN.fullmatch(token)
            sizes[index] = 1 if is_byte else len(token.replace("▁", " ").encode())
        else:
            raise DataError(
                "bits per byte can't be computed with this tokenizer: it is neither byte-level "
                "nor of SentencePiece's kind."
            )
    return sizes


def _decoder_kinds(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    inner = decoder.get("decoders", [])
    return {str(decoder["type"])}.union(*(_decoder_kinds(part) for part in inner))


def _write_config(folder: Path, end: str | None) -> None:
    names = {} if end is None else {"bos_token": end, "eos_token": end}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
        **names,
    }
    _write_json(folder / _CONFIG_FILE, config)
    _write_json(folder / _SPECIAL_FILE, names)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise DataError(f"{path} can't be read ({shown(str(error), 200)}).") from None
    return value if isinstance(value, dict) else {}
