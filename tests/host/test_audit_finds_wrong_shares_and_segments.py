"""The audit finds each thing that can be wrong with who got which sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.planted_run import ROUNDS, Planted, says

from smalltalk_fed.core import events as ev
from smalltalk_fed.host import audit_lists
from smalltalk_fed.host.audit import audit
from smalltalk_fed.mixture.idlists import decode_experts, encode_experts


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
