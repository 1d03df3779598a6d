"""How far apart honest results and lies are, by the figures that audits go by.

    python benchmarks/verdicts.py [--seed 1] [--experts 4] [--rounds 24] [--chunk 2560]
        [--liars 1] [--redo float32|bfloat16] [--domains python,scripture] [--steps 100]
        [--no-audits] [--corpus FOLDER] [--json]

Real rounds of the demo's recipe in one process (Algorithm 1), E routers, then E experts of
`--steps` steps. After every round each router is audited by real opinions, for which the round
is trained again with two threads and in the precision of `--redo`: how many of them would
doubt it without that, and how many would convict it by that. Every third round a twin of an
honest router is trained on as much text of the rest of the chunk instead of its share (`wrong`);
the first `--liars` routers are trained so in every round from the second on (`liar`), and go on
from there.
Every expert is audited in its own place and in every other's (a wrong-domain expert). Prints,
by round, the lead of the share's gain over the rest's in standard errors, gains on public text
and share, and what `plausibility` looks at; at the end how many honest results would be found
bad, and how many lies good. Six draws of the sample for each result.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pack_corpus import pack_corpus

from smalltalk_fed.config.manifest import RunManifest, make_manifest
from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.core.units import UnitKey, UnitKind
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.demo.recipe import run_toml
from smalltalk_fed.host.jobs import capacity
from smalltalk_fed.mixture.assignment import assign, random_assignment, route
from smalltalk_fed.mixture.audit import decode_opinion
from smalltalk_fed.mixture.permutation import chunk_ids, derive_key, shard_ids, training_order
from smalltalk_fed.mixture.plausibility import block_figures, odd_blocks
from smalltalk_fed.mixture.scores import decode_scores
from smalltalk_fed.mixture.verdict import Finding, expert_finding, router_finding
from smalltalk_fed.train.audit import Auditor
from smalltalk_fed.train.experts import train_expert
from smalltalk_fed.train.routers import build_router
from smalltalk_fed.train.scoring import score
from smalltalk_fed.train.units import router_round

SAMPLE, POOL, DRAWS = 64, 384, 6  # opinions of many sequences, of which samples are taken
LIE_EVERY = 3


@dataclass
class Tally:
    """Findings of one kind of result: how many were found bad, and figures to look at."""

    count: int = 0
    bad: int = 0
    doubted: int = 0  # without training the round again
    faults: dict[str, int] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, finding: Finding, looked: Finding | None = None) -> None:
        """`looked`: what the opinion says of a router without the round trained again."""
        self.count += 1
        self.doubted += bool(looked and looked.doubt)
        self.bad += bool(finding.fault)
        if finding.fault:
            kind = " ".join(finding.fault.split()[:6])
            self.faults[kind] = self.faults.get(kind, 0) + 1
        for name, value in finding.figures.items():
            self.figures.setdefault(name, []).append(value)

    def summary(self) -> dict[str, object]:
        figures = {
            name: [round(float(np.quantile(values, q)), 4) for q in (0, 0.05, 0.5, 0.95, 1)]
            for name, values in self.figures.items()
        }
        counts = {"count": self.count, "bad": self.bad, "doubted": self.doubted}
        return {**counts, "faults": self.faults, "quantiles": figures}


def samples(parts: dict[str, np.ndarray], count: int) -> Iterator[dict[str, np.ndarray]]:
    """Opinions of `count` sequences each out of a large one."""
    for draw in range(DRAWS):
        yield {name: scores[draw * count : (draw + 1) * count] for name, scores in parts.items()}


class Rounds:
    """Algorithm 1 with audits of everything."""

    def __init__(
        self, manifest: RunManifest, corpus: TokenCorpus, audits: bool, keep: Path | None = None,
        liars: int = 0, redo: str = "float32",
    ) -> None:  # fmt: skip
        self.manifest, self.corpus, self.audits, self.keep = manifest, corpus, audits, keep
        compute = manifest.config.compute.model_copy(update={"threads": 2, "train_dtype": redo})
        config = manifest.config.model_copy(update={"compute": compute})
        self.elsewhere = manifest.model_copy(update={"config": config})
        self.honest, self.wrong, self.liar = Tally(), Tally(), Tally()
        self.liars, self.leads = liars, {}
        self.by_round: list[dict[str, object]] = []
        self.routers: list[bytes | None] = [None] * manifest.experts
        self.odd: list[str] = []

    def run(self) -> None:
        config, experts = self.manifest.config, self.manifest.experts
        chunk, seed = config.router.chunk_sequences, config.run.seed
        capacity_E = capacity(self.manifest, chunk)
        expert_N = random_assignment(chunk, capacity_E, derive_key(seed, "first-assignment"))
        for number in range(1, config.router.rounds + 1):
            ids = chunk_ids(seed, self.manifest.train_sequences, number - 1, chunk)
            row: dict[str, object] = {"round": number}
            results = []
            for e in range(experts):
                share, before = ids[expert_N == e], self.routers[e]
                rest = np.setdiff1d(ids, share)
                other = training_order(number, rest, min(len(share), len(rest)), "lie", e)
                lies = e < self.liars and number > 1
                text = np.sort(other) if lies else share
                result = router_round(self.manifest, self.corpus, e, number, before, text)
                results.append(result)
                tally, prefix = (self.liar, "liar ") if lies else (self.honest, "")
                self._audit(e, number, before, result.parameters, share, tally, row, prefix)
                if number % LIE_EVERY == 1 and self.audits and not lies:
                    lie = router_round(self.manifest, self.corpus, e, number, before, other)
                    self._audit(e, number, before, lie.parameters, share, self.wrong, row, "wrong ")
            self.routers = [result.parameters for result in results]
            blocks = [r.score_block for r in results if r.score_block is not None]
            if blocks:
                scores_NxE = np.stack([decode_scores(block, chunk) for block in blocks], axis=1)
                expert_N = assign(scores_NxE, capacity_E, config.assignment.method).expert_N
                self._plausible(scores_NxE, number, row)
            self.by_round.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)

    def _audit(
        self, expert: int, number: int, before: bytes | None, after: bytes, share: np.ndarray,
        tally: Tally, row: dict[str, object], prefix: str = "",
    ) -> None:  # fmt: skip
        if not self.audits:
            return
        target = UnitKey(UnitKind.ROUTER_ROUND, expert, number)
        auditor = Auditor(self.elsewhere, self.corpus, target, 1, redo=True)
        data = auditor.router_round(before, after, share)
        parts = decode_opinion(self.manifest, target, data, redo=True)
        peers = {e: lead for e, lead in self.leads.items() if e != expert}
        missing = []
        for opinion in samples(parts, SAMPLE):
            looked = {name: scores for name, scores in opinion.items() if "redo" not in name}
            said = opinion.get("next")
            finding = router_finding(self.manifest, opinion, said, peers)
            tally.add(finding, router_finding(self.manifest, looked, said, peers))
            missing.append(finding.figures.get("share_missing", 0.0))
        known = row.setdefault(f"{prefix}share missing", [])
        known.append(round(float(np.mean(missing)), 4))  # type: ignore[attr-defined]
        whole = router_finding(self.manifest, parts, None, {}).figures
        for name in ("share_lead", "redo_apart"):
            if name in whole:
                row.setdefault(prefix + name, []).append(round(whole[name], 4))  # type: ignore[attr-defined]
        if tally is self.honest and number > 1:
            self.leads[expert] = whole

    def _plausible(self, scores_NxE: np.ndarray, number: int, row: dict[str, object]) -> None:
        if self.keep:
            np.save(self.keep / f"scores-{number}.npy", scores_NxE)
        found = block_figures(scores_NxE)
        row["explained"] = round(float(found.explained_E.min()), 3)
        row["level"] = round(float(np.abs(found.level_E).max()), 3)
        row["spread"] = [round(float(v), 2) for v in (found.spread_E.min(), found.spread_E.max())]
        row["copy"] = round(float(found.copy_E.min()), 3)
        self.odd += [f"round {number} router {e}: {w}" for e, w in odd_blocks(scores_NxE).items()]


def experts_apart(rounds: Rounds, folder: Path) -> tuple[Tally, Tally]:
    """Train every expert; audit each in its own place, and in every other's."""
    manifest, corpus = rounds.manifest, rounds.corpus
    prefix, count = manifest.config.sequence.prefix, manifest.train_sequences
    routers = [parameters or b"" for parameters in rounds.routers]
    models = [build_router(manifest, e, parameters) for e, parameters in enumerate(routers)]
    ids = shard_ids(manifest.config.run.seed, count, 0, count)
    scores_NxE = score(models, corpus.train, ids, prefix, batch_sequences=64)
    expert_N = np.empty(count, np.int32)
    expert_N[ids] = assign(scores_NxE, capacity(manifest, count), "optimal").expert_N
    heldout = np.arange(manifest.heldout_sequences)
    routed_N = route(score(models, corpus.heldout, heldout, prefix, batch_sequences=64))
    honest, wrong = Tally(), Tally()
    weights = []
    for e in range(manifest.experts):
        path = folder / f"expert-{e}"
        weights.append(
            train_expert(manifest, corpus, e, np.flatnonzero(expert_N == e), None, path)[0]
        )
    for place in range(manifest.experts):
        for trained in range(manifest.experts):
            target = UnitKey(UnitKind.TRAIN_EXPERT, place)
            auditor = Auditor(manifest, corpus, target, 1)
            segment = np.flatnonzero(expert_N == place)
            data = auditor.expert(weights[trained], routers, segment, routed_N)
            parts = decode_opinion(manifest, target, data)
            for opinion in samples(parts, SAMPLE):
                tally = honest if place == trained else wrong
                tally.add(expert_finding(manifest, opinion, {}))
    return honest, wrong


def make(arguments: argparse.Namespace, corpus: TokenCorpus) -> RunManifest:
    """The demo's recipe with large opinions."""
    import tomllib

    text = run_toml(
        "full", arguments.seed, arguments.experts, 1,
        (f"router.rounds={arguments.rounds}", f"router.chunk_sequences={arguments.chunk}",
         f"expert.steps={arguments.steps or 1}", f"audit.sample_sequences={POOL}"),
    )  # fmt: skip
    config = RunConfig.model_validate(tomllib.loads(text))
    return make_manifest(config, corpus.manifest, "verdicts", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--chunk", type=int, default=2560)
    parser.add_argument("--liars", type=int, default=0, help="routers that always lie")
    parser.add_argument("--redo", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--no-audits", action="store_true", help="of routers: blocks only")
    parser.add_argument("--steps", type=int, default=100, help="of each expert; 0: no experts")
    parser.add_argument("--domains", default="", help="of the text pack, all by default")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for every round's scores, as .npy")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        domains = tuple(filter(None, arguments.domains.split(",")))
        corpus = (
            TokenCorpus.open(arguments.corpus)
            if arguments.corpus
            else pack_corpus(Path(place), domains=domains)
        )
        rounds = Rounds(
            make(arguments, corpus), corpus, not arguments.no_audits, arguments.keep,
            arguments.liars, arguments.redo,
        )  # fmt: skip
        rounds.run()
        report: dict[str, object] = {
            "rounds": rounds.by_round,
            "odd_blocks": rounds.odd,
            "router_honest": rounds.honest.summary(),
            "router_wrong_share": rounds.wrong.summary(),
            "router_always_wrong": rounds.liar.summary(),
        }
        if arguments.steps:
            honest, wrong = experts_apart(rounds, Path(place))
            report |= {"expert_honest": honest.summary(), "expert_wrong": wrong.summary()}
    if arguments.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name}:")
        for line in value if isinstance(value, list) else value.items():  # type: ignore[attr-defined]
            print("   ", line)


if __name__ == "__main__":
    main()
