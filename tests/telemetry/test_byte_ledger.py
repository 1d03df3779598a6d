"""The byte ledger: sums, names, and many threads at once."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.telemetry.ledger import FRAME_BYTES, Ledger, category_of, kind_of

entries = st.lists(
    st.tuples(
        st.sampled_from(["n-1", "n-2"]),
        st.sampled_from(["scores", "ids", "weights", "exchange", "text"]),
        st.sampled_from(["up", "down"]),
        st.integers(0, 10**12),
    ),
    max_size=30,
)


def filled(rows: list[tuple[str, str, str, int]]) -> Ledger:
    ledger = Ledger()
    for node_id, kind, direction, size in rows:
        ledger.message(node_id, kind, direction, size)  # type: ignore[arg-type]
    return ledger


@given(entries)
def test_nothing_is_lost_or_counted_twice(rows: list[tuple[str, str, str, int]]) -> None:
    ledger = filled(rows)
    total = sum(size + FRAME_BYTES for *_, size in rows)
    assert sum(ledger.totals().values()) == total
    assert sum(row.bytes for row in ledger.table()) == total
    assert sum(row.messages for row in ledger.table()) == len(rows)
    assert sum(sum(line.values()) for line in ledger.by_kind().values()) == total


@given(entries)
def test_ledger_survives_json(rows: list[tuple[str, str, str, int]]) -> None:
    ledger = filled(rows)
    text = json.dumps(ledger.to_json())
    assert Ledger.from_json(json.loads(text)).table() == ledger.table()


@given(entries, entries)
def test_merging_is_counting_both(
    one: list[tuple[str, str, str, int]], two: list[tuple[str, str, str, int]]
) -> None:
    merged = filled(one)
    merged.merge(filled(two).table())
    assert merged.table() == filled(one + two).table()


def test_many_threads_count_at_once() -> None:
    ledger = Ledger()
    threads = [
        threading.Thread(target=lambda: [ledger.count("n", "ids", "up", 1) for _ in range(2000)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.totals()["coordination_up"] == 16000


@pytest.mark.parametrize(
    ("name", "unit_id", "kind", "category"),
    [
        ("parameters", "router_round/0/1", "parameters", "coordination"),
        ("router-12", "shard/0", "parameters", "coordination"),
        ("scores", "", "scores", "coordination"),
        ("share", "", "ids", "coordination"),
        ("segment", "", "ids", "coordination"),
        ("experts", "", "experts", "coordination"),
        ("routed", "", "experts", "coordination"),
        ("weights", "train_expert/0", "weights", "weights"),
        ("weights", "train_seed", "seed", "weights"),
        ("seed", "train_expert/0", "seed", "weights"),
        ("config", "", "config", "weights"),
        ("Exchange", "", "exchange", "coordination"),
        ("text", "", "text", "data"),
        ("audit", "audit/1/shard/0", "audit", "coordination"),
        ("a name that a peer made up", "", "other", "coordination"),
    ],
)
def test_what_travels_has_a_line_and_a_category(
    name: str, unit_id: str, kind: str, category: str
) -> None:
    assert kind_of(name, unit_id) == kind
    assert category_of(kind) == category


def test_category_may_be_given() -> None:
    ledger = Ledger()
    ledger.count("n", "parameters", "down", 10, category="data")
    assert ledger.totals()["data_down"] == 10
