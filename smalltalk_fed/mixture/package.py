"""`mixture.json`: what a finished mixture's folder holds, read by somebody who trusts nobody.

    mixture.json          this manifest           tokenizer/tokenizer.json
    routers/<e>.safetensors                       experts/<e>/  a Hugging Face model folder

Rules: paths are plain names below the folder, symbolic links are refused; tokenizer and
routers must have the digests that the manifest names, or the mixture is refused, since with
other ones it would route wrongly and not say so. An expert may be missing or disabled:
routing chooses among those that are there. One that stayed with its owner's node has an entry
and a router: who can ask that node (`elsewhere`) chooses among those as well. One that was
withdrawn has neither weights nor router, and is never chosen. Experts' weights are large and
checked on request (`verify_experts`). Loading models is `smalltalk_fed.evaluate`'s part.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from smalltalk_fed.config.inside import only_plain, plain
from smalltalk_fed.config.manifest import MAX_VOCABULARY
from smalltalk_fed.config.private import Share
from smalltalk_fed.config.problems import first_problem
from smalltalk_fed.config.run import MAX_EXPERTS
from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.errors import UserError, WorldError, shown

MANIFEST_FILE = "mixture.json"
TOKENIZER_FILE = "tokenizer/tokenizer.json"
WEIGHTS_FILE = "model.safetensors"
MAX_MANIFEST_BYTES = 16 << 20
MAX_REASON_CHARS = 500
_SHA256 = r"^[0-9a-f]{64}$"
_ROUTER_FILE = r"^routers/[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_EXPERT_FOLDER = r"^experts/[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class MixtureError(UserError):
    """A mixture's folder can't be used."""


class RouterEntry(BaseModel):
    """One router's parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(pattern=_ROUTER_FILE)
    sha256: str = Field(pattern=r"^([0-9a-f]{64})?$")  # empty: the expert was withdrawn


class ExpertEntry(BaseModel):
    """One expert; `sha256` is that of its weights, empty if they never left their node.

    `share`: whom its owner lets have the weights: nobody, the run's operator, everybody.
    `withdrawn`: why it left the mixture for good; empty if it did not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int = Field(ge=0)
    folder: str = Field(pattern=_EXPERT_FOLDER)
    enabled: bool = True
    share: Share = "operator"
    withdrawn: str = Field(default="", max_length=MAX_REASON_CHARS)
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    parameters: int = Field(default=0, ge=0)
    trained_by: str = ""  # node id
    trained_by_name: str = ""
    signature: str = ""  # the node's Ed25519 signature over its result, hexadecimal
    sequences: int = Field(default=0, ge=0)  # in its segment
    tokens: int = Field(default=0, ge=0)  # trained on, repetitions counted


class MixtureManifest(BaseModel):
    """mixture.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    run_id: str
    prefix_tokens: int = Field(ge=2, le=1 << 20)  # M
    sequence_tokens: int = Field(ge=2, le=1 << 20)  # S
    vocabulary: int = Field(ge=2, le=MAX_VOCABULARY)
    tokenizer_sha256: str = Field(pattern=_SHA256)
    router_shape: ModelShape
    routers: tuple[RouterEntry, ...] = Field(min_length=1, max_length=MAX_EXPERTS, fail_fast=True)
    experts: tuple[ExpertEntry, ...] = Field(min_length=1, max_length=MAX_EXPERTS, fail_fast=True)
    # The prior: argmax_e (score_e - price_e); zeros for a uniform one.
    prices: tuple[FiniteFloat, ...] = Field(max_length=MAX_EXPERTS, fail_fast=True)
    provenance: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        count = len(self.routers)
        if len(self.experts) != count or len(self.prices) != count:
            raise ValueError(
                f"{count} routers, {len(self.experts)} experts and {len(self.prices)} prices; "
                "there must be one of each"
            )
        if [expert.index for expert in self.experts] != list(range(count)):
            raise ValueError("experts must be listed by index from 0 on")
        for router, expert in zip(self.routers, self.experts, strict=True):
            if bool(router.sha256) == bool(expert.withdrawn):
                raise ValueError(
                    f"router {expert.index} must have a digest, or its expert be withdrawn; "
                    "not both"
                )
        if self.prefix_tokens > self.sequence_tokens:
            raise ValueError(
                f"a prefix of {self.prefix_tokens} tokens is longer than a sequence of "
                f"{self.sequence_tokens}"
            )
        return self


def read_mixture(folder: Path, *, elsewhere: bool = False) -> MixtureManifest:
    """Read and check a mixture's manifest, tokenizer and routers.

    `elsewhere`: experts that stayed with their nodes can be asked there, so no weights are needed.

    Raises:
        MixtureError: missing, of another version, damaged, or with paths or links that leave it;
            or nothing in it can answer.
    """
    manifest = read_manifest(folder)
    _check_file(folder, TOKENIZER_FILE, manifest.tokenizer_sha256, "tokenizer")
    for number, router in enumerate(manifest.routers):
        if router.sha256:
            _check_file(folder, router.file, router.sha256, f"router {number}")
    only_plain(folder / "tokenizer", MixtureError)
    if not (present_experts(folder, manifest) or (elsewhere and known_experts(manifest))):
        raise MixtureError(_nothing_there(folder, manifest))
    return manifest


def read_manifest(folder: Path) -> MixtureManifest:
    """mixture.json alone; what lies beside it is not looked at.

    Raises:
        MixtureError: missing, of another version, or damaged.
    """
    path = plain(folder, MANIFEST_FILE, MixtureError)
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise MixtureError(f"{path} is too large to be a mixture's manifest.")
        data = path.read_bytes()
        version = json.loads(data).get("format_version")
        if version != 1:
            raise MixtureError(
                f"{path} has format version {shown(repr(version))}, this version of smalltalk-fed "
                "reads 1."
            )
        manifest = MixtureManifest.model_validate_json(data)
    except FileNotFoundError:
        raise MixtureError(
            f"{folder} is not a mixture (it has no {MANIFEST_FILE}); name the folder `mixture` of "
            "a finished run."
        ) from None
    except ValidationError as error:
        where, what = first_problem(error)
        raise MixtureError(f"{path} can't be used: {where} {what}.") from None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise MixtureError(f"{path} can't be read ({shown(str(error), 200)}).") from None
    return manifest


def known_experts(manifest: MixtureManifest) -> list[int]:
    """Return the indices of experts that may be chosen if their weights are at hand somewhere."""
    return [e.index for e in manifest.experts if e.enabled and not e.withdrawn]


def present_experts(folder: Path, manifest: MixtureManifest) -> list[int]:
    """Return the indices of experts that are enabled and have weights in the folder."""
    present = []
    for expert in manifest.experts:
        weights = plain(folder, f"{expert.folder}/{WEIGHTS_FILE}", MixtureError)
        if expert.enabled and not expert.withdrawn and weights.is_file():
            only_plain(weights.parent, MixtureError)  # its configuration is read too
            present.append(expert.index)
    return present


def verify_experts(folder: Path, manifest: MixtureManifest) -> None:
    """Check the weights of all experts that are present against their digests.

    Raises:
        MixtureError: one differs.
    """
    for index in present_experts(folder, manifest):
        expert = manifest.experts[index]
        _check_file(folder, f"{expert.folder}/{WEIGHTS_FILE}", expert.sha256, f"expert {index}")


def write_mixture_manifest(folder: Path, manifest: MixtureManifest) -> None:
    """Write mixture.json at once or not at all.

    Raises:
        WorldError: the disk refuses.
    """
    part = folder / f".{MANIFEST_FILE}.part"
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True))
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / MANIFEST_FILE)
    except OSError as error:
        raise WorldError(f"{folder / MANIFEST_FILE} can't be written ({error.strerror}).") from None


def _nothing_there(folder: Path, manifest: MixtureManifest) -> str:
    if all(expert.withdrawn for expert in manifest.experts):
        return f"all experts of {folder} were withdrawn by their owners; nothing is left of it."
    return (
        f"{folder} has no expert's weights; they were not collected, or were removed. Experts that "
        "stayed with their nodes answer `smalltalk generate --federated --run RUN`."
    )


def _check_file(folder: Path, name: str, digest: str, what: str) -> None:
    path = plain(folder, name, MixtureError)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MixtureError(
            f"the {what} {folder / name} can't be read ({error.strerror})."
        ) from None
    if found != digest:
        raise MixtureError(
            f"the {what} {folder / name} is not the one that this mixture was made with; copy "
            "the whole mixture again."
        )
