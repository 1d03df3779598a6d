"""A tiny mixture of untrained models, written as a run would leave it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from smalltalk_fed.config.manifest import sha256
from smalltalk_fed.config.shapes import ModelShape
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.mixture.package import (
    ExpertEntry,
    MixtureManifest,
    RouterEntry,
    write_mixture_manifest,
)
from smalltalk_fed.model.build import build_model, model_config
from smalltalk_fed.model.state import state_to_file

LENGTH, PREFIX, EXPERTS = 24, 8, 3
ROUTER = ModelShape(hidden=16, layers=1, heads=2, feed_forward=32)
EXPERT = ModelShape(hidden=24, layers=2, heads=2, feed_forward=48)
KINDS = {
    "counting": "one two three four five six seven eight nine ten ",
    "colours": "red, green, blue; white, black and yellow! ",
    "sums": "(1 + 2) * 34 = 102; 7 - 5 = 2; ",
}


def write_model(folder: Path, shape: ModelShape, vocabulary: int, key: bytes) -> None:
    """A Hugging Face model folder; larger weights than usual, so that texts differ."""
    folder.mkdir(parents=True)
    model = build_model(shape, vocabulary, LENGTH, key)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight *= 8
    content = json.dumps(model_config(shape, vocabulary, LENGTH))
    (folder / "config.json").write_text(content)
    state_to_file(model, folder / "model.safetensors")


def write_mixture(folder: Path, corpus: Path) -> None:
    """A mixture folder for the corpus at `corpus`."""
    manifest = TokenCorpus.open(corpus).manifest
    shutil.copytree(corpus / "tokenizer", folder / "tokenizer")
    routers = []
    for expert in range(EXPERTS):
        write_model(folder / "experts" / str(expert), EXPERT, manifest.vocabulary, b"e%d" % expert)
        model = build_model(ROUTER, manifest.vocabulary, LENGTH, b"r%d" % expert)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight *= 10
        file = folder / "routers" / f"{expert}.safetensors"
        state_to_file(model, file)
        name = f"routers/{expert}.safetensors"
        routers.append(RouterEntry(file=name, sha256=sha256(file.read_bytes())))
    write_mixture_manifest(
        folder,
        MixtureManifest(
            run_id="tiny",
            prefix_tokens=PREFIX,
            sequence_tokens=LENGTH,
            vocabulary=manifest.vocabulary,
            tokenizer_sha256=manifest.tokenizer_sha256,
            router_shape=ROUTER,
            routers=tuple(routers),
            experts=tuple(ExpertEntry(index=e, folder=f"experts/{e}") for e in range(EXPERTS)),
            prices=(0.0,) * EXPERTS,
        ),
    )


def change_manifest(folder: Path, **changes: object) -> None:
    """Change fields of mixture.json."""
    path = folder / "mixture.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
