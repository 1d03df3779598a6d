"""The audit of a run folder: passes over a real run, and finds each thing that can be wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from smalltalk_coordinator.cli import app
from support.local_run import finish_run, make_run_folder
from support.tiny_run import tiny_manifest, write_tiny_corpus
from support.tiny_units import signed_result
from typer.testing import CliRunner

from smalltalk_fed.core import events as ev
from smalltalk_fed.core import handout
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import BlobRef, UnitKey
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.host import audit_lists
from smalltalk_fed.host.audit import AuditReport, audit
from smalltalk_fed.host.audit_experts import steps_of
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.journal import Journal
from smalltalk_fed.mixture.idlists import decode_experts, decode_ids, encode_experts, encode_ids
from smalltalk_fed.wire.signing import SigningKey

ROUNDS = 4  # of 40 sequences out of 96: the third begins a second pass
E = TypeVar("E", bound=ev.Event)


@dataclass
class Planted:
    """A copy of a finished run, to be changed."""

    folder: RunFolder
    keys: dict[str, SigningKey]
    corpus: Path

    def __post_init__(self) -> None:
        journal = Journal(self.folder.journal)
        self.events: list[Any] = list(journal.events())
        journal.close()
        self.blobs = BlobStore(self.folder.blobs)

    def find(self, kind: type[E], **fields: object) -> tuple[int, E]:
        """Place and event of the first that has these fields."""
        for place, event in enumerate(self.events):
            if isinstance(event, kind) and all(getattr(event, k) == v for k, v in fields.items()):
                return place, event
        raise AssertionError(f"no {kind.__name__} with {fields}")

    def change(self, place: int, **fields: object) -> None:
        """Give an event other fields."""
        self.events[place] = replace(self.events[place], **fields)

    def ids(self, ref: BlobRef) -> np.ndarray:
        """An id list's ids."""
        return decode_ids(self.blobs.get(ref.digest))

    def put_ids(self, name: str, ids: np.ndarray) -> BlobRef:
        """Store an id list."""
        return self.blobs.put(name, encode_ids(ids))

    def with_share(self, round_: int, expert: int, change: Callable[[np.ndarray], Any]) -> None:
        """Change one share of a round."""
        place, event = self.find(ev.RoundAssigned, round=round_)
        shares = list(event.shares)
        shares[expert] = self.put_ids("share", change(self.ids(shares[expert])))
        self.change(place, shares=tuple(shares))

    def with_segment(self, expert: int, change: Callable[[np.ndarray], Any]) -> None:
        """Change one segment, and what is said of its length."""
        place, event = self.find(ev.SegmentsMade)
        segments = list(event.segments)
        ids = change(self.ids(segments[expert]))
        segments[expert] = self.put_ids("segment", ids)
        figures = event.figures | {f"load_{expert}": float(len(ids))}
        self.change(place, segments=tuple(segments), figures=figures)

    def sign(self, place: int) -> None:
        """Let the node of a result sign it as it is now."""
        event, state = self.events[place], HardState(self.folder.manifest)
        for before in self.events[:place]:
            state.apply(before)
        unit = handout.unit(
            state, UnitKey.parse(event.unit_id), int(event.figures.get("from_step", 0))
        )
        result = signed_result(
            self.keys[event.node_id],
            self.folder.manifest.run_id,
            event.node_id,
            unit,
            event.outputs,
            event.figures,
            event.incarnation,
        )
        self.change(place, signature=result.signature.hex())

    def collect(self, before: int, step: int, from_step: int, node_id: str) -> None:
        """Insert the collected weights of expert 0 before an event."""
        weights = self.blobs.put("weights", f"expert 0 at {step}".encode())
        figures = {"step": float(step), "from_step": float(from_step)}
        event = ev.WeightsCollected(
            1.0, "train_expert/0", node_id, 1, step, from_step, (weights,), figures, ""
        )
        self.events.insert(before, event)
        self.sign(before)

    def audit(self) -> AuditReport:
        """The verdict over the journal as it is now."""
        for path in self.folder.path.glob("journal.sqlite*"):
            path.unlink()
        journal = Journal(self.folder.journal)
        journal.append(self.events)
        journal.close()
        return audit(self.folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, SigningKey]]:
    folder = tmp_path_factory.mktemp("audited")
    corpus = write_tiny_corpus(folder / "corpus")
    run = make_run_folder(folder / "run", corpus, router={"rounds": ROUNDS}, audit={"rate": 0})
    return run, finish_run(run, corpus)


@pytest.fixture
def planted(finished: tuple[RunFolder, dict[str, SigningKey]], tmp_path: Path) -> Planted:
    folder, keys = finished
    shutil.copytree(folder.path, tmp_path / "run")
    return Planted(RunFolder.open(tmp_path / "run"), keys, folder.path.parent / "corpus")


def says(report: AuditReport, check: str, what: str) -> bool:
    """Whether a finding of this check says so."""
    return any(f.check == check and what in f"{f.where}: {f.what}" for f in report.findings)


# ------------------------------------------------------------------------- what is right


def test_a_finished_run_is_proved(planted: Planted) -> None:
    report = audit(planted.folder)
    assert report.proved, report.findings
    assert report.counts["rounds"] == ROUNDS
    assert report.counts["sequences"] == 40 * ROUNDS
    assert (report.passes_whole, report.pass_sequences) == (1, 40 * ROUNDS - 96)
    assert report.counts["signatures"] == report.counts["results"] == 2 * ROUNDS + 4 + 2 + 2
    assert report.counts["segments"] == report.counts["experts"] == 2


def test_every_beginning_of_the_journal_is_proved(planted: Planted) -> None:
    whole = planted.events
    for length in range(len(whole)):
        planted.events = whole[:length]
        for event in whole[length:]:  # a run that is not so far has none of these yet
            for ref in getattr(event, "outputs", ()):
                if ref.name == "weights":
                    planted.blobs.drop(ref.digest)
        report = planted.audit()
        unexpected = [f for f in report.findings if "is needed and gone" not in f.what]
        assert not unexpected, (length, unexpected)


def test_what_was_released_is_named_and_not_wrong(planted: Planted) -> None:
    report = audit(planted.folder)
    assert report.blobs_not_kept == {"parameters": 2, "scores": 2 * (ROUNDS - 2)}


def test_a_router_that_was_taken_back_and_done_again_is_proved(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="router_round/1/2")
    planted.events.insert(place + 1, ev.UnitRejected(event.at, event.unit_id, "not finite"))
    planted.events.insert(place + 2, event)
    report = planted.audit()
    assert report.proved, report.findings
    assert report.counts["taken_back"] == 1


def test_lists_that_were_lost_and_made_again_are_proved(planted: Planted) -> None:
    for kind, fields in ((ev.RoundAssigned, {"round": 2}), (ev.SegmentsMade, {})):
        place, event = planted.find(kind, **fields)
        lost = ev.BlobLost(event.at, "0" * 64, "", fields.get("round", 0), "it is damaged")
        planted.events[place + 1 : place + 1] = [lost, event]
    report = planted.audit()
    assert report.proved, report.findings


def test_an_expert_that_was_taken_over_twice_is_proved(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="train_expert/0")
    other = next(node for node in planted.keys if node != event.node_id)
    planted.collect(place, 1, 0, other)
    planted.collect(place + 1, 3, 1, event.node_id)
    planted.change(place + 2, figures=event.figures | {"from_step": 3.0})
    planted.sign(place + 2)
    report = planted.audit()
    assert report.proved, report.findings
    assert report.counts["collected"] == 2


# ------------------------------------------------------------------- shares and segments


@pytest.mark.parametrize(
    ("change", "says_what"),
    [
        (lambda ids: [*ids, ids[0]], "is in shares twice (of expert 0)"),
        (lambda ids: ids[1:], "is in no share"),
        (lambda ids: [*ids[1:], 95 if 95 not in ids else 94], ""),
    ],
)
def test_a_share_with_a_sequence_too_many_or_too_few(
    planted: Planted, change: Callable[[np.ndarray], Any], says_what: str
) -> None:
    planted.with_share(2, 0, change)
    report = planted.audit()
    assert says(report, "shares", "round 2: sequence ")
    assert says(report, "shares", says_what)


def test_a_share_of_another_round(planted: Planted) -> None:
    places = [planted.find(ev.RoundAssigned, round=number)[0] for number in (1, 2)]
    one, two = (planted.events[place].shares for place in places)
    planted.change(places[0], shares=two)
    planted.change(places[1], shares=one)
    assert says(planted.audit(), "shares", "but not in the chunk of round 1")


def test_the_same_sequence_in_two_shares(planted: Planted) -> None:
    _, event = planted.find(ev.RoundAssigned, round=1)
    theirs = planted.ids(event.shares[1])
    planted.with_share(1, 0, lambda ids: [*ids[1:], theirs[0]])
    assert says(planted.audit(), "shares", f"sequence {theirs[0]} is in shares twice (of expert 0")


def test_a_permutation_that_comes_back_too_early(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever computes the chunks must be right, too: passes are counted sequence by sequence."""

    def chunk(manifest: object, round_: int) -> np.ndarray:
        return np.arange(40) + 40 * (round_ % 2)

    monkeypatch.setattr(audit_lists, "chunk", chunk)
    for number in range(1, ROUNDS + 1):
        for share in (0, 1):
            planted.with_share(
                number, share, lambda ids, n=number, s=share: chunk(None, n)[s * 20 : s * 20 + 20]
            )
    assert says(planted.audit(), "shares", "a sequence of round 3 was used before in pass 1")


def test_a_list_that_is_damaged_and_one_that_is_gone(planted: Planted) -> None:
    _, event = planted.find(ev.RoundAssigned, round=3)
    path = planted.blobs.path(event.shares[0].digest)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    report = audit(planted.folder)
    assert says(report, "blobs", "its bytes are not those of its name")
    assert says(report, "shares", "round 3: a list can't be used")
    path.unlink()
    assert says(audit(planted.folder), "shares", "round 3: a list can't be used")


def test_a_blob_that_the_run_needs_is_gone(planted: Planted) -> None:
    _, event = planted.find(ev.UnitAccepted, unit_id="train_expert/1")
    planted.blobs.drop(event.outputs[-1].digest)
    report = audit(planted.folder)
    assert says(report, "blobs", "it is needed and gone")
    assert report.blobs_not_kept["weights"] == 1


@pytest.mark.parametrize(
    ("change", "says_what"),
    [
        (lambda ids: ids[1:], "is in no segment"),
        (lambda ids: np.sort([*ids, ids[0]]), "is twice or out of order in segment 0"),
        (lambda ids: np.sort([*ids, min(set(range(96)) - set(ids))]), "is in segments 0 and 1"),
    ],
)
def test_a_segment_with_a_sequence_too_many_or_too_few(
    planted: Planted, change: Callable[[np.ndarray], Any], says_what: str
) -> None:
    planted.with_segment(0, change)
    assert says(planted.audit(), "segments", says_what)


def test_segments_that_are_not_what_the_slices_said(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="shard/1")
    said = decode_experts(planted.blobs.get(event.outputs[0].digest), 32, 2)
    turned = planted.blobs.put("experts", encode_experts(1 - said, 2))
    planted.change(place, outputs=(turned,))
    assert says(planted.audit(), "segments", ", shard/1 said ")


def test_a_slice_whose_list_is_damaged(planted: Planted) -> None:
    _, event = planted.find(ev.UnitAccepted, unit_id="shard/0")
    planted.blobs.path(event.outputs[0].digest).write_bytes(b"damaged")
    assert says(audit(planted.folder), "segments", "shard/0: its list can't be used")


def test_segments_that_came_too_early_or_again(planted: Planted) -> None:
    place, event = planted.find(ev.SegmentsMade)
    planted.events.insert(place + 1, event)
    assert says(planted.audit(), "segments", "segments: they were made twice")
    lost = ev.BlobLost(event.at, "0" * 64, "", 0, "it is damaged")
    other = replace(event, segments=event.segments[::-1])
    planted.events[place + 1 : place + 2] = [lost, other]
    assert says(planted.audit(), "segments", "segments: they were made again, and differently")
    planted.events[place + 1 : place + 3] = []
    early, _ = planted.find(ev.UnitAccepted, unit_id="shard/1")
    planted.events.insert(early, planted.events.pop(place))
    assert says(planted.audit(), "segments", "they were made before shard/1 was done")


def test_segments_that_are_not_as_long_as_said(planted: Planted) -> None:
    place, event = planted.find(ev.SegmentsMade)
    planted.change(place, figures=event.figures | {"load_1": 7.0})
    assert says(planted.audit(), "segments", "not as long as said")


# ------------------------------------------------------------------------ rounds and routers


def test_a_result_that_is_accepted_twice(planted: Planted) -> None:
    for unit_id, check in (("router_round/0/2", "routers"), ("train_expert/1", "experts")):
        place, event = planted.find(ev.UnitAccepted, unit_id=unit_id)
        planted.events.insert(place + 1, event)
        assert says(planted.audit(), check, f"{unit_id}: it was accepted twice")


def test_a_round_that_a_router_did_not_do(planted: Planted) -> None:
    place, _ = planted.find(ev.UnitAccepted, unit_id="router_round/1/2")
    del planted.events[place]
    report = planted.audit()
    assert says(report, "routers", "round 3: it was divided before router_round/1/2 was done")
    assert says(report, "routers", "router_round/1/3: it was accepted, though router_round/1/2")


def test_a_result_that_comes_in_another_round(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="router_round/1/2")
    del planted.events[place]
    later, _ = planted.find(ev.RoundAssigned, round=3)
    planted.events.insert(later + 1, event)
    assert says(planted.audit(), "routers", "router_round/1/2: it was accepted in round 3")


def test_a_slice_that_was_divided_before_the_routers_were_done(planted: Planted) -> None:
    place, _ = planted.find(ev.UnitAccepted, unit_id=f"router_round/1/{ROUNDS}")
    del planted.events[place]
    report = planted.audit()
    what = f"shard/0: it was accepted, though router_round/1/{ROUNDS} does not count"
    assert says(report, "segments", what)
    assert says(report, "routers", "phase sharding: it began before router_round/1/")


def test_outputs_that_such_a_unit_does_not_have(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="router_round/1/1")
    planted.change(place, outputs=event.outputs[:1])
    assert says(planted.audit(), "routers", "its outputs are not those of such a unit")


def test_a_round_that_was_left_out(planted: Planted) -> None:
    place, _ = planted.find(ev.RoundAssigned, round=2)
    del planted.events[place]
    assert says(planted.audit(), "routers", "round 3: it was divided after round 1")


def test_a_division_that_came_back_otherwise(planted: Planted) -> None:
    place, event = planted.find(ev.RoundAssigned, round=2)
    lost = ev.BlobLost(event.at, "0" * 64, "", 2, "it is damaged")
    other = replace(event, shares=event.shares[::-1])
    planted.events[place + 1 : place + 1] = [lost, other]
    assert says(planted.audit(), "routers", "round 2: it was divided again, and differently")


def test_a_router_that_others_built_on_was_replaced(planted: Planted) -> None:
    """The division of round 3 was lost, then a router of round 2, which came back otherwise."""
    place, after = planted.find(ev.UnitAccepted, unit_id="router_round/0/3")
    _, event = planted.find(ev.UnitAccepted, unit_id="router_round/0/2")
    _, divided = planted.find(ev.RoundAssigned, round=3)
    parameters = replace(after.outputs[0], name="parameters")
    planted.events[place + 1 : place + 1] = [
        ev.BlobLost(event.at, "0" * 64, "", 3, "it is damaged"),
        ev.BlobLost(event.at, "0" * 64, event.unit_id, 0, "it is damaged"),
        replace(event, outputs=(parameters, *event.outputs[1:])),
        divided,
    ]
    assert says(planted.audit(), "routers", "it is not the one any more that router_round/0/3")


# ------------------------------------------------------------------------------- experts


def expert(planted: Planted, **figures: float) -> None:
    """Let expert 0 have been trained otherwise, and signed so."""
    place, event = planted.find(ev.UnitAccepted, unit_id="train_expert/0")
    planted.change(place, figures=event.figures | figures)
    try:
        planted.sign(place)
    except KeyError:  # from a state that nobody ever had
        planted.change(place, signature="00")


def test_a_gap_in_an_experts_steps(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="train_expert/0")
    planted.collect(place, 1, 0, event.node_id)
    expert(planted, from_step=2.0)
    assert says(planted.audit(), "experts", "begins at step 2, where no collected state ends")


def test_an_expert_that_stopped_early_or_went_nowhere(planted: Planted) -> None:
    expert(planted, steps=3.0)
    assert says(planted.audit(), "experts", "trained up to step 3 instead of 4")
    expert(planted, steps=0.0)
    assert says(planted.audit(), "experts", "a part goes from step 0 to 0")


def test_collected_states_out_of_order_or_signed_as_another(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="train_expert/0")
    planted.collect(place, 3, 0, event.node_id)
    planted.collect(place + 1, 2, 0, event.node_id)
    planted.change(place, step=1)
    report = planted.audit()
    assert says(report, "experts", "the state at step 1 is signed as another")
    planted.change(place, step=3)
    assert says(planted.audit(), "experts", "step 2 was collected after step 3")
    planted.events[place : place + 2] = []
    planted.collect(place + 1, 1, 0, event.node_id)
    assert says(planted.audit(), "experts", "weights were collected after it was done")


@pytest.mark.parametrize("init", ["fresh", "seed"])
@pytest.mark.parametrize("capacity", ["equal", [3.0, 1.0]])
def test_the_steps_that_are_asked_of_an_expert_are_those_that_it_takes(
    planted: Planted, init: str, capacity: object
) -> None:
    import torch

    from smalltalk_fed.train.expert_plans import expert_plan

    corpus = TokenCorpus.open(planted.corpus)
    changes = {"expert": {"init": init, "steps": 30}, "assignment": {"capacity": capacity}}
    manifest = tiny_manifest(corpus, **changes)
    for sequences in (72, 24):
        plan = expert_plan(manifest, torch.device("cpu"), sequences, seeded=init == "seed")
        assert steps_of(manifest, sequences) == plan.steps


def test_an_expert_that_was_trained_before_there_were_segments(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="train_expert/0")
    del planted.events[place]
    planted.events.insert(planted.find(ev.SegmentsMade)[0], event)
    assert says(planted.audit(), "experts", "while there were no segments")


def test_a_phase_that_began_too_early(planted: Planted) -> None:
    place, _ = planted.find(ev.UnitAccepted, unit_id="train_expert/0")
    del planted.events[place]
    assert says(planted.audit(), "experts", "it began before train_expert/0 was done")


# ---------------------------------------------------------------------------- signatures


@pytest.mark.parametrize("unit_id", ["router_round/0/2", "shard/0", "train_expert/1", "evaluate/0"])
def test_a_bad_signature(planted: Planted, unit_id: str) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id=unit_id)
    flipped = bytes([int(event.signature[:2], 16) ^ 1]).hex()
    planted.change(place, signature=flipped + event.signature[2:])
    report = planted.audit()
    assert [f.where for f in report.findings] == [unit_id]
    assert says(report, "signatures", f"node {event.node_id} did not sign it")


def test_a_result_that_is_counted_for_another_node(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="router_round/0/1")
    other = next(node for node in planted.keys if node != event.node_id)
    planted.change(place, node_id=other)
    assert says(planted.audit(), "signatures", f"node {other} did not sign it")
    planted.change(place, node_id="n-nobody")
    assert says(planted.audit(), "signatures", "node n-nobody did not sign it")


def test_figures_and_inputs_are_part_of_what_is_signed(planted: Planted) -> None:
    place, event = planted.find(ev.UnitAccepted, unit_id="evaluate/1")
    planted.change(place, figures=event.figures | {"suffix_nll": 0.0})
    assert says(planted.audit(), "signatures", "evaluate/1")
    planted.change(place, figures=event.figures)
    place, _ = planted.find(ev.RoundAssigned, round=1)
    planted.change(place, shares=planted.events[place].shares[::-1])
    assert says(planted.audit(), "signatures", "router_round/0/1")


# ------------------------------------------------------------------------------ the folder


def test_events_that_make_no_sense_are_a_finding(planted: Planted) -> None:
    planted.events.insert(0, ev.NodeJoined(1.0, "n-nobody", "00"))
    assert says(planted.audit(), "journal", "event 1: it does not follow")


def state_of(folder: Path) -> dict[str, str]:
    """Digest of every file with something in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {
        name: hashlib.sha256(data).hexdigest()
        for name, data in contents.items()
        if data and not name.endswith("-shm")  # who reads is noted there
    }


def test_it_changes_nothing_and_waits_for_nobody(planted: Planted) -> None:
    with planted.folder.locked():  # somebody serves it
        journal = Journal(planted.folder.journal)
        journal.append([ev.InviteMade(2.0, "0" * 64, 3.0, 1, "")])
        before = state_of(planted.folder.path)
        report = audit(planted.folder)
        assert report.proved
        assert report.events == len(planted.events) + 1
        assert state_of(planted.folder.path) == before
        journal.append([ev.InviteMade(2.0, "1" * 64, 3.0, 1, "")])
        journal.close()


def test_the_command_prints_a_table_and_one_line(planted: Planted) -> None:
    told = CliRunner().invoke(app, ["status", str(planted.folder.path), "--audit-data"])
    assert told.exit_code == 0, told.output
    assert "4 rounds: 1 whole passes and 64 sequences of one" in told.output
    assert "proved over" in told.output


def test_the_command_ends_with_1_and_one_sentence_when_it_finds_something(
    planted: Planted, capsys: pytest.CaptureFixture[str]
) -> None:
    from smalltalk_fed.telemetry.console import run_program

    planted.with_share(1, 0, lambda ids: ids[1:])
    planted.audit()
    arguments = ["status", str(planted.folder.path), "--audit-data"]
    assert run_program(app, "smalltalk-coordinator", [*arguments, "--json"]) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["proved"] is False
    assert report["wrong"]["shares"] == 1
    assert len(printed.err.strip().splitlines()) == 1
    assert "not proved: " in printed.err
    assert run_program(app, "smalltalk-coordinator", arguments) == 1
    assert "shares: round 1: sequence" in capsys.readouterr().out
