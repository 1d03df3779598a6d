"""Decoders of what travels as a blob, and of certificates: bytes that a stranger made."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fuzz.decoders import Decoder
from fuzz.messages import NOW, authority, request
from safetensors.numpy import save
from support.core_world import make_manifest
from support.silo_world import private_manifest

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.model_config import check_expert_config, model_config
from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.core.units import HELDOUT, UnitKey, UnitKind
from smalltalk_fed.errors import BadBlob, PeerError
from smalltalk_fed.mixture.audit import decode_opinion, encode_opinion, parts_of
from smalltalk_fed.mixture.idlists import decode_experts, decode_ids, encode_experts, encode_ids
from smalltalk_fed.mixture.scores import decode_scores, encode_scores
from smalltalk_fed.mixture.silo_prices import decode_counts, encode_counts, withhold
from smalltalk_fed.wire.certificates import (
    certificate_facts,
    key_to_pem,
    public_key_sha256,
    to_pem,
    verify_issued_by,
)
from smalltalk_fed.wire.tensors import check_finite, check_weights, expected_llama_tensors

SHAPE = ModelShape(hidden=8, layers=1, heads=2, feed_forward=8)
VOCABULARY, EXPERTS, COUNT, FLOOR = 16, 3, 10, 10
_AUDITED = tuple(map(UnitKey.parse, ("router_round/0/1", "shard/1", "train_expert/1")))


def decoders() -> list[Decoder]:
    """By what the blob is."""
    peer = (PeerError,)
    certificate = authority().issue_node(request(), "n-1", NOW)
    return [
        Decoder("score block", decode_scores, peer, _score_blocks()),
        Decoder("id list", decode_ids, peer, _id_lists()),
        Decoder("expert list", _expert_list, peer, (encode_experts([0, 2, 1] * 3 + [0], EXPERTS),)),
        Decoder("opinion", _opinion, peer, tuple(map(_good_opinion, _AUDITED))),
        Decoder("row of counts", _counts, peer, _rows()),
        Decoder("weights", _weights, peer, _all_weights()),
        Decoder("weights in torch", _weights_in_torch, peer, _all_weights()[:1]),
        Decoder("expert config", _expert_config, peer, (_config(),), json=True),
        Decoder("certificate", _certificate, peer, (certificate, authority().certificate_der)),
        Decoder("certificate request", _request, peer, (request(), _pem_request())),
        Decoder("run manifest", _manifest, peer, _manifests(), json=True),
    ]


def _score_blocks() -> tuple[bytes, ...]:
    wide = np.array([-5000.0, 3.25, 90000.0], np.float32)
    return encode_scores(np.linspace(-300, -20, COUNT)), encode_scores(wide), encode_scores([])


def _id_lists() -> tuple[bytes, ...]:
    return encode_ids([3, 1, 2]), encode_ids([70_000]), encode_ids([1 << 40]), encode_ids([])


def _rows() -> tuple[bytes, ...]:
    row = withhold(np.array([40, 3, 17]), FLOOR)
    return encode_counts(row), encode_counts(row[::-1])


def _counts(data: bytes) -> object:
    return decode_counts(data, EXPERTS, FLOOR)


def _expert_list(data: bytes) -> object:
    return decode_experts(data, COUNT, EXPERTS)


def _good_opinion(target: UnitKey) -> bytes:
    manifest = make_manifest()
    count = manifest.config.audit.sample_sequences
    scores = np.linspace(-20, -1, count)
    return encode_opinion(manifest, target, dict.fromkeys(parts_of(manifest, target), scores))


def _opinion(data: bytes) -> object:
    """Whichever result it is on."""
    read, refused = [], BadBlob("on nothing")
    for target, redo in itertools.product(_AUDITED, (False, True)):
        try:
            read.append(decode_opinion(make_manifest(), target, data, redo))
        except BadBlob as error:
            refused = error
    if not read:
        raise refused
    return read


@functools.cache
def _expected() -> dict[str, tuple[int, ...]]:
    return expected_llama_tensors(SHAPE, VOCABULARY)


def _weights(data: bytes) -> object:
    check_finite(data)
    return check_weights(data, _expected())


def _all_weights() -> tuple[bytes, ...]:
    tensors = {name: np.ones(shape, np.float32) for name, shape in _expected().items()}
    return (save(tensors, metadata={"format": "pt"}),)


@functools.cache
def _model() -> Any:
    from smalltalk_fed.model.build import build_model

    return build_model(SHAPE, VOCABULARY, 16, b"fuzz")


def _weights_in_torch(data: bytes) -> object:
    from smalltalk_fed.model.state import state_from_bytes

    return state_from_bytes(_model(), data)


def _config() -> bytes:
    manifest = make_manifest()
    run = manifest.config
    table = model_config(run.expert.model, manifest.vocabulary, run.sequence.length)
    return json.dumps(table).encode()


def _expert_config(data: bytes) -> object:
    return check_expert_config(make_manifest(), data)


def _certificate(data: bytes) -> object:
    verify_issued_by(authority().certificate_der, data)
    facts = certificate_facts(data) if b"n-1" in data else to_pem(data)
    return facts, public_key_sha256(data)


def _request(data: bytes) -> object:
    return public_key_sha256(data), authority().issue_node(data, "n-1", NOW)


def _pem_request() -> bytes:
    from cryptography import x509

    return x509.load_der_x509_csr(request()).public_bytes(serialization.Encoding.PEM)


def _manifest(data: bytes) -> object:
    manifest = RunManifest.from_bytes(data)
    heldout = UnitKey(UnitKind.SHARD, index=HELDOUT)
    sizes = manifest.router_blob_bytes_max, manifest.expert_blob_bytes_max
    return manifest.to_bytes(), manifest.shard_range(0), sizes, heldout.unit_id


def _manifests() -> tuple[bytes, ...]:
    throughput = make_manifest(assignment={"capacity": [1.0, 2.5]})
    return make_manifest().to_bytes(), throughput.to_bytes(), private_manifest().to_bytes()


def private_key() -> bytes:
    """A key's file."""
    return key_to_pem(ec.derive_private_key(7, ec.SECP256R1()))
