"""A mixture's folder whose files are a few bytes each: for what only looks at names and digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

from smalltalk_fed.config.shapes import PRESETS
from smalltalk_fed.mixture.package import (
    ExpertEntry,
    MixtureManifest,
    RouterEntry,
    write_mixture_manifest,
)

TOKENIZER, WEIGHTS = b'{"model": {}}', b"weights of expert %d"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest() -> MixtureManifest:
    """Three experts, with prices."""
    return MixtureManifest(
        run_id="run",
        prefix_tokens=64,
        sequence_tokens=256,
        vocabulary=1024,
        tokenizer_sha256=digest(TOKENIZER),
        router_shape=PRESETS["router-mini"],
        routers=tuple(
            RouterEntry(file=f"routers/{e}.safetensors", sha256=digest(b"router %d" % e))
            for e in range(3)
        ),
        experts=tuple(
            ExpertEntry(index=e, folder=f"experts/{e}", sha256=digest(WEIGHTS % e), sequences=e)
            for e in range(3)
        ),
        prices=(0.5, -0.25, -0.25),
        provenance={"corpus": "abc"},
        metrics={"suffix_ppl": 29.3},
    )


def write_folder(folder: Path) -> None:
    """All of it."""
    _put(folder / "tokenizer/tokenizer.json", TOKENIZER)
    for e in range(3):
        _put(folder / f"routers/{e}.safetensors", b"router %d" % e)
        _put(folder / f"experts/{e}/model.safetensors", WEIGHTS % e)
    write_mixture_manifest(folder, manifest())


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
