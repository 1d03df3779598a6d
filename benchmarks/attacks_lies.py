"""The ways in which nodes of `attacks.py` lie: what they hand in instead of honest work.

A liar computes as an honest node does and changes what comes out, or what goes in. `do` is
the honest computation, real or modelled: unit and input bytes by name to output bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from safetensors.numpy import load, save

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.catalogue import outputs_of
from smalltalk_fed.core.units import HELDOUT, Unit, UnitKey, UnitKind
from smalltalk_fed.mixture.audit import opinion_scores
from smalltalk_fed.mixture.idlists import decode_experts, decode_ids, encode_experts, encode_ids
from smalltalk_fed.mixture.permutation import Permutation, chunk_ids, derive_key
from smalltalk_fed.mixture.scores import decode_scores, encode_scores

KINDS = {
    "random": "scores at random, slices divided at random",
    "shifted": "scores raised on the half of the text that is easy for the router",
    "shuffled": "scores and slices in another order",
    "copied": "another router's scores, moved by 1/32 nat",
    "nan": "parameters that are no numbers",
    "wrong_share": "a router trained on other text of the chunk than its share",
    "wrong_domain": "an expert trained on other text than its segment",
    "frozen": "the first results again and again",
    "accusing": "honest results, and opinions at random on those of others",
}

Blobs = dict[str, bytes]
Do = Callable[[Unit, Blobs], Blobs]


@dataclass
class Liar:
    """One node's lies. `blocks`: all score blocks so far, by (expert, round).

    After `patience` honest units it lies in all that its kind lies about.
    """

    kind: str
    manifest: RunManifest
    do: Do
    blocks: dict[tuple[int, int], bytes]
    seed: int
    patience: int = 0
    units: int = 0
    lies: int = 0
    _first: dict[UnitKind, Blobs] = field(default_factory=dict)

    def outputs(self, unit: Unit, inputs: Blobs) -> Blobs:
        """What this node hands in for `unit`."""
        self.units += 1
        if self.units <= self.patience or not self._concerns(unit):
            outputs = self.do(unit, inputs)
            self._first.setdefault(unit.key.kind, outputs)
            return outputs
        self.lies += 1
        return self._lie(unit, inputs)

    def _concerns(self, unit: Unit) -> bool:
        kind, last = unit.key.kind, self.manifest.config.router.rounds
        scored = kind is UnitKind.ROUTER_ROUND and unit.key.index < last
        match self.kind:
            case "random" | "shuffled":
                return scored or kind is UnitKind.SHARD
            case "shifted":
                return scored
            case "copied":
                return scored and self._other_block(unit) is not None
            case "nan":
                return kind in (UnitKind.ROUTER_ROUND, UnitKind.TRAIN_EXPERT)
            case "wrong_share":
                return kind is UnitKind.ROUTER_ROUND
            case "wrong_domain":
                return kind is UnitKind.TRAIN_EXPERT
            case "frozen":
                names = set(outputs_of(self.manifest, unit.key))
                return bool(names) and names <= set(self._first.get(kind, ()))
            case _:
                return kind is UnitKind.AUDIT

    def _lie(self, unit: Unit, inputs: Blobs) -> Blobs:
        key = unit.key
        match self.kind:
            case "wrong_share":
                return self.do(unit, inputs | {"share": self._outside(unit, inputs["share"])})
            case "wrong_domain":
                return self.do(unit, inputs | {"segment": self._outside(unit, inputs["segment"])})
            case "accusing":
                count = opinion_scores(self.manifest, UnitKey.parse(key.target), unit.redo)
                return {"audit": encode_scores(-self._random(unit).uniform(20, 300, count))}
            case "frozen":
                names = outputs_of(self.manifest, key)
                return {name: self._first[key.kind][name] for name in names}
        outputs = self.do(unit, inputs)
        if self.kind == "nan":
            name = "parameters" if key.kind is UnitKind.ROUTER_ROUND else "weights"
            tensors = load(outputs[name])
            broken = {each: np.full_like(values, np.nan) for each, values in tensors.items()}
            return outputs | {name: save(broken, metadata={"format": "pt"})}
        if key.kind is UnitKind.SHARD:
            return {"experts": self._slice(unit, outputs["experts"])}
        return outputs | {"scores": encode_scores(self._scores(unit, outputs["scores"]))}

    def _scores(self, unit: Unit, block: bytes) -> np.ndarray:
        honest, random = decode_scores(block), self._random(unit)
        match self.kind:
            case "random":
                lie = random.normal(honest.mean(), honest.std(), len(honest))
            case "shuffled":
                lie = random.permutation(honest)
            case "shifted":
                lie = honest + np.where(honest > np.median(honest), honest.std(), 0.0)
            case _:
                lie = decode_scores(self._other_block(unit) or block) - 1 / 32
        return np.minimum(lie, 0.0)

    def _slice(self, unit: Unit, data: bytes) -> bytes:
        count = self.manifest.heldout_sequences
        if unit.key.index != HELDOUT:
            start, stop = self.manifest.shard_range(unit.key.index)
            count = stop - start
        expert_N = decode_experts(data, count, self.manifest.experts)
        return encode_experts(self._random(unit).permutation(expert_N), self.manifest.experts)

    def _other_block(self, unit: Unit) -> bytes | None:
        """The newest block of another router that this node may have got hold of."""
        for round_ in (unit.key.index, unit.key.index - 1):
            for step in range(1, self.manifest.experts):
                other = (unit.key.expert + step) % self.manifest.experts
                if (other, round_) in self.blocks:
                    return self.blocks[other, round_]
        return None

    def _outside(self, unit: Unit, listed: bytes) -> bytes:
        """As many ids, as far as there are, of text that the list leaves out."""
        manifest, mine = self.manifest, decode_ids(listed)
        everything = np.arange(manifest.train_sequences)
        if unit.key.kind is UnitKind.ROUTER_ROUND:
            config = manifest.config
            everything = chunk_ids(
                config.run.seed,
                manifest.train_sequences,
                unit.key.index - 1,
                config.router.chunk_sequences,
            )
        others = np.setdiff1d(everything, mine)
        order = Permutation(len(others), derive_key(self.seed, unit.unit_id))
        return encode_ids(np.sort(others[order.range(0, min(len(mine), len(others)))]))

    def _random(self, unit: Unit) -> np.random.Generator:
        key = derive_key(self.seed, unit.unit_id)
        return np.random.default_rng(int.from_bytes(key[:8], "little"))
