"""Decoders of files that travelled: between people, out of a backup, with a mixture.

Where the product reads a file by its path, so does the decoder: into a folder of this
process with everything else as it should be.
"""

from __future__ import annotations

import atexit
import base64
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fuzz import blobs
from fuzz.decoders import Decoder
from fuzz.journal_cells import changed_journal, journal_seeds
from fuzz.messages import authority, states
from smalltalk_node.identity import Identity, NodeFolder
from smalltalk_node.limits import Limits
from support.core_world import blob, make_manifest
from support.tiny_run import write_tiny_corpus

from smalltalk_fed.config.loading import load_config
from smalltalk_fed.config.shapes import PRESETS
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core import snapshot
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.fields import Fields
from smalltalk_fed.data.lines import read_jsonl
from smalltalk_fed.errors import UserError, WorldError
from smalltalk_fed.host.folder import RunFolder, read_corpus_manifest
from smalltalk_fed.host.recovery import read_snapshot
from smalltalk_fed.mixture.package import ExpertEntry, MixtureManifest, RouterEntry, read_mixture
from smalltalk_fed.telemetry.ledger import Ledger
from smalltalk_fed.wire import convert
from smalltalk_fed.wire.certificates import key_from_pem
from smalltalk_fed.wire.egress_record import entry, read_record, undeclared, uploads
from smalltalk_fed.wire.token import PREFIX, JoinToken, decode_token, encode_token

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
RUN_TOML = b"""
[run]
name = "demo"
experts = 3
[router]
model = "router-mini"
chunk_sequences = 300
[expert.model]
hidden = 64
layers = 2
heads = 4
[assignment]
capacity = [1.0, 2, 3.5]
"""
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": 0, "content": "<|endoftext|>", "special": True, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": False}
    ],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
    "model": {"type": "BPE", "vocab": {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3},
              "merges": [["a", "b"]]},
}  # fmt: skip


@functools.cache
def place() -> Path:
    """A folder for this process' files, gone at its end."""
    made = Path(tempfile.mkdtemp(prefix="smalltalk-fuzz-"))
    atexit.register(_remove, made, os.getpid())
    return made


def _remove(made: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a fork of it
        shutil.rmtree(made, ignore_errors=True)


def decoders() -> list[Decoder]:
    """By what the file is."""
    user, world = (UserError,), (WorldError,)
    return [
        Decoder("join token", _token, user, (_good_token().encode(),)),
        Decoder("join token inside", _token_inside, user, (_inside(_good_token()),)),
        Decoder("mixture.json", _mixture, user, (_mixture_json(),), json=True),
        Decoder("run.toml", _run_toml, user, (RUN_TOML,)),
        Decoder("setting", _setting, user, (b"run.seed=2", b"assignment.capacity=[1,2,3,4]")),
        Decoder("corpus.json", _corpus, user, (_corpus_file("corpus.json"),), json=True),
        Decoder("labels.json", _labels, user, (b'{"names": ["code", "prose"]}',), json=True),
        Decoder("tokenizer.json", _tokenizer, user, (json.dumps(TOKENIZER).encode(),), json=True),
        Decoder("text lines", _lines, user, (b'{"text": "one"}\n{"text": "two", "x": 1}\n',)),
        Decoder("node.json", _identity, user, (_node_json(),), json=True),
        Decoder("limits.toml", _limits, user, (b'hours = "22-7"\nmemory_gb = 4.5\nshare = 1\n',)),
        Decoder("egress record", _record, user, (_good_record(),)),
        Decoder("addresses.json", _addresses, user, (_addresses_json(), TWO_PAIRS), json=True),
        Decoder("manifest.json", _run_folder, user, (make_manifest().to_bytes(),), json=True),
        Decoder("private key", _private_key, user, (blobs.private_key(),)),
        Decoder("journal event", _event, world, _events()),
        Decoder("snapshot", _snapshot, world, _snapshots(), json=True),
        Decoder("ledger", _ledger, world, (_ledger_json(),), json=True),
        Decoder("journal", lambda data: changed_journal(place(), data), world, journal_seeds()),
    ]


# ----------------------------------------------------------------------------------- tokens


def _token(data: bytes) -> object:
    return decode_token(data.decode("utf-8", "replace"))


def _good_token() -> str:
    der = authority().certificate_der
    return encode_token(JoinToken("[::1]:4100", "box.example:4101", der, bytes(16), 1_900_000_000))


def _inside(token: str) -> bytes:
    encoded = token.removeprefix(PREFIX)
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))[2:-4]


def _token_inside(data: bytes) -> object:
    """A token whose length and checksum are right, whatever else it says."""
    body = (len(data) + 6 & 0xFFFF).to_bytes(2, "big") + data
    body += hashlib.sha256(body).digest()[:4]
    return decode_token(PREFIX + base64.urlsafe_b64encode(body).rstrip(b"=").decode())


# ---------------------------------------------------------------------------------- folders


def _written(folder: str, name: str, data: bytes, make: Callable[[Path], None]) -> Path:
    """The folder with everything as it should be, but `data` in the file of this name."""
    path = place() / folder
    if not path.exists():
        make(path)
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch(mode=0o600)
    (path / name).write_bytes(data)
    return path


def _mixture(data: bytes) -> object:
    def make(path: Path) -> None:
        for name in ("tokenizer/tokenizer.json", "routers/0.st", "experts/0/model.safetensors"):
            (path / name).parent.mkdir(parents=True)
            (path / name).touch()

    return read_mixture(_written("mixture", "mixture.json", data, make))


def _mixture_json() -> bytes:
    manifest = MixtureManifest(
        run_id="run",
        prefix_tokens=8,
        sequence_tokens=16,
        vocabulary=32,
        tokenizer_sha256=EMPTY_SHA256,
        router_shape=PRESETS["router-mini"],
        routers=(RouterEntry(file="routers/0.st", sha256=EMPTY_SHA256),),
        experts=(ExpertEntry(index=0, folder="experts/0", trained_by="n-1"),),
        prices=(0.5,),
        provenance={"nodes": {"n-1": "box"}},
    )
    return json.dumps(manifest.model_dump(mode="json")).encode()


def _run_toml(data: bytes) -> object:
    return load_config(_written("config", "run.toml", data, lambda p: p.mkdir()) / "run.toml")


def _setting(data: bytes) -> object:
    return load_config(None, [data.decode("utf-8", "replace")])


def _tiny_corpus(path: Path) -> None:
    write_tiny_corpus(path)


def _corpus_file(name: str) -> bytes:
    path = place() / "whole-corpus"
    if not path.exists():
        _tiny_corpus(path)
    return (path / name).read_bytes()


def _corpus(data: bytes) -> object:
    path = _written("corpus", "corpus.json", data, _tiny_corpus)
    return TokenCorpus.open(path).digest, read_corpus_manifest(path)


def _labels(data: bytes) -> object:
    def make(path: Path) -> None:
        _tiny_corpus(path)
        manifest = read_corpus_manifest(path)
        for name, split in (("train", manifest.train), ("heldout", manifest.heldout)):
            (path / f"{name}-labels.bin").write_bytes(bytes(2 * split.sequences))

    return TokenCorpus.open(_written("labelled", "labels.json", data, make)).label_names


def _tokenizer(data: bytes) -> object:
    from smalltalk_fed.data.tokenizer import load_tokenizer, token_bytes, vocabulary_size

    path = _written("tokenizer", "tokenizer.json", data, lambda p: p.mkdir())
    tokenizer = load_tokenizer(path)
    return vocabulary_size(tokenizer), token_bytes(tokenizer)


def _lines(data: bytes) -> object:
    path = _written("text", "text.jsonl", data, lambda p: p.mkdir()) / "text.jsonl"
    return list(read_jsonl(path, Fields(), lambda read: None))


def _node_json() -> bytes:
    here = ("127.0.0.1:4100", "127.0.0.1:4101")
    identity = Identity("n-1", "box", *here, "run-1", "ab" * 32, "/c", here[:1], here[1:])
    return json.dumps(vars(identity)).encode()


def _identity(data: bytes) -> object:
    path = _written("node", "node.json", data, lambda p: p.mkdir(mode=0o700))
    return NodeFolder.open(path).identity()


def _limits(data: bytes) -> object:
    path = _written("limited", "limits.toml", data, lambda p: p.mkdir())
    return Limits.load(path).describe()


def _good_record() -> bytes:
    leave = convert.leave_to_proto(msg.Leave("n-1", 7, "Ctrl-C")).SerializeToString()
    part = convert.upload_to_proto(convert.Upload(blob("scores", "s"), "shard/1", 0), b"s")
    sent = [("Leave", leave, 0), ("PutBlob", part.SerializeToString(), 3)]
    return b"".join(entry(1.5, call, data, stream) for call, data, stream in sent)


def _record(data: bytes) -> object:
    path = _written("record", "sent.bin", data, lambda p: p.mkdir()) / "sent.bin"
    messages = list(read_record(path))
    said = [undeclared(sent) for sent in messages]
    return said, uploads(message for message, odd in zip(messages, said, strict=True) if not odd)


# ------------------------------------------------------------------------------- run folders


def _run_files(path: Path) -> None:
    path.mkdir(mode=0o700)
    (path / "manifest.json").write_bytes(make_manifest().to_bytes())
    (path / "addresses.json").write_bytes(_addresses_json())


TWO_PAIRS = b'{"run": ["a:1", "[::1]:1"], "enrolment": ["a:2", "[::1]:2"]}'


def _addresses_json() -> bytes:
    return b'{"run": "127.0.0.1:4100", "enrolment": "127.0.0.1:4101"}'


def _addresses(data: bytes) -> object:
    return RunFolder.open(_written("run-a", "addresses.json", data, _run_files))


def _run_folder(data: bytes) -> object:
    return RunFolder.open(_written("run-m", "manifest.json", data, _run_files))


def _private_key(data: bytes) -> object:
    return key_from_pem(data, "key.pem")


def _event(data: bytes) -> object:
    kind, _, body = data.partition(b" ")
    event = ev.from_row(kind, body)
    return ev.to_json(event)


def _events() -> tuple[bytes, ...]:
    accepted = ev.UnitAccepted(
        3.0, "router_round/0/1", "n-1", 7, (blob("parameters", "p"),), {"loss": 3.0}, "ab", 2.0
    )
    some: list[ev.Event] = [
        ev.InviteMade(1.0, "a" * 64, 9.0, 1, "box"),
        ev.RoundAssigned(2.0, 1, (blob("share", "0"),), {"load_0": 5.0}),
        accepted,
    ]
    return tuple(b" ".join(part.encode() for part in ev.to_json(event)) for event in some)


def _snapshot(data: bytes) -> object:
    return snapshot.to_json(read_snapshot(make_manifest(), data))


def _snapshots() -> tuple[bytes, ...]:
    return tuple(json.dumps(snapshot.to_json(state)).encode() for state in states())


def _ledger(data: bytes) -> object:
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):  # the journal's part
        raise WorldError("not JSON") from None
    return Ledger.from_json(rows).totals()


def _ledger_json() -> bytes:
    ledger = Ledger()
    ledger.message("n-1", "scores", "up", 99)
    return json.dumps(ledger.to_json()).encode()
