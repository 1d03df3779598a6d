"""Text and models of `attacks.py`'s simulated nodes: scores by formula, blobs of real form.

A sequence has a kind and is as hard as it is. A router scores a prefix better the more rounds
it had, and the more it lately saw of its kind; what it was trained on last it knows by heart;
each differs from the others by noise of its own, a part of it anew every round. An expert is
the same with more effect. Counts travel in the first numbers of a tensor of a real safetensors
file, so that the real form checks, divisions and judges work on what simulated nodes hand in.
The constants are such that gains, spreads and correlations are near those of real rounds
(`verdicts.py`).
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

import numpy as np
from attacks_lies import Blobs
from safetensors.numpy import load, save

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.model_config import model_config
from smalltalk_fed.core.units import HELDOUT, Unit, UnitKey, UnitKind
from smalltalk_fed.host.jobs import capacity
from smalltalk_fed.mixture.assignment import assign, route
from smalltalk_fed.mixture.audit import (
    encode_opinion,
    expert_sample,
    parts_of,
    router_sample,
    slice_places,
)
from smalltalk_fed.mixture.idlists import decode_experts, decode_ids, encode_experts
from smalltalk_fed.mixture.permutation import chunk_ids, derive_key, shard_ids
from smalltalk_fed.mixture.scores import encode_scores
from smalltalk_fed.wire.tensors import expected_llama_tensors

KINDS_OF_TEXT = 8
HARD_NATS = 22.0  # standard deviation of how hard a prefix is
OWN_NATS, ROUND_NATS = 2.5, 1.0  # of a router's own noise, and of that part that each round changes
LEARNING_NATS, KIND_NATS = 30.0, 15.0  # a factor of e more rounds, or more of one kind
MEMORY_NATS, MEMORY_ERROR = 16.0, 6.0  # of what was trained on last; mean and deviation
KEPT = 0.3  # of what was seen before, a round
AGAIN_NATS = 1.5  # deviation of a score when the round is trained again on another machine
EXPERT_ROUNDS = 30  # that an expert's training is like
EXPERT_FACTOR = 1.6  # how much more an expert learns from the same


class Model:
    """The corpus of one run, and what its units give."""

    def __init__(self, manifest: RunManifest) -> None:
        self.manifest = manifest
        self._seed = manifest.config.run.seed
        count = manifest.train_sequences + manifest.heldout_sequences  # held-out ones last
        random = np.random.default_rng(self._seed)
        self._kind_N = random.integers(0, KINDS_OF_TEXT, count)
        self._hard_N = random.normal(0, HARD_NATS, count)
        tokens = manifest.config.sequence.prefix - 1
        self._uniform = tokens * float(np.log(manifest.vocabulary))
        self._by_heart: dict[int, np.ndarray] = {}  # ids by the tag that a state carries
        self._noise = lru_cache(maxsize=256)(self._draw_noise)
        self._chunk = lru_cache(maxsize=16)(self._draw_chunk)

    # ------------------------------------------------------------------------------- scores

    def _draw_noise(self, *what: int) -> np.ndarray:
        key = derive_key(self._seed, "noise", *what)
        random = np.random.default_rng(int.from_bytes(key[:8], "little"))
        return random.standard_normal(len(self._kind_N), np.float32)

    def _scores(self, state: np.ndarray, ids: np.ndarray, factor: float = 1.0) -> np.ndarray:
        """`state`: counts by kind, then expert and round, which the noise is of, and a tag."""
        count_K, (expert, round_, tag) = state[:KINDS_OF_TEXT], state[KINDS_OF_TEXT:].astype(int)
        learned = LEARNING_NATS * np.log1p(round_) * factor
        kind_K = KIND_NATS * np.log1p(count_K / 40) * factor
        noise = OWN_NATS * self._noise(expert)[ids] + ROUND_NATS * self._noise(expert, round_)[ids]
        known = np.isin(ids, self._by_heart.get(tag, ()))
        memory = known * (MEMORY_NATS + MEMORY_ERROR * self._noise(expert, round_, tag)[ids])
        kinds = kind_K[self._kind_N[ids]]
        return -self._uniform + learned + kinds + self._hard_N[ids] + noise + memory

    def _heldout(self, ids: np.ndarray) -> np.ndarray:
        return ids + self.manifest.train_sequences

    # -------------------------------------------------------------------------------- units

    def do(self, unit: Unit, inputs: Blobs) -> Blobs:
        """The honest outputs of a unit."""
        match unit.key.kind:
            case UnitKind.ROUTER_ROUND:
                return self._router_round(unit.key, inputs)
            case UnitKind.SHARD:
                return {"experts": self._shard(unit.key, inputs)}
            case UnitKind.TRAIN_EXPERT:
                config = self.manifest.config
                shape, length = config.expert.model, config.sequence.length
                table = model_config(shape, self.manifest.vocabulary, length)
                return {
                    "config": json.dumps(table).encode(),
                    "weights": self._trained(decode_ids(inputs["segment"]), unit.key.expert),
                }
            case UnitKind.AUDIT:
                target = UnitKey.parse(unit.key.target)
                parts = self._opinion(target, unit.sample, inputs)
                if unit.redo:
                    parts |= self._again(unit, inputs)
                return {"audit": encode_opinion(self.manifest, target, parts, unit.redo)}
            case _:
                return {}

    def _router_round(self, key: UnitKey, inputs: Blobs) -> Blobs:
        config = self.manifest.config
        before = _state(inputs["parameters"]) if "parameters" in inputs else _fresh(key.expert)
        state = self._after(before, decode_ids(inputs["share"]), key.index)
        outputs = {"parameters": self._blob(state, config.router.model)}
        if key.index < config.router.rounds:
            ids = self._chunk(key.index)
            outputs["scores"] = encode_scores(np.minimum(self._scores(state, ids), 0.0))
        return outputs

    def _shard(self, key: UnitKey, inputs: Blobs) -> bytes:
        experts, manifest = self.manifest.experts, self.manifest
        states = [_state(inputs[f"router-{e}"]) for e in range(experts)]
        if key.index == HELDOUT:
            ids = self._heldout(np.arange(manifest.heldout_sequences))
            scores = np.stack([self._scores(state, ids) for state in states], axis=1)
            return encode_experts(route(scores), experts)
        ids = shard_ids(self._seed, manifest.train_sequences, *manifest.shard_range(key.index))
        scores = np.stack([self._scores(state, ids) for state in states], axis=1)
        capacity_E = capacity(manifest, len(ids))
        return encode_experts(assign(scores.astype(np.float32), capacity_E).expert_N, experts)

    def _opinion(self, target: UnitKey, sample: int, inputs: Blobs) -> dict[str, np.ndarray]:
        manifest, names = self.manifest, parts_of(self.manifest, target)
        if target.kind is UnitKind.SHARD:
            ids = slice_places(manifest, target, sample)
            if target.index == HELDOUT:
                ids = self._heldout(ids)
            else:
                bounds = manifest.shard_range(target.index)
                ids = shard_ids(self._seed, manifest.train_sequences, *bounds)[ids]
            states = [_state(inputs[f"router-{e}"]) for e in range(manifest.experts)]
            return {
                name: self._scores(state, ids) for name, state in zip(names, states, strict=True)
            }
        if target.kind is UnitKind.TRAIN_EXPERT:
            return self._expert_opinion(target, sample, inputs)
        router = _state(inputs["parameters"])
        before = _state(inputs["before"]) if "before" in inputs else _fresh(target.expert)
        share = decode_ids(inputs["share"])
        asked = router_sample(manifest, target, sample, share)
        parts = {}
        for name, ids in (
            ("next", asked.next_ids),
            ("public", self._heldout(asked.public_ids)),
            ("own", asked.own_ids),
            ("rest", asked.rest_ids),
        ):
            if name == "next":
                parts[name] = self._scores(router, ids)
            else:
                parts[f"{name}_before"] = self._scores(before, ids)
                parts[f"{name}_after"] = self._scores(router, ids)
        return parts

    def _again(self, unit: Unit, inputs: Blobs) -> dict[str, np.ndarray]:
        """What a router's round gives on another machine, which rounds otherwise."""
        target = UnitKey.parse(unit.key.target)
        before = _state(inputs["before"]) if "before" in inputs else _fresh(target.expert)
        share = decode_ids(inputs["share"])
        state = self._after(before, share, target.index)
        asked = router_sample(self.manifest, target, unit.sample, share)
        rounding = self._noise(target.expert, target.index, 1_000_000 + unit.key.index)
        return {
            f"{name}_redo": self._scores(state, ids) + AGAIN_NATS * rounding[ids]
            for name, ids in (("own", asked.own_ids), ("rest", asked.rest_ids))
        }

    def _expert_opinion(self, target: UnitKey, sample: int, inputs: Blobs) -> dict[str, np.ndarray]:
        manifest, experts = self.manifest, self.manifest.experts
        segment = decode_ids(inputs["segment"])
        routed = decode_experts(inputs["routed"], manifest.heldout_sequences, experts)
        drawn = expert_sample(manifest, target, sample, segment, routed)
        expert = _state(inputs["weights"])
        routers = [_state(inputs[f"router-{e}"]) for e in range(experts)]
        parts = {"whole": self._scores(expert, drawn.whole_ids, EXPERT_FACTOR)}
        for name, ids in (("own", drawn.own_ids), ("other", drawn.other_ids)):
            asked = self._heldout(ids) if drawn.heldout else ids
            scores = np.stack([self._scores(router, asked) for router in routers], axis=1)
            parts[f"{name}_expert"] = self._scores(expert, asked, EXPERT_FACTOR)
            parts[f"{name}_router"] = scores[:, target.expert]
            parts[f"{name}_others"] = np.delete(scores, target.expert, axis=1).mean(axis=1)
        return parts

    # -------------------------------------------------------------------------------- small

    def _after(self, before: np.ndarray, ids: np.ndarray, round_: int) -> np.ndarray:
        state = before.copy()
        state[:KINDS_OF_TEXT] *= KEPT
        state[:KINDS_OF_TEXT] += np.bincount(self._kind_N[ids], minlength=KINDS_OF_TEXT)
        tag = int.from_bytes(hashlib.sha256(ids.tobytes()).digest()[:2], "little") + 1
        self._by_heart[tag] = ids
        state[-2:] = round_, tag
        return state

    def _trained(self, ids: np.ndarray, expert: int) -> bytes:
        state = self._after(_fresh(1000 + expert), ids, EXPERT_ROUNDS)
        return self._blob(state, self.manifest.config.expert.model)

    def _blob(self, state: np.ndarray, shape: object) -> bytes:
        tensors = {}
        for name, size in expected_llama_tensors(shape, self.manifest.vocabulary).items():
            tensors[name] = np.zeros(size, np.float32)
        first = tensors[min(tensors)].reshape(-1)
        first[: len(state)] = state
        return save(tensors, metadata={"format": "pt"})

    def _draw_chunk(self, number: int) -> np.ndarray:
        chunk = self.manifest.config.router.chunk_sequences
        return chunk_ids(self._seed, self.manifest.train_sequences, number, chunk)


def _fresh(expert: int) -> np.ndarray:
    return np.array([0.0] * KINDS_OF_TEXT + [expert, 0, 0], np.float32)


def _state(data: bytes) -> np.ndarray:
    tensors = load(data)
    return tensors[min(tensors)].reshape(-1)[: KINDS_OF_TEXT + 3]
