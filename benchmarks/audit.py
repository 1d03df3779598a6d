"""Seconds and memory that `status --audit-data` needs for a run at the paper's size.

    python benchmarks/audit.py [--sequences 1400000] [--rounds 94] [--experts 32] [--json]

Writes the run folder of a finished routing: every round's shares, every result signed over
the unit as it was handed out, slices and segments of the whole corpus; router parameters are
a few bytes, since hashing is the disk's matter. Then a fresh process audits it. The peak is
the process' whole memory; imports alone are `imports_mb`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import handout
from smalltalk_fed.core.phases import Phase, Trigger
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef, Result, UnitKey
from smalltalk_fed.host.audit import audit
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.folder import Addresses, RunFolder
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.mixture.idlists import encode_experts, encode_ids
from smalltalk_fed.mixture.permutation import chunk_ids, shard_ids
from smalltalk_fed.mixture.segments import segments_from_shards
from smalltalk_fed.wire.signing import SigningKey, sign_result

NODE = "n-0"


class Writer:
    """A run folder's journal and blobs, event by event."""

    def __init__(self, folder: Path, manifest: RunManifest) -> None:
        self.manifest, self.state = manifest, HardState(manifest)
        self.blobs, self.key = BlobStore(folder / "blobs"), SigningKey.create()
        self._events: list[ev.Event] = []
        self._journal = Journal(folder / "journal.sqlite")
        secret = "0" * 64
        self.emit(ev.InviteMade(1.0, secret, 2.0, 1, ""))
        self.emit(ev.NodeEnrolled(1.0, NODE, "machine", "1" * 64, secret))
        self.emit(ev.NodeJoined(1.0, NODE, self.key.public_bytes.hex()))
        self.move(Trigger.ENOUGH_NODES, Phase.ROUTING)

    def emit(self, event: ev.Event) -> None:
        self.state.apply(event)
        self._events.append(event)

    def move(self, trigger: Trigger, phase: Phase) -> None:
        self.emit(ev.PhaseChanged(1.0, trigger, phase, ""))

    def accept(self, unit_id: str, outputs: tuple[BlobRef, ...]) -> None:
        unit, result = handout.unit(self.state, UnitKey.parse(unit_id)), Result(unit_id, outputs)
        signature = sign_result(self.key, self.manifest.run_id, NODE, 1, unit, result)
        self.emit(ev.UnitAccepted(1.0, unit_id, NODE, 1, outputs, {}, signature.hex(), 1.0))

    def close(self) -> None:
        self._journal.append(self._events)
        self._journal.close()


def write_run(folder: Path, manifest: RunManifest) -> None:
    """The whole folder, up to the segments."""
    folder.mkdir(mode=0o700)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    (folder / "addresses.json").write_text('{"run": "", "enrolment": ""}')
    run, experts, seed = Writer(folder, manifest), manifest.experts, manifest.config.run.seed
    count, total = manifest.config.router.chunk_sequences, manifest.train_sequences
    for number in range(1, manifest.config.router.rounds + 1):
        ids = chunk_ids(seed, total, number - 1, count)
        shares = [run.blobs.put("share", encode_ids(ids[e::experts])) for e in range(experts)]
        run.emit(ev.RoundAssigned(1.0, number, tuple(shares), {}))
        for expert in range(experts):
            names = ("parameters", "scores")[: 1 + (number < manifest.config.router.rounds)]
            made = (run.blobs.put(name, f"{name} {expert} {number}".encode()) for name in names)
            run.accept(f"router_round/{expert}/{number}", tuple(made))
        print(f"\rround {number}", end="", file=sys.stderr)
    print(file=sys.stderr)
    run.move(Trigger.ROUTERS_DONE, Phase.SHARDING)
    slices = []
    for index in range(manifest.shard_count):
        start, stop = manifest.shard_range(index)
        expert_N = (np.arange(stop - start) % experts).astype(np.int32)
        run.accept(f"shard/{index}", (run.blobs.put("experts", encode_experts(expert_N, experts)),))
        slices.append((shard_ids(seed, total, start, stop), expert_N))
    segments = segments_from_shards(slices, experts)
    refs = tuple(run.blobs.put("segment", encode_ids(ids)) for ids in segments)
    loads = {f"load_{expert}": float(ids.size) for expert, ids in enumerate(segments)}
    run.emit(ev.SegmentsMade(1.0, refs, loads))
    run.move(Trigger.SEGMENTS_MADE, Phase.TRAINING)
    run.close()


def peak_mb() -> float:
    """Of this program; what `resource` tells is at least that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def audited(folder: Path) -> dict[str, object]:
    """In a fresh process."""
    manifest = RunManifest.from_bytes((folder / "manifest.json").read_bytes())
    imports_mb, start = peak_mb(), time.perf_counter()
    report = audit(RunFolder(folder, manifest, Addresses("", "")))
    if not report.proved:
        raise SystemExit(report.verdict())
    return {
        "audit_s": round(time.perf_counter() - start, 2),
        "peak_mb": round(peak_mb(), 1),
        "imports_mb": round(imports_mb, 1),
        "events": report.events,
        "signatures": report.counts["signatures"],
        "sequences": report.counts["sequences"],
        "blobs": report.blobs_kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=1_400_000)
    parser.add_argument("--rounds", type=int, default=94)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--chunk", type=int, default=43_945)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--audit", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.audit:
        print(json.dumps(audited(options.audit)))
        return
    table = {
        "run": {"experts": options.experts, "seed": options.seed},
        "router": {"rounds": options.rounds, "chunk_sequences": options.chunk},
    }
    digest = hashlib.sha256(b"").hexdigest()
    manifest = RunManifest(
        run_id="benchmark",
        created_unix_s=0,
        config=parse_config(table, "benchmark"),
        corpus_digest=digest,
        tokenizer_sha256=digest,
        vocabulary=32_000,
        train_sequences=options.sequences,
        heldout_sequences=0,
    )
    with tempfile.TemporaryDirectory() as place:
        write_run(Path(place) / "run", manifest)
        command = [sys.executable, __file__, "--audit", str(Path(place) / "run")]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:12} {value}")


if __name__ == "__main__":
    main()
