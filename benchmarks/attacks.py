"""What liars do to a run, and how soon each is caught: with checks on results and without.

    python benchmarks/attacks.py [--only perplexity|counts] [--kinds a,b] [--fractions 0,0.1]
        [--seeds 20] [--processes 2] [--corpus FOLDER] [--json]

Two parts. `perplexity`: real runs of ten nodes, two of them liars (20 %) that are the fastest
and so get work all the time; held-out suffix perplexity of the mixture without checks
(`audit.rate = 0`, which also means that no block is odd; form checks are always on) and with
them. `counts`: simulated nodes, see attacks_counts.py: for each kind and fraction over
`--seeds` runs, half of them with patient liars: how many lied, how many were caught, after how
many lies and hours, what part of all work audits took and what part was done twice, lies that
counted in the end, and honest nodes that were quarantined. `--json` has a row a kind and
fraction.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attacks_counts import Counts, simulate
from attacks_lies import KINDS

if TYPE_CHECKING:
    from attacks_training import Honest

FRACTIONS = (0.1, 0.2, 0.3)
REAL_FRACTION = 0.2
Row = dict[str, Any]


def perplexities(
    kinds: Iterable[str], corpus_folder: Path | None, processes: int
) -> dict[str, Row]:
    """Real runs; the row "" is the honest one. What is honest is computed once for all."""
    from attacks_training import Honest
    from pack_corpus import pack_corpus

    from smalltalk_fed.data.corpus import TokenCorpus

    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as place:
        folder, began = Path(place), time.monotonic()
        corpus = (
            TokenCorpus.open(corpus_folder)
            if corpus_folder
            else pack_corpus(
                folder, sequence_tokens=128, vocabulary=512, documents=40,
                domains=("python", "scripture", "french", "formal_math"),
            )
        )  # fmt: skip
        honest = Honest(corpus)
        rows[""] = _real_runs("", honest, folder)
        say(f"{time.monotonic() - began:5.0f} s  honest: {rows['']}")
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            # What lies in every round shares little with the honest run, so it takes longest.
            order = sorted(kinds, key=lambda kind: kind != "wrong_share")
            running = {pool.submit(_real_runs, kind, honest, folder): kind for kind in order}
            for done in as_completed(running):
                rows[running[done]] = done.result()
                say(f"{time.monotonic() - began:5.0f} s  {running[done]}: {done.result()}")
    return rows


def _real_runs(kind: str, honest: Honest, folder: Path) -> Row:
    """The same run without checks and with them."""
    from attacks_training import CHECKED, UNCHECKED, run

    row: Row = {}
    for name, rate in (("unchecked", UNCHECKED), ("checked", CHECKED)):
        outcome = run(honest, kind, rate, folder / f"run-{kind}-{name}")
        row[f"perplexity_{name}"] = outcome.perplexity
        row[f"ends_{name}"] = outcome.ends
    return row


def counted(kind: str, fraction: float, seeds: int, processes: int) -> Row:
    """Simulated runs of one kind and fraction."""
    tasks = [(kind, fraction, seed, seed % 2 == 1) for seed in range(1, seeds + 1)]
    if processes > 1:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(_simulate, tasks))
    else:
        found = [_simulate(task) for task in tasks]
    patient = [counts for counts, task in zip(found, tasks, strict=True) if task[3]]
    eager = [counts for counts, task in zip(found, tasks, strict=True) if not task[3]]
    row: Row = {
        "runs": len(found),
        "finished": sum(counts.finished for counts in found),
        "liars": sum(counts.liars for counts in found),
        "caught": sum(counts.caught for counts in found),
        "honest_quarantined": sum(counts.honest_quarantined for counts in found),
        "audit_share": _mean(counts.audit_share for counts in found),
        "audit_share_max": max(counts.audit_share for counts in found),
        "redone_share": _mean(counts.redone_share for counts in found),
        "suspected": sum(counts.suspected for counts in found),
        "waived": sum(counts.waived for counts in found),
        "lies_kept": sum(counts.lies_kept for counts in found),
    }
    for name, some in (("eager", eager), ("patient", patient)):
        lies = [number for counts in some for number in counts.lies_until_caught]
        hours = [number for counts in some for number in counts.hours_until_caught]
        row[f"lies_until_caught_{name}"] = _mean(lies)
        row[f"lies_until_caught_{name}_max"] = max(lies, default=None)
        row[f"hours_until_caught_{name}"] = _mean(hours)
    return row


def _simulate(task: tuple[str, float, int, bool]) -> Counts:
    kind, fraction, seed, patient = task
    return simulate(kind, fraction, seed, patient=patient)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return round(float(np.mean(found)), 4) if found else None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("perplexity", "counts"))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--fractions", default="0," + ",".join(map(str, FRACTIONS)))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--corpus", type=Path, help="of the real runs; 128 tokens a sequence")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    rows: list[Row] = []
    if arguments.only != "perplexity":
        fractions = [float(fraction) for fraction in arguments.fractions.split(",")]
        if 0.0 in fractions:
            found = counted("", 0.0, arguments.seeds, arguments.processes)
            rows.append({"kind": "honest", "fraction": 0.0} | found)
            say(str(rows[-1]))
        for kind in kinds:
            for fraction in filter(None, fractions):
                found = counted(kind, fraction, arguments.seeds, arguments.processes)
                rows.append({"kind": kind, "fraction": fraction} | found)
                say(str(rows[-1]))
    if arguments.only != "counts":
        for kind, row in perplexities(kinds, arguments.corpus, arguments.processes).items():
            place = (kind or "honest", REAL_FRACTION if kind else 0.0)
            known = next((r for r in rows if (r["kind"], r["fraction"]) == place), None)
            if known is None:
                known = {"kind": place[0], "fraction": place[1]}
                rows.append(known)
            known.update(row)
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(*(f"{name} {value}" for name, value in row.items()), sep="  ")


if __name__ == "__main__":
    main()
