"""What travelled, per node, kind and trained token, with the formulas beside it.

Rules: counted bytes are the coordinator's ledger's (messages and their frames); data is what
every node reads and did not travel here; formulas are of `mixture.costs` at this run's shape.
"""

from __future__ import annotations

from typing import Any

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.demo.stage import Findings
from smalltalk_fed.mixture import costs

COUNTED = ("coordination_up", "coordination_down", "weights_up", "weights_down")
FP32_BYTES = 4  # of a weight, as this product sends them


def traffic(findings: Findings, corpus: TokenCorpus, tokens: int) -> dict[str, Any]:
    """The report's `bytes`; `tokens`: what all experts were trained on together."""
    moved = findings.status.get("bytes") or {}
    rows = moved.get("rows") or []
    shards = [*corpus.manifest.train.shards, *corpus.manifest.heldout.shards]
    corpus_bytes = sum((corpus.folder / shard.file).stat().st_size for shard in shards)
    nodes = [
        {"node": node["name"], **_of_node(rows, node["node_id"]), "data": corpus_bytes}
        for node in findings.status.get("nodes") or []
    ]
    totals = {name: int(moved.get(name, 0)) for name in COUNTED}
    data = corpus_bytes * len(nodes)
    per_token = {name: value / tokens for name, value in totals.items()} if tokens else {}
    if tokens:
        per_token["coordination"] = per_token["coordination_up"] + per_token["coordination_down"]
        per_token["weights"] = per_token["weights_up"] + per_token["weights_down"]
        per_token["data"] = data / tokens
    return {
        **totals,
        "data": data,
        "trained_tokens": tokens,
        "per_node": nodes,
        "by_kind": _by_kind(rows),
        "per_trained_token": per_token,
        "formulas_per_trained_token": _formulas(findings, corpus, tokens),
    }


def _of_node(rows: list[dict[str, Any]], node_id: str) -> dict[str, int]:
    """One node's bytes by category and direction."""
    sums = dict.fromkeys(COUNTED, 0)
    for row in rows:
        key = f"{row['category']}_{row['direction']}"
        if row["node_id"] == node_id and key in sums:
            sums[key] += row["bytes"]
    return sums


def _by_kind(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Bytes and messages of all nodes by the ledger's kinds."""
    kinds: dict[str, dict[str, Any]] = {}
    for row in rows:
        new = {"category": row["category"], "up": 0, "down": 0, "messages": 0}
        kind = kinds.setdefault(row["kind"], new)
        kind[row["direction"]] += row["bytes"]
        kind["messages"] += row["messages"]
    return kinds


def _formulas(findings: Findings, corpus: TokenCorpus, tokens: int) -> dict[str, float]:
    """The method's byte formulas at this run's shape, per node and trained token."""
    config = findings.config
    weights = expert_parameters(findings, corpus)
    batch, length = config.expert.batch_sequences, config.sequence.length
    experts = config.run.experts
    router = config.router.model.parameters(corpus.manifest.vocabulary)
    per_node = max(1, tokens // max(1, findings.options.nodes))
    return {
        "ddp_fp32": costs.ddp_bytes_per_token(weights, batch, length),
        "diloco_fp32": costs.diloco_bytes_per_token(weights, batch, length),
        "diloco_int8": costs.diloco_bytes_per_token(weights, batch, length, bytes_per_weight=1),
        "routers_up": FP32_BYTES * router * experts * config.router.rounds / max(1, tokens),
        "smalltalk_scores": costs.scores_bytes_per_token(experts, length),
        "smalltalk_broadcast": costs.broadcast_bytes_per_token(
            experts, router, per_node, length, FP32_BYTES
        ),
    }


def expert_parameters(findings: Findings, corpus: TokenCorpus) -> int:
    """Parameters of one expert, and of the dense model."""
    return findings.config.expert.model.parameters(corpus.manifest.vocabulary)
