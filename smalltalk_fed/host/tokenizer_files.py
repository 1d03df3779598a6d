"""The tokenizer of a run that has no corpus: taken into the run folder, and its size.

Rules: `tokenizer.json` is taken byte for byte, since its SHA-256 is the tokenizer's identity; of
the two small files beside it that transformers wants, everything but `auto_map`, which would name
code to run. Read as JSON: the library that computes with it is not needed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smalltalk_fed.config.inside import plain
from smalltalk_fed.config.manifest import MAX_VOCABULARY, sha256
from smalltalk_fed.core.catalogue import TOKENIZER_BYTES_MAX
from smalltalk_fed.errors import DataError, shown

TOKENIZER_FILE = "tokenizer.json"
BESIDE = ("tokenizer_config.json", "special_tokens_map.json")


def take_tokenizer(source: Path, target: Path) -> tuple[str, int]:
    """Copy a tokenizer, a folder or its tokenizer.json, to the new folder `target`.

    Returns its SHA-256 and the size of its vocabulary: one more than the largest id.

    Raises:
        DataError: it is missing or can't be read.
        OSError: the disk refuses.
    """
    folder = source if source.is_dir() else source.parent
    file = plain(folder, TOKENIZER_FILE) if source.is_dir() else source
    try:
        data = file.read_bytes()
    except OSError:
        raise DataError(
            f"{source} has no {TOKENIZER_FILE}; give such a file, or a folder with one, such as "
            "tokenizer/ of a corpus that `smalltalk prepare` made."
        ) from None
    if len(data) > TOKENIZER_BYTES_MAX:
        raise DataError(f"{file} is over {TOKENIZER_BYTES_MAX} bytes, too large to hand to nodes.")
    vocabulary = _vocabulary(file, data)
    target.mkdir(parents=True)
    (target / TOKENIZER_FILE).write_bytes(data)
    for name in BESIDE:
        if (folder / name).exists():
            value = _read(plain(folder, name))
            value.pop("auto_map", None)
            text = json.dumps(value, indent=2, ensure_ascii=False)
            (target / name).write_text(text + "\n", encoding="utf-8")
    return sha256(data), vocabulary


def _vocabulary(file: Path, data: bytes) -> int:
    try:
        table = json.loads(data)
        known = table["model"]["vocab"]
        ids = list(known.values()) if isinstance(known, dict) else list(range(len(known)))
        ids += [added["id"] for added in table.get("added_tokens") or ()]
        if odd := [index for index in ids if type(index) is not int]:
            raise ValueError(f"{odd[0]!r} is no token's id")
        size = max(ids) + 1
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        why = shown(str(error), 200)
        raise DataError(f"{file} is not a tokenizer that can be read ({why}).") from None
    if not 2 <= size <= MAX_VOCABULARY:
        raise DataError(f"{file} has ids up to {size - 1}; at most {MAX_VOCABULARY} are allowed.")
    return size


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise DataError(f"{path} can't be read ({shown(str(error), 200)}).") from None
    return value if isinstance(value, dict) else {}
