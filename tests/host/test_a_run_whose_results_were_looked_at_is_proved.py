"""The proof of a journal knows audits: who is out, what was taken back, what waited for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.local_run import finish_run, make_run_folder
from support.tiny_run import write_tiny_corpus

from smalltalk_fed.core import events as ev
from smalltalk_fed.host.audit import AuditReport, audit
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.journal import Journal


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, list[Any]]:
    """A run of two nodes that looked at each other's first results and experts."""
    folder = tmp_path_factory.mktemp("looked-at")
    corpus = write_tiny_corpus(folder / "corpus")
    run = make_run_folder(folder / "run", corpus, audit={"rate": 1.0})
    finish_run(run, corpus)
    journal = Journal(run.journal)
    events = list(journal.events())
    journal.close()
    return run, events


def proof_of(run: RunFolder, events: list[Any]) -> AuditReport:
    for path in run.path.glob("journal.sqlite*"):
        path.unlink()
    journal = Journal(run.journal)
    journal.append(events)
    journal.close()
    return audit(run)


def test_it_is_proved_with_its_opinions_and_their_signatures(
    finished: tuple[RunFolder, list[Any]],
) -> None:
    run, events = finished
    report = proof_of(run, events)
    assert report.proved, report.findings
    looked_at = 2 * 2 + 3 + 1 + 2  # routers' rounds, slices, the held-out text, experts
    assert report.counts["good"] == looked_at
    assert report.counts["signatures"] == report.counts["results"] == 2 * looked_at + 2


def without_verdict(events: list[Any], unit_id: str) -> list[Any]:
    """The journal as one that did not wait."""
    settled = (ev.AuditSettled,)
    return [e for e in events if not (isinstance(e, settled) and e.unit_id == unit_id)]


@pytest.mark.parametrize(
    ("unit_id", "where"),
    [
        ("router_round/1/1", "round 2"),
        ("router_round/0/2", "phase sharding"),
        ("shard/1", "segments"),
        ("train_expert/0", "phase evaluating"),
    ],
)
def test_what_did_not_wait_for_an_opinion_is_found(
    finished: tuple[RunFolder, list[Any]], unit_id: str, where: str
) -> None:
    run, events = finished
    report = proof_of(run, without_verdict(events, unit_id))
    found = [(f.check, f.where, f.what) for f in report.findings if f.check == "audits"]
    assert ("audits", where, f"it came while {unit_id} was looked at") in found


def test_what_falls_with_a_quarantined_node_counts_no_more(
    finished: tuple[RunFolder, list[Any]],
) -> None:
    run, events = finished
    place = next(i for i, e in enumerate(events) if isinstance(e, ev.RoundAssigned) and i > 9)
    worker = next(e.node_id for e in events if getattr(e, "unit_id", "") == "router_round/1/1")
    out = ev.NodeQuarantined(events[place].at, worker, "found out", ("router_round/1/1",))
    report = proof_of(run, [*events[:place], out, *events[place:]])
    said = [f.what for f in report.findings if f.check == "routers"]
    assert "it was divided before router_round/1/1 was done" in said


def test_the_secret_of_a_folder_stays_the_same_and_is_no_other_folder_s(tmp_path: Path) -> None:
    corpus = write_tiny_corpus(tmp_path / "corpus")
    one, two = (make_run_folder(tmp_path / name, corpus) for name in ("one", "two"))
    assert one.audit_secret() == RunFolder.open(one.path).audit_secret()
    assert one.audit_secret() != two.audit_secret()
    assert len(one.audit_secret()) == 32
    assert one.signing_key().secret_for("something else") != one.audit_secret()
