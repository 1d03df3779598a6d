"""The two manifests: what a corpus is, and what a run is.

`CorpusManifest` is `corpus.json` in a corpus folder; `RunManifest` is what the coordinator
signs and every node gets at `Join`. Both are canonical JSON: the same content has the same
bytes and the same digest everywhere. Labels of sequences are never part of either: a run
must not be able to use them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from smalltalk_fed.config.problems import first_problem
from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.errors import ConfigError, DataError, Malformed

PROTOCOL_VERSIONS = (1,)
MAX_HEADER_BYTES = 1 << 20
MAX_SEQUENCES = 1 << 48
MAX_VOCABULARY = 1 << 24
NO_CORPUS = hashlib.sha256(b"smalltalk-fed: a run without public text").hexdigest()

Sha256 = str  # 64 lower-case hexadecimal digits


def canonical_json(value: Any) -> bytes:
    """The one JSON encoding that digests and signatures are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> Sha256:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


class ShardEntry(BaseModel):
    """One file of token ids: `sequences` rows of S little-endian integers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    sequences: int = Field(ge=1, le=MAX_SEQUENCES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SplitManifest(BaseModel):
    """One split; sequence id = position over its shards in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: tuple[ShardEntry, ...] = Field(fail_fast=True)
    documents: int = Field(ge=0, le=MAX_SEQUENCES)

    @property
    def sequences(self) -> int:
        """Number of sequences over all shards."""
        return sum(shard.sequences for shard in self.shards)


class CorpusManifest(BaseModel):
    """corpus.json: the identity of a tokenised corpus."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    sequence_tokens: int = Field(ge=4, le=1 << 20)
    dtype: Literal["uint16", "uint32"]
    vocabulary: int = Field(ge=2, le=MAX_VOCABULARY)
    tokenizer_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    train: SplitManifest
    heldout: SplitManifest

    @property
    def digest(self) -> Sha256:
        """Identity of the text: differs if any token, its order or the tokenizer differs."""
        return sha256(canonical_json(self.model_dump(mode="json")))


class RunManifest(BaseModel):
    """What every participant of a run agrees on.

    In the regime `private` the corpus is the run's public text, and there may be none: then it
    has no sequences, and `NO_CORPUS` for its digest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    protocol_version: Literal[1] = 1
    run_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")
    created_unix_s: int = Field(ge=0, le=1 << 40)
    config: RunConfig
    corpus_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    tokenizer_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    vocabulary: int = Field(ge=2, le=MAX_VOCABULARY)
    train_sequences: int = Field(ge=0, le=MAX_SEQUENCES)
    heldout_sequences: int = Field(ge=0, le=MAX_SEQUENCES)

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        if not self.train_sequences and self.config.run.regime != "private":
            raise ValueError("a run without text must be private")
        return self

    def to_bytes(self) -> bytes:
        """Canonical bytes; what is signed."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> RunManifest:
        """Raises Malformed when `data` is not a manifest of this version."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            where, what = first_problem(error)
            raise Malformed(f"the run's manifest can't be read: {where}: {what}") from None

    @property
    def experts(self) -> int:
        """E."""
        return self.config.run.experts

    @property
    def shard_count(self) -> int:
        """Number of `shard` units that the training split is divided by."""
        return -(-self.train_sequences // self.config.router.chunk_sequences)

    def shard_range(self, index: int) -> tuple[int, int]:
        """First and past-the-end place of slice `index` in the permuted training split.

        Slices differ by at most one sequence, so that none is too small to balance.
        """
        count = self.shard_count or 1  # a private run may have no public text
        return (
            index * self.train_sequences // count,
            (index + 1) * self.train_sequences // count,
        )

    @property
    def router_blob_bytes_max(self) -> int:
        """Largest blob of one router's parameters: fp32 and a safetensors header."""
        return 4 * self.config.router.model.parameters(self.vocabulary) + MAX_HEADER_BYTES

    @property
    def expert_blob_bytes_max(self) -> int:
        """Largest blob of one expert's weights: fp32 and a safetensors header, or as configured."""
        if self.config.expert.weights_bytes_max:
            return self.config.expert.weights_bytes_max
        return 4 * self.config.expert.model.parameters(self.vocabulary) + MAX_HEADER_BYTES


def make_manifest(
    config: RunConfig, corpus: CorpusManifest, run_id: str, created_unix_s: int
) -> RunManifest:
    """Join configuration and corpus, and check what only both together show.

    Raises:
        ConfigError: the two don't fit each other.
        DataError: the corpus is too small.
    """
    if config.sequence.length != corpus.sequence_tokens:
        raise ConfigError(
            f"'sequence.length' is {config.sequence.length}, but the corpus was prepared with "
            f"{corpus.sequence_tokens} tokens a sequence; make them equal."
        )
    if corpus.train.sequences < config.run.experts:
        raise DataError(
            f"the corpus has {corpus.train.sequences} training sequences for "
            f"{config.run.experts} experts; every expert needs at least one."
        )
    return RunManifest(
        run_id=run_id,
        created_unix_s=created_unix_s,
        config=config,
        corpus_digest=corpus.digest,
        tokenizer_sha256=corpus.tokenizer_sha256,
        vocabulary=corpus.vocabulary,
        train_sequences=corpus.train.sequences,
        heldout_sequences=corpus.heldout.sequences,
    )


def make_private_manifest(
    config: RunConfig,
    tokenizer_sha256: str,
    vocabulary: int,
    run_id: str,
    created_unix_s: int,
    public: CorpusManifest | None = None,
) -> RunManifest:
    """Join a private run's configuration and tokenizer, and its public text if it has some.

    Raises:
        ConfigError: they don't fit each other.
        DataError: the public text is too small.
    """
    if config.run.regime != "private":
        raise ConfigError("'run.regime' is 'shared', and such a run needs a corpus; give one.")
    share = config.private.public_share
    if public is None:
        if share:
            raise ConfigError(
                f"'private.public_share' is {share:g}, but the run has no public text; give a "
                "corpus, or set it to 0."
            )
        return RunManifest(
            run_id=run_id,
            created_unix_s=created_unix_s,
            config=config,
            corpus_digest=NO_CORPUS,
            tokenizer_sha256=tokenizer_sha256,
            vocabulary=vocabulary,
            train_sequences=0,
            heldout_sequences=0,
        )
    if not share:
        raise ConfigError(
            "the run has public text, but 'private.public_share' is 0, so nobody would train on "
            "it; set it, or give no corpus."
        )
    if public.tokenizer_sha256 != tokenizer_sha256 or public.vocabulary != vocabulary:
        raise ConfigError(
            "the public text was prepared with another tokenizer than the run's; prepare it "
            "again with that one."
        )
    return make_manifest(config, public, run_id, created_unix_s)
