"""Decoders of files that travelled: between people, out of a backup, with a mixture.

Where the product reads a file by its path, so does the decoder: into a folder of this
process with everything else as it should be.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path

from fuzz.decoders import Decoder
from fuzz.messages import authority
from fuzz.place import place, written
from support.core_world import blob
from support.tiny_run import write_tiny_corpus

from smalltalk_fed.config.loading import load_config
from smalltalk_fed.config.shapes import PRESETS
from smalltalk_fed.core import messages as msg
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.data.fields import Fields
from smalltalk_fed.data.lines import read_jsonl
from smalltalk_fed.errors import UserError
from smalltalk_fed.host.folder import read_corpus_manifest
from smalltalk_fed.host.tokenizer_files import take_tokenizer
from smalltalk_fed.mixture.package import ExpertEntry, MixtureManifest, RouterEntry, read_mixture
from smalltalk_fed.wire import convert, convert_transfer
from smalltalk_fed.wire.egress_record import entry, read_record, undeclared, uploads
from smalltalk_fed.wire.token import PREFIX, JoinToken, decode_token, encode_token
from smalltalk_fed.worksite.identity import Identity, NodeFolder
from smalltalk_fed.worksite.limits import Limits

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


def decoders() -> list[Decoder]:
    """By what the file is."""
    user = (UserError,)
    return [
        Decoder("join token", _token, user, (_good_token().encode(),)),
        Decoder("join token inside", _token_inside, user, (_inside(_good_token()),)),
        Decoder("mixture.json", _mixture, user, (_mixture_json(),), json=True),
        Decoder("run.toml", _run_toml, user, (RUN_TOML,)),
        Decoder("setting", _setting, user, (b"run.seed=2", b"assignment.capacity=[1,2,3,4]")),
        Decoder("corpus.json", _corpus, user, (_corpus_file("corpus.json"),), json=True),
        Decoder("labels.json", _labels, user, (b'{"names": ["code", "prose"]}',), json=True),
        Decoder("tokenizer.json", _tokenizer, user, (json.dumps(TOKENIZER).encode(),), json=True),
        Decoder(
            "run's tokenizer.json",
            _run_tokenizer,
            user,
            (json.dumps(TOKENIZER).encode(),),
            json=True,
        ),
        Decoder("text lines", _lines, user, (b'{"text": "one"}\n{"text": "two", "x": 1}\n',)),
        Decoder("node.json", _identity, user, (_node_json(),), json=True),
        Decoder("limits.toml", _limits, user, (b'hours = "22-7"\nmemory_gb = 4.5\nshare = 1\n',)),
        Decoder("egress record", _record, user, (_good_record(),)),
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


def _mixture(data: bytes) -> object:
    def make(path: Path) -> None:
        for name in ("tokenizer/tokenizer.json", "routers/0.st", "experts/0/model.safetensors"):
            (path / name).parent.mkdir(parents=True)
            (path / name).touch()

    return read_mixture(written("mixture", "mixture.json", data, make))


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
    return load_config(written("config", "run.toml", data, lambda p: p.mkdir()) / "run.toml")


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
    path = written("corpus", "corpus.json", data, _tiny_corpus)
    return TokenCorpus.open(path).digest, read_corpus_manifest(path)


def _labels(data: bytes) -> object:
    def make(path: Path) -> None:
        _tiny_corpus(path)
        manifest = read_corpus_manifest(path)
        for name, split in (("train", manifest.train), ("heldout", manifest.heldout)):
            (path / f"{name}-labels.bin").write_bytes(bytes(2 * split.sequences))

    return TokenCorpus.open(written("labelled", "labels.json", data, make)).label_names


def _run_tokenizer(data: bytes) -> object:
    path = written("run-tokenizer", "tokenizer.json", data, lambda p: p.mkdir())
    shutil.rmtree(taken := path.with_name("taken-tokenizer"), ignore_errors=True)
    return take_tokenizer(path, taken)


def _tokenizer(data: bytes) -> object:
    from smalltalk_fed.data.tokenizer import load_tokenizer, token_bytes, vocabulary_size

    path = written("tokenizer", "tokenizer.json", data, lambda p: p.mkdir())
    tokenizer = load_tokenizer(path)
    return vocabulary_size(tokenizer), token_bytes(tokenizer)


def _lines(data: bytes) -> object:
    path = written("text", "text.jsonl", data, lambda p: p.mkdir()) / "text.jsonl"
    return list(read_jsonl(path, Fields(), lambda read: None))


def _node_json() -> bytes:
    here = ("127.0.0.1:4100", "127.0.0.1:4101")
    identity = Identity("n-1", "box", *here, "run-1", "ab" * 32, "/c", "/p", here[:1], here[1:])
    return json.dumps(vars(identity)).encode()


def _identity(data: bytes) -> object:
    path = written("node", "node.json", data, lambda p: p.mkdir(mode=0o700))
    return NodeFolder.open(path).identity()


def _limits(data: bytes) -> object:
    path = written("limited", "limits.toml", data, lambda p: p.mkdir())
    return Limits.load(path).describe()


def _good_record() -> bytes:
    leave = convert.leave_to_proto(msg.Leave("n-1", 7, "Ctrl-C")).SerializeToString()
    part = convert_transfer.upload_to_proto(
        convert_transfer.Upload(blob("scores", "s"), "shard/1", 0), b"s"
    )
    sent = [("Leave", leave, 0), ("PutBlob", part.SerializeToString(), 3)]
    return b"".join(entry(1.5, call, data, stream) for call, data, stream in sent)


def _record(data: bytes) -> object:
    path = written("record", "sent.bin", data, lambda p: p.mkdir()) / "sent.bin"
    messages = list(read_record(path))
    said = [undeclared(sent) for sent in messages]
    return said, uploads(message for message, odd in zip(messages, said, strict=True) if not odd)
