"""Seconds until a coordinator answers again, after a run of a million events.

    python benchmarks/restart.py [--events 1000000] [--experts 64] [--nodes 1000] [--json]

Writes a journal as a long run would: nodes that enrol and join, then round after round a
result of every router and the division of the next chunk, with snapshots and archive by the
host's own code, only in larger transactions. Then a fresh process opens it, recovers and
answers a node's `Join`: from the first touch of the file to the answer (imports are over by
then), with the file out of the page cache (`restart_s`) and in it (`warm_s`). Without
snapshots it replays every event (`replay_s`; leave it out with --no-replay). Digests and
signatures are random, as real ones are, so the archive compresses as a real one would.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from smalltalk_fed.config.loading import parse_config
from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core import events as ev
from smalltalk_fed.core import messages as msg
from smalltalk_fed.core.coordinator import Coordinator
from smalltalk_fed.core.phases import Phase, Trigger
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.host.host import SNAPSHOT_EVENTS
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.host.recovery import keep_snapshot, recover, take_snapshot

TRANSACTION_EVENTS = 5_000
NOW = 1.8e9


def make_manifest(experts: int, rounds: int) -> RunManifest:
    """A run with that many rounds; its chunks are small, since nobody trains here."""
    config = parse_config(
        {
            "run": {"experts": experts},
            "router": {"rounds": rounds, "chunk_sequences": experts},
        },
        "benchmark",
    )
    return RunManifest(
        run_id="benchmark",
        created_unix_s=0,
        config=config,
        corpus_digest="c" * 64,
        tokenizer_sha256="d" * 64,
        vocabulary=32_000,
        train_sequences=experts * rounds,
        heldout_sequences=0,
    )


def made_up_events(experts: int, rounds: int, nodes: int, seed: int) -> Iterator[ev.Event]:
    """The events of a run that is in the middle of its last round."""
    rng = random.Random(seed)
    at = 1.0

    def digest() -> str:
        return rng.randbytes(32).hex()

    for number in range(nodes):
        secret = digest()
        yield ev.InviteMade(at, secret, NOW, 1, "")
        yield ev.NodeEnrolled(at, f"n-{number}", f"machine {number}", digest(), secret)
        yield ev.NodeJoined(at, f"n-{number}", digest())
    yield ev.PhaseChanged(at, Trigger.ENOUGH_NODES, Phase.ROUTING, f"{nodes} nodes joined")
    for round_ in range(1, rounds + 1):
        at += 1.0
        shares = tuple(BlobRef("share", digest(), 4000) for _ in range(experts))
        figures = {f"load_{e}": 1000.0 for e in range(experts)}
        figures |= {f"price_{e}": rng.random() for e in range(experts)}
        figures |= {"displaced_fraction": rng.random(), "excess_nats": rng.random()}
        yield ev.RoundAssigned(at, round_, shares, figures)
        for expert in range(experts - (round_ == rounds)):  # one result of the last is missing
            outputs = (BlobRef("parameters", digest(), 8_800_000), BlobRef("scores", digest(), 9))
            told = {"loss_mean": rng.random(), "tokens_per_s": rng.random(), "seconds": 3.1}
            signature = rng.randbytes(64).hex()
            node_id = f"n-{rng.randrange(nodes)}"
            unit_id = f"router_round/{expert}/{round_}"
            yield ev.UnitAccepted(at, unit_id, node_id, 1, outputs, told, signature, 3.2)


def write_journal(path: Path, manifest: RunManifest, events: Iterator[ev.Event]) -> int:
    """Write all events; returns how many there are."""
    journal, state = Journal(path), HardState(manifest)
    batch: list[ev.Event] = []
    for event in events:
        state.apply(event)
        batch.append(event)
        if len(batch) == TRANSACTION_EVENTS:
            journal.append(batch)
            batch = []
            if journal.last_id % SNAPSHOT_EVENTS == 0:
                keep_snapshot(journal, journal.last_id, take_snapshot(state))
                print(f"\r{journal.last_id:,} events", end="", file=sys.stderr)
    journal.append(batch)
    journal.close()
    print(file=sys.stderr)
    return journal.last_id


def restart(path: Path, manifest: RunManifest, with_snapshots: bool) -> dict[str, float]:
    """In a fresh process: from the file to an answer; seconds, and peak memory in MB."""
    start = time.perf_counter()
    journal = Journal(path)
    opened = time.perf_counter()
    if with_snapshots:
        coordinator, _ = recover(manifest, journal, NOW)
    else:
        coordinator = Coordinator.replay(manifest, journal.events(), NOW)
    coordinator.start(NOW)
    key = bytes.fromhex(coordinator.state.nodes["n-0"].signing_key)
    capabilities = msg.Capabilities(corpus_digest=manifest.corpus_digest)
    ready = coordinator.handle(msg.Join("n-0", 1, 1, key, capabilities), 1, NOW)
    if not isinstance(ready.replies[0].answer, msg.Joined):
        raise SystemExit(f"the coordinator answered {ready.replies[0].answer}")
    end = time.perf_counter()
    return {"seconds": end - start, "open_s": opened - start, "round": coordinator.state.round}


def in_a_child(path: Path, experts: int, rounds: int, how: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--restart", str(path), "--how", how]
    command += ["--experts", str(experts), "--rounds", str(rounds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout)
    if found["round"] != rounds:
        raise SystemExit(f"the restarted run is in round {found['round']} instead of {rounds}")
    return found


def out_of_the_cache(path: Path) -> None:
    """Have the next reader read from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a coordinator's restart.")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the journal in this folder")
    parser.add_argument("--no-replay", action="store_true", help="leave the full replay out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--restart", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    experts = arguments.experts
    if arguments.restart:
        manifest = make_manifest(experts, arguments.rounds)
        print(json.dumps(restart(arguments.restart, manifest, arguments.how == "snapshot")))
        return
    rounds = -(-(arguments.events - 3 * arguments.nodes) // (experts + 1))
    manifest = make_manifest(experts, rounds)
    with tempfile.TemporaryDirectory() as temporary:
        path = (arguments.folder or Path(temporary)) / "journal.sqlite"
        path.unlink(missing_ok=True)
        start = time.perf_counter()
        made_up = made_up_events(experts, rounds, arguments.nodes, arguments.seed)
        events = write_journal(path, manifest, made_up)
        write_s = time.perf_counter() - start
        out_of_the_cache(path)
        cold = in_a_child(path, experts, rounds, "snapshot")
        warm = in_a_child(path, experts, rounds, "snapshot")
        replay = None if arguments.no_replay else in_a_child(path, experts, rounds, "replay")
        result = {
            "events": events,
            "journal_mb": round(path.stat().st_size / 1e6, 1),
            "restart_s": round(cold["seconds"], 2),
            "warm_s": round(warm["seconds"], 2),
            "open_s": round(cold["open_s"], 2),
            "replay_s": round(replay["seconds"], 1) if replay else None,
            "write_s": round(write_s, 1),
        }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{result['events']:,} events of {experts} experts in {result['journal_mb']} MB:")
    print(f"  restart {result['restart_s']} s, {result['warm_s']} s with the file in the cache")
    print(f"  of which {result['open_s']} s to open and check the file")
    print(f"  without snapshots {result['replay_s']} s; written in {result['write_s']} s")


if __name__ == "__main__":
    main()
