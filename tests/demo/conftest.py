"""A made-up run: a tiny labelled corpus, who got what, and what the programs would say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from smalltalk_fed.config.loading import load_config
from smalltalk_fed.data.prepare import PrepareOptions, prepare
from smalltalk_fed.demo import recipe
from smalltalk_fed.demo.stage import DemoOptions, Findings

EXPERTS, ROUNDS, LENGTH = 3, 5, 16
KINDS = {
    "numbers": "one two three four five six seven eight nine ten eleven twelve thirteen ",
    "colours": "red green blue yellow white black orange violet brown grey pink cyan magenta ",
    "animals": "<b>cat</b> & dog horse cow sheep goat mouse bird fish frog snake bear wolf fox ",
}


@pytest.fixture(scope="session")
def labelled_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds of text, labelled."""
    folder = tmp_path_factory.mktemp("made-up")
    lines = []
    for kind, words in KINDS.items():
        for number in range(12):
            split = "validation" if number < 3 else "train"
            lines.append({"text": f"{kind} {number}: {words * 4}", "domain": kind, "split": split})
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare(
        PrepareOptions(
            inputs=(source,),
            out=folder / "corpus",
            sequence_tokens=LENGTH,
            vocabulary=300,
            label_field="domain",
            split_field="split",
            workers=1,
        )
    )
    return folder / "corpus"


@pytest.fixture(scope="session")
def findings(labelled_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """What the programs would say of a run on that corpus."""
    settings = (
        f"sequence.length={LENGTH}",
        "sequence.prefix=6",
        f"router.rounds={ROUNDS}",
        "router.chunk_sequences=30",
    )
    options = DemoOptions(seed=3, experts=EXPERTS, nodes=2, settings=settings)
    text = recipe.run_toml("full", 3, EXPERTS, 2, settings)
    path = tmp_path_factory.mktemp("config") / "run.toml"
    path.write_text(text)
    found = Findings(options, load_config(path), text)
    found.status = _status()
    found.evaluation = _evaluation()
    found.baseline = {"tokens": 3000, "curve": [[1, 6.0], [10, 4.0]], "seconds": 2.0}
    found.samples = [
        {
            "domain": kind,
            "prompt": f"{kind} </pre><script>",
            "text": "more & more",
            "expert": index % EXPERTS,
            "scores": [-1.0, -2.0, -3.0],
            "prices": [0.0, 0.0, 0.0],
            "margin": 1.0,
            "why": "because",
        }
        for index, kind in enumerate(KINDS)
    ]
    phases = ("prepare", "enrol", "routing", "sharding", "training", "evaluating", "baseline")
    found.timeline = [(name, float(i), i + 1.5) for i, name in enumerate(phases)]
    return found


@pytest.fixture(scope="session")
def assignments(labelled_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rounds at random, then (segments) a perfect division but for one sequence."""
    manifest = json.loads((labelled_corpus / "corpus.json").read_bytes())
    count = sum(shard["sequences"] for shard in manifest["train"]["shards"])
    labels = np.fromfile(labelled_corpus / "train-labels.bin", dtype="<u2")
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for number in range(1, ROUNDS + 1):
        arrays[f"round_{number:03d}_ids"] = rng.permutation(count)[:30].astype(np.int64)
        arrays[f"round_{number:03d}_experts"] = np.repeat(np.arange(3, dtype=np.int16), 10)
    arrays["segment_ids"] = np.arange(count)
    arrays["segment_experts"] = labels.astype(np.int16)
    arrays["segment_experts"][0] = (labels[0] + 1) % EXPERTS
    path = tmp_path_factory.mktemp("assignments") / "assignments.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def _status() -> dict:
    rows = [
        {
            "node_id": f"n-{node}",
            "kind": kind,
            "direction": direction,
            "category": category,
            "messages": 4,
            "bytes": size,
        }
        for node in (1, 2)
        for kind, direction, category, size in (
            ("exchange", "up", "coordination", 400),
            ("parameters", "up", "coordination", 9000),
            ("ids", "down", "coordination", 700),
            ("weights", "up", "weights", 5000),
        )
    ]
    return {
        "run_id": "demo-12345678",
        "phase": "finished",
        "rounds": ROUNDS,
        "nodes": [{"node_id": f"n-{node}", "name": f"node-{node}"} for node in (1, 2)],
        "routing": [
            {
                "round": number,
                "load": [10, 10, 10],
                "displaced_fraction": 0.1 * (number > 1),
                "excess_nats": 0.5 * (number > 1),
                "router_loss": [5.0, 4.9, None],
            }
            for number in range(1, ROUNDS + 1)
        ],
        "shards": {"displaced_fraction": 0.05, "excess_nats": 0.2},
        "experts_done": [
            {
                "expert": expert,
                "node_id": f"n-{1 + expert % 2}",
                "sequences": 30,
                "tokens": 1000,
                "loss_last": 3.5,
                "seconds": 1.5,
                "tokens_per_s": 666.0,
                "loss_at_10": 3.5,
                "loss_at_1": 6.0,
            }
            for expert in range(EXPERTS)
        ],
        "bytes": {
            "coordination_up": 18800,
            "coordination_down": 1400,
            "weights_up": 10000,
            "weights_down": 0,
            "rows": rows,
        },
        "coordinator": {"cpu_s": 2.5, "workers_cpu_s": 0.5, "rss_peak_mb": 88.0},
    }


def _evaluation() -> dict:
    kinds = list(KINDS)
    return {
        "sequences": 30,
        "mixture": {"suffix_ppl": 9.0, "all_ppl": 10.0, "bits_per_byte": 1.8},
        "dense": {"suffix_ppl": 10.0, "all_ppl": 11.0, "bits_per_byte": 2.0},
        "ratio_suffix": 0.9,
        "oracle_suffix_ppl": 8.5,
        "random_suffix_ppl": 40.0,
        "experts": [
            {
                "expert": expert,
                "sequences": 10,
                "tokens": 160,
                "suffix_ppl": 9.0,
                "dense_suffix_ppl": 10.0,
                "domains": {kinds[expert]: 10},
            }
            for expert in range(EXPERTS)
        ],
        "domains": [
            {
                "domain": kind,
                "sequences": 10,
                "suffix_ppl": 8.0 + index,
                "dense_suffix_ppl": 9.0 + index,
                "experts": [10 * (expert == index) for expert in range(EXPERTS)],
            }
            for index, kind in enumerate(kinds)
        ],
    }
