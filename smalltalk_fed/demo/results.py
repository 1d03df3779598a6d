"""report.json: what the programs said, put together and set beside the formulas.

Rules: plain values with units last in their names; every figure is measured in this run,
and what is computed from a formula stands under `formulas_per_trained_token`. Domain labels
enter here for the first time: the run itself has never seen them. The names are stable.
"""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from smalltalk_fed import __version__
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.demo.stage import Findings, available_cores
from smalltalk_fed.demo.traffic import expert_parameters, traffic
from smalltalk_fed.mixture import agreement

FORMAT_VERSION = 1
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "grpcio", "safetensors")


def collect(findings: Findings, corpus_folder: Path, assignments: Path) -> dict[str, Any]:
    """The content of report.json."""
    corpus = TokenCorpus.open(corpus_folder)
    with np.load(assignments, allow_pickle=False) as arrays:
        divided = {name: arrays[name] for name in arrays.files}
    labels = corpus.train.labels
    names = list(corpus.label_names or [])
    evaluation, status = findings.evaluation, findings.status
    segments = _contingency(divided, "segment", labels, names, findings.config.run.experts)
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": findings.options.command,
        "preset": findings.options.preset,
        "seed": findings.options.seed,
        "versions": versions(),
        "machine": machine(),
        "mixture": {
            **evaluation["mixture"],
            "experts": findings.config.run.experts,
            "parameters_of_an_expert": expert_parameters(findings, corpus),
            "tokens": trained_tokens(findings),
        },
        "dense": {
            **(evaluation["dense"] or {}),
            "parameters": expert_parameters(findings, corpus),
            "tokens": findings.baseline.get("tokens"),
        },
        "ratio_suffix": evaluation["ratio_suffix"],
        "oracle_suffix_ppl": evaluation["oracle_suffix_ppl"],
        "random_suffix_ppl": evaluation["random_suffix_ppl"],
        "experts": _experts(findings, segments, names),
        "domains": _domains(findings, segments, names),
        "agreement": {
            "segments_nmi": _nmi(segments),
            "heldout_nmi": _nmi(np.array([d["experts"] for d in evaluation["domains"]])),
        },
        "rounds": _rounds(findings, divided, labels, names),
        "sharding": dict(status.get("shards") or {}),
        "curves": _curves(findings),
        "bytes": traffic(findings, corpus, trained_tokens(findings)),
        "seconds": _seconds(findings),
        "timeline": [
            {"name": name, "start_s": round(start, 2), "end_s": round(end, 2)}
            for name, start, end in findings.timeline
        ],
        "coordinator": dict(status.get("coordinator") or {}),
        "samples": findings.samples,
        "corpus": {
            "digest": corpus.digest,
            "vocabulary": corpus.manifest.vocabulary,
            "sequence_tokens": corpus.manifest.sequence_tokens,
            "train_sequences": len(corpus.train),
            "heldout_sequences": len(corpus.heldout),
            "domains": names,
        },
        "config": findings.config.model_dump(mode="json"),
        "config_toml": findings.config_toml,
        "run_id": status.get("run_id"),
    }
    return report


def versions() -> dict[str, str]:
    """Of the product, Python and the packages that the figures depend on."""
    found = {"smalltalk-fed": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the run was measured on."""
    processor = platform.processor() or platform.machine()
    memory_gb = None
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal"):
                memory_gb = round(int(line.split()[1]) * 1024 / 1e9, 1)
    except (OSError, ValueError, IndexError):
        pass  # another system than Linux: the names above must do
    return {
        "processor": processor,
        "cores": available_cores(),
        "memory_gb": memory_gb,
        "system": f"{platform.system()} {platform.machine()}",
    }


def trained_tokens(findings: Findings) -> int:
    """Tokens that all experts were trained on together."""
    done = findings.status.get("experts_done") or []
    return int(sum(row.get("tokens", 0) for row in done))


def _contingency(
    divided: dict[str, np.ndarray],
    prefix: str,
    labels: np.ndarray | None,
    names: list[str],
    experts: int,
) -> np.ndarray:
    """Sequences by domain and expert, [D, E]; empty without labels."""
    if labels is None or f"{prefix}_ids" not in divided:
        return np.zeros((0, experts), dtype=np.int64)
    ids, chosen = divided[f"{prefix}_ids"], divided[f"{prefix}_experts"]
    return agreement.contingency(labels[ids], chosen, len(names), experts)


def _nmi(table_DxE: np.ndarray) -> float | None:
    """Agreement of experts and domains in a contingency table."""
    if table_DxE.size == 0 or not table_DxE.sum():
        return None
    rows, columns = np.nonzero(table_DxE)
    counts = table_DxE[rows, columns]
    return agreement.nmi(np.repeat(rows, counts), np.repeat(columns, counts))


def _experts(findings: Findings, segments: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    trained = {row["expert"]: row for row in findings.status.get("experts_done") or []}
    node_names = {n["node_id"]: n["name"] for n in findings.status.get("nodes") or []}
    rows = []
    for heldout in findings.evaluation["experts"]:
        expert = heldout["expert"]
        done = trained.get(expert, {})
        domains = segments[:, expert].tolist() if len(segments) else []
        rows.append(
            {
                "expert": expert,
                "sequences": done.get("sequences"),
                "tokens": done.get("tokens"),
                "suffix_ppl": heldout["suffix_ppl"],
                "dense_suffix_ppl": heldout["dense_suffix_ppl"],
                "domains": {n: c for n, c in zip(names, domains, strict=False) if c},
                "heldout_sequences": heldout["sequences"],
                "heldout_domains": heldout["domains"],
                "node": node_names.get(done.get("node_id", ""), done.get("node_id")),
                "loss": done.get("loss_last"),
                "seconds": done.get("seconds"),
                "tokens_per_s": done.get("tokens_per_s"),
            }
        )
    return rows


def _domains(findings: Findings, segments: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    heldout = {row["domain"]: row for row in findings.evaluation["domains"]}
    rows = []
    for index, name in enumerate(names):
        counts = segments[index].tolist() if len(segments) else []
        total = sum(counts)
        here = heldout.get(name, {})
        rows.append(
            {
                "domain": name,
                "sequences": total,
                "experts": counts,
                "top_expert": int(np.argmax(counts)) if total else None,
                "top_share": max(counts) / total if total else None,
                "heldout_sequences": here.get("sequences", 0),
                "heldout_experts": here.get("experts", []),
                "suffix_ppl": here.get("suffix_ppl"),
                "dense_suffix_ppl": here.get("dense_suffix_ppl"),
            }
        )
    return rows


def _rounds(
    findings: Findings,
    divided: dict[str, np.ndarray],
    labels: np.ndarray | None,
    names: list[str],
) -> list[dict[str, Any]]:
    rows = []
    for row in findings.status.get("routing") or []:
        prefix = f"round_{row['round']:03d}"
        table = _contingency(divided, prefix, labels, names, findings.config.run.experts)
        rows.append(
            {
                "round": row["round"],
                "load": row["load"],
                "displaced_fraction": row["displaced_fraction"],
                "excess_nats": row["excess_nats"],
                "agreement": _nmi(table),
                "router_loss": row.get("router_loss"),
                "domains_by_expert": table.tolist(),
            }
        )
    return rows


def _curves(findings: Findings) -> dict[str, Any]:
    """(step, training loss) of each expert and of the dense model."""
    done = findings.status.get("experts_done") or []
    return {
        "experts": {str(row["expert"]): _curve(row) for row in done},
        "dense": [list(point) for point in findings.baseline.get("curve", [])],
    }


def _curve(figures: dict[str, Any]) -> list[list[float]]:
    """A training unit's figures `loss_at_<step>` as a curve."""
    prefix = "loss_at_"
    return sorted(
        [int(name.removeprefix(prefix)), value]
        for name, value in figures.items()
        if name.startswith(prefix)
    )


def _seconds(findings: Findings) -> dict[str, float]:
    seconds = {name: round(end - start, 2) for name, start, end in findings.timeline}
    seconds["total"] = round(max((end for _, _, end in findings.timeline), default=0.0), 2)
    return seconds
