"""Every kind of text file is read, and every kind of broken one is named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from smalltalk_fed.data import lines
from smalltalk_fed.data.fields import Fields
from smalltalk_fed.data.reading import find_sources, read_pieces
from smalltalk_fed.errors import DataError

RECORDS = [
    {"text": "first\ndocument", "kind": "a", "split": "train", "n": 1},
    {"text": "zweites: ü", "kind": "b", "split": "test", "n": 2},
    {"text": "3", "kind": "a", "split": "train", "n": 3},
]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
TABLE = pa.Table.from_pylist(RECORDS)


def zstd(data: bytes) -> bytes:
    """Two frames, as `pzstd` writes them."""
    half = len(data) // 2
    compress = zstandard.ZstdCompressor().compress
    return compress(data[:half]) + compress(data[half:])


def read(path: Path, fields: Fields = Fields()) -> list[tuple[str, str | None, str | None]]:
    """(text, label, split) of every document, put together from its pieces."""
    documents: list[tuple[str, str | None, str | None]] = []
    for piece in read_pieces(find_sources([path]), fields):
        if piece.first:
            documents.append(("", piece.label, piece.split))
        text, label, split = documents[-1]
        documents[-1] = (text + piece.text, label, split)
    return documents


def save_dataset(folder: Path, table: pa.Table, parts: int = 2) -> None:
    """What `Dataset.save_to_disk` of Hugging Face's datasets leaves on disk."""
    folder.mkdir(parents=True)
    files = []
    for number in range(parts):
        name = f"data-{number:05d}-of-{parts:05d}.arrow"
        rows = table.slice(*(number * 2, 2) if number < parts - 1 else (number * 2,))
        with (
            pa.OSFile(str(folder / name), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(rows)
        files.append({"filename": name})
    state = {"_data_files": files, "_fingerprint": "0", "_format_type": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


WRITERS: dict[str, Callable[[Path], object]] = {
    "t.jsonl": lambda path: path.write_bytes(LINES),
    "t.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "t.jsonl.zst": lambda path: path.write_bytes(zstd(LINES)),
    "T.JSONL.GZ": lambda path: path.write_bytes(gzip.compress(LINES)),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\n")),
    "t.parquet": lambda path: pq.write_table(TABLE, path, row_group_size=2),
    "large.parquet": lambda path: pq.write_table(
        TABLE.set_column(0, "text", TABLE["text"].cast(pa.large_string()).dictionary_encode()), path
    ),
    "dataset": lambda path: save_dataset(path, TABLE),
}


@pytest.mark.parametrize("name", WRITERS)
def test_records_come_with_label_and_split(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    expected = [(record["text"], record["kind"], record["split"]) for record in RECORDS]
    assert read(tmp_path / name, Fields(label="kind", split="split")) == expected
    assert read(tmp_path / name) == [(record["text"], None, None) for record in RECORDS]


@pytest.mark.parametrize("name", WRITERS)
def test_all_bytes_of_a_file_are_counted(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    sources = find_sources([tmp_path / name])
    counted: list[int] = []
    assert list(read_pieces(sources, Fields(), counted.append))
    assert sum(counted) == sum(source.size_bytes for source in sources)


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_field_is_told_with_those_there_are(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    with pytest.raises(DataError, match=r"no field 'body'; it has text, kind, split, n\."):
        read(tmp_path / name, Fields(text="body"))


@pytest.mark.parametrize("name", WRITERS)
def test_a_field_of_the_wrong_type_is_told(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    with pytest.raises(DataError, match=r"(line|row) 1: field 'n' is of type int, not text"):
        read(tmp_path / name, Fields(text="n"))


def test_numbers_may_be_labels(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    labels = [label for _, label, _ in read(tmp_path / "t.parquet", Fields(label="n"))]
    assert labels == ["1", "2", "3"]


def test_a_data_set_of_several_splits_brings_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    save_dataset(folder / "train", TABLE)
    save_dataset(folder / "validation", TABLE.slice(0, 1), parts=1)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    assert [split for _, _, split in read(folder)] == ["train"] * 3 + ["validation"]
    named = [split for _, _, split in read(folder, Fields(split="split"))]
    assert named == ["train", "test", "train", "train"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_txt_is_one_document_unless_lines_separate_several(tmp_path: Path, suffix: str) -> None:
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[suffix]
    one, several = tmp_path / f"one.txt{suffix}", tmp_path / f"several.txt{suffix}"
    one.write_bytes(compress("\ufeffa\r\n\n\fb <|endoftext|>\nü".encode()))
    several.write_bytes(compress(b"a\n\nb\n<|endoftext|>\nc\n  <|endoftext|>\r\nd\n<|endoftext|>"))
    assert [text for text, _, _ in read(one)] == ["a\r\n\n\fb <|endoftext|>\nü"]
    assert [text for text, _, _ in read(several)] == ["a\n\nb\n", "c\n", "d\n", ""]


def test_a_folder_is_read_in_the_order_of_names_and_others_passed_over(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("c.txt", "b/z.txt", "b/a.txt", ".hidden.txt", "a.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "README.md").write_text("no text of the corpus")
    (tmp_path / "meta.json").write_text("{}")
    assert [text for text, _, _ in read(tmp_path)] == ["a.txt", "b/a.txt", "b/z.txt", "c.txt"]


BROKEN_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty txt": ("e.txt", b"", r"e\.txt is empty"),
    "empty jsonl": ("e.jsonl", b"", r"e\.jsonl is empty"),
    "empty gz": ("e.jsonl.gz", gzip.compress(b""), r"e\.jsonl\.gz is empty"),
    "binary": ("b.txt", b"ok\nPNG\0\1", r"is not text: it has a NUL byte at offset 6\."),
    "binary later": (
        "b.txt",
        b"a\n<|endoftext|>\nb\0",
        r"is not text: it has a NUL byte at offset 17\.",
    ),
    "latin-1 txt": ("l.txt", "früh".encode("latin-1"), r"not valid UTF-8: byte offset 2 "),
    "latin-1 later": (
        "l.txt",
        b"a\n<|endoftext|>\nxy\xe9z",
        r"not valid UTF-8: byte offset 18 ",
    ),
    "cut character": ("l.txt", b"abc\xc3", r"byte offset 3 \(unexpected end"),
    "latin-1 jsonl": (
        "l.jsonl",
        b'{"text": "a"}\n{"text": "fr\xfch"}\n',
        r"line 2: it is not valid UTF-8 \(byte offset 26 of the file",
    ),
    "broken json": (
        "j.jsonl",
        b'{"text": "a"}\n\n{"text": \n',
        r"j\.jsonl, line 3: it is not valid JSON \(",
    ),
    "deep json": ("j.jsonl", b"[" * 100_000, r"line 1: it is not valid JSON \("),
    "an array": ("j.jsonl", b'["text"]\n', r"line 1: it is not a JSON object, such as"),
    "null text": ("j.jsonl", b'{"text": null}', r"line 1: field 'text' is empty \(null\)"),
    "surrogate": ("j.jsonl", b'{"text": "a\\ud800"}', r"half of a surrogate pair at character 1"),
    "cut gz": ("c.jsonl.gz", gzip.compress(LINES)[:-9], r"can't be read to its end"),
    "no gz": ("c.jsonl.gz", LINES, r"can't be read to its end"),
    "cut zst": ("c.jsonl.zst", zstd(LINES)[:-9], r"the last frame is cut off"),
    "no zst": ("c.jsonl.zst", LINES, r"can't be read to its end"),
    "no parquet": ("p.parquet", b"PAR1 is not enough", r"can't be read as Parquet"),
    "unknown": ("x.docx", b"PK", r"x\.docx is of an unknown kind; what can be read is \.txt,"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_named_in_one_sentence(tmp_path: Path, name: str) -> None:
    file, content, says = BROKEN_FILES[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read(tmp_path / file)
    message = str(caught.value)
    assert file in message
    assert message.endswith(".")
    assert "\n" not in message


def damage_arrow(folder: Path) -> None:
    path = folder / "data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:150])


def keep_indices(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))


BROKEN_DATASETS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "damaged": (damage_arrow, r"00001-of-00002\.arrow can't be read as Arrow data"),
    "missing": (lambda f: (f / "data-00000-of-00002.arrow").unlink(), r"\.arrow is missing"),
    "selection": (keep_indices, r"flatten_indices\(\)"),
    "state": (lambda f: (f / "state.json").write_text("{"), r"state\.json can't be read"),
    "nothing": (lambda f: (f / "state.json").write_text("{}"), r"names no files"),
}


@pytest.mark.parametrize("name", BROKEN_DATASETS)
def test_a_broken_data_set_is_named(tmp_path: Path, name: str) -> None:
    damage, says = BROKEN_DATASETS[name]
    save_dataset(tmp_path / "dataset", TABLE)
    damage(tmp_path / "dataset")
    with pytest.raises(DataError, match=says):
        read(tmp_path / "dataset")


def test_invalid_utf8_in_a_table_is_told_with_its_rows(tmp_path: Path) -> None:
    binary = pa.array([b"fine", b"fr\xfch"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 2, binary.buffers())
    pq.write_table(pa.table({"text": broken}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"rows 1 to 2: field 'text' is not valid UTF-8"):
        read(tmp_path / "t.parquet")


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(TABLE.slice(0, 0), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="has no rows"):
        read(tmp_path / "t.parquet")


def test_lines_of_any_length_are_read_in_fragments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_FRAGMENT_BYTES", 20)
    path = tmp_path / "long.txt"
    first = "é" * 29 + "12<|endoftext|>\n"  # its last fragment looks like a separator line
    path.write_text(f"{first}<|endoftext|>\n{'ü' * 21}", encoding="utf-8")
    assert [text for text, _, _ in read(path)] == [first, "ü" * 21]
    path.write_bytes(b"x" * 19 + b"\xc3(")
    with pytest.raises(DataError, match=r"byte offset 19 "):
        read(path)


@pytest.mark.parametrize("fields", [Fields(label="kind"), Fields(split="split")])
def test_a_txt_has_no_fields(tmp_path: Path, fields: Fields) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="has no fields"):
        read(tmp_path / "a.txt", fields)


def test_inputs_that_are_missing_empty_or_double_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        find_sources([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"empty has no text files"):
        find_sources([tmp_path / "empty"])
    with pytest.raises(DataError, match=r"a\.txt is named twice"):
        find_sources([tmp_path, tmp_path / "empty" / ".." / "a.txt"])
