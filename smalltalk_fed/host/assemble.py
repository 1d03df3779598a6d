"""The finished mixture as a folder, out of state and blobs; no torch.

Made beside and renamed, so that it is there whole or not at all. Experts that stayed on
their nodes are listed, without weights; of those that were withdrawn there is neither weights
nor router, also where they left a mixture that was there. Blobs are linked where the file
system allows.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalltalk_fed import __version__
from smalltalk_fed.config.model_config import read_model_config
from smalltalk_fed.config.private import Share, seat_of
from smalltalk_fed.core.handout import final_router
from smalltalk_fed.core.phases import Phase
from smalltalk_fed.core.seats import share_of
from smalltalk_fed.core.silo_book import is_private, prices
from smalltalk_fed.core.silos import divided_among
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.errors import WorldError
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.durable import sync, sync_tree
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.seat_status import price_moves, seats_status
from smalltalk_fed.host.status import evaluation, routing_rounds, shard_figures
from smalltalk_fed.mixture.package import (
    WEIGHTS_FILE,
    ExpertEntry,
    MixtureError,
    MixtureManifest,
    RouterEntry,
    write_mixture_manifest,
)
from smalltalk_fed.mixture.withdrawing import GONE, take_out

log = logging.getLogger("smalltalk.host")


@dataclass(frozen=True)
class _Source:
    folder: RunFolder
    state: HardState
    blobs: BlobStore


def assemble_mixture(folder: RunFolder, state: HardState, blobs: BlobStore) -> bool:
    """Make `folder.mixture` if the run is finished; False if it is there or not finished.

    From one that is there the experts are removed that were withdrawn since.

    Raises:
        DamagedBlob: a part of it is damaged or gone.
        WorldError: the disk refuses. Either way nothing half made is left.
    """
    if state.phase is not Phase.FINISHED:
        return False
    if folder.mixture.exists():
        take_out_withdrawn(folder, state)
        return False
    source = _Source(folder, state, blobs)
    making = folder.path / ".mixture.making"
    try:
        shutil.rmtree(making, ignore_errors=True)
        (making / "routers").mkdir(parents=True)
        (making / "experts").mkdir()
        shutil.copytree(folder.path / "tokenizer", making / "tokenizer")
        routers = _routers(source, making)
        experts = tuple(_expert(source, making, index) for index in range(state.experts))
        write_mixture_manifest(making, _manifest(source, routers, experts))
        sync_tree(making)
        making.rename(folder.mixture)
        sync(folder.path)
    except OSError as error:
        raise WorldError(f"{folder.mixture} can't be made ({error.strerror}).") from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return True


def take_out_withdrawn(folder: RunFolder, state: HardState) -> None:
    """Remove from a mixture that is there what was withdrawn.

    One that somebody changed so that it can't be read stops no run; it is said in the log.
    """
    if not state.withdrawn or not folder.mixture.exists():
        return
    try:
        take_out(folder.mixture, {e: gone.reason for e, gone in state.withdrawn.items()})
    except MixtureError as error:
        experts = ", ".join(map(str, sorted(state.withdrawn)))
        log.error("remove what was withdrawn (%s) from the mixture by hand: %s", experts, error)


def _routers(source: _Source, making: Path) -> tuple[RouterEntry, ...]:
    entries = []
    for index in range(source.state.experts):
        name = f"routers/{index}.safetensors"
        if index in source.state.withdrawn:
            entries.append(RouterEntry(file=name, sha256=""))
            continue
        ref = final_router(source.state, index)
        _place(source.blobs, ref.digest, making / name)
        entries.append(RouterEntry(file=name, sha256=ref.digest))
    return tuple(entries)


def _expert(source: _Source, making: Path, index: int) -> ExpertEntry:
    state, name = source.state, f"experts/{index}"
    if index in state.withdrawn:
        why = state.withdrawn[index].reason
        return ExpertEntry(index=index, folder=name, enabled=False, withdrawn=why or GONE)
    accepted = state.finished[UnitKey(UnitKind.TRAIN_EXPERT, index).unit_id]
    outputs = {ref.name: ref for ref in accepted.outputs}
    share: Share = "operator" if outputs else "never"
    if is_private(state.manifest):
        share = share_of(state, index)
        if share == "never":
            outputs = {}  # its owner may have said so since they were collected
    if outputs:
        target = making / name
        target.mkdir()
        config = source.blobs.need(outputs["config"])
        read_model_config(config)  # an old run's may not have been looked at when it came
        (target / "config.json").write_bytes(config)
        _place(source.blobs, outputs["weights"].digest, target / WEIGHTS_FILE)
        for file in (source.folder.path / "tokenizer").iterdir():
            shutil.copy(file, target / file.name)
    shape = state.manifest.config.expert.model
    return ExpertEntry(
        index=index,
        folder=name,
        share=share,
        sha256=outputs["weights"].digest if outputs else "",
        parameters=shape.parameters(state.manifest.vocabulary),
        trained_by=accepted.node_id,
        trained_by_name=state.nodes[accepted.node_id].name,
        signature=accepted.signature,
        sequences=_sequences(state, index),
        tokens=int(accepted.figures.get("tokens", 0)),
    )


def _manifest(
    source: _Source, routers: tuple[RouterEntry, ...], experts: tuple[ExpertEntry, ...]
) -> MixtureManifest:
    state = source.state
    manifest = state.manifest
    return MixtureManifest(
        run_id=manifest.run_id,
        prefix_tokens=manifest.config.sequence.prefix,
        sequence_tokens=manifest.config.sequence.length,
        vocabulary=manifest.vocabulary,
        tokenizer_sha256=manifest.tokenizer_sha256,
        router_shape=manifest.config.router.model,
        routers=routers,
        experts=experts,
        # The prior of inference: uniform where text is shared, and no balancing.
        prices=prices(state),
        provenance={
            "smalltalk_fed": __version__,
            "manifest": manifest.model_dump(mode="json"),
            "corpus_overlap": _overlap(state),
            "nodes": {node.node_id: node.name for node in state.nodes.values()},
            "signing_keys": {node.node_id: node.signing_key for node in state.nodes.values()},
            "finished_unix_s": state.entered_at.get(Phase.FINISHED.value),
        },
        metrics={
            "heldout": evaluation(state),
            **_routing(state),
        },
    )


def _sequences(state: HardState, expert: int) -> int:
    """Training sequences of an expert's segment; of a silo an even part of its text is one, too."""
    shared = int(state.segments.figures[f"load_{expert}"]) if state.segments else 0
    if not is_private(state.manifest):
        return shared
    seat = seat_of(state.manifest.config, expert)
    return shared + state.seats[seat].train_sequences // len(divided_among(state, seat))


def _overlap(state: HardState) -> str:
    if is_private(state.manifest):
        return "routers and experts are trained on the same text, each silo's on its own"
    return "routers and experts are trained on the same corpus"


def _routing(state: HardState) -> dict[str, Any]:
    """How the division came out: by rounds and slices, or by silos' counts."""
    if is_private(state.manifest):
        return {"prices": price_moves(state)[-1], "seats": seats_status(state, set())}
    return {"shards": shard_figures(state), "last_round": routing_rounds(state)[-1]}


def _place(blobs: BlobStore, digest: str, target: Path) -> None:
    """The blob under another name: a hard link, or a copy where there are none."""
    source = blobs.need_file(digest)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
