"""Blobs that are gone from the disk, and those that must be: what a host looks for.

Rules: what the run needs and is not there is the core's matter (`blob_damaged`), told once a
loss; what was withdrawn goes, also if the process before died right after it was journaled.
"""

from __future__ import annotations

from smalltalk_fed.core.retention import needed_blobs, withdrawn_blobs
from smalltalk_fed.core.state import HardState
from smalltalk_fed.host.blobs import BlobStore
from smalltalk_fed.host.inbound import LostBlob


def settle(state: HardState, blobs: BlobStore) -> list[str]:
    """Drop what was withdrawn; digests of what the run needs and went while nobody served."""
    needed = needed_blobs(state)
    for digest in withdrawn_blobs(state):
        if digest not in needed:
            blobs.drop(digest)
    return list(blobs.lost(needed.values()))


def is_news(state: HardState, blobs: BlobStore, lost: LostBlob) -> bool:
    """Whether a loss is still to be made good: else the remedy is under way or done."""
    here = lost.digest not in needed_blobs(state) or blobs.has(lost.digest)
    return lost.by_job or not here
