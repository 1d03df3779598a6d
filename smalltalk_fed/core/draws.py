"""Chance that nobody but the coordinator foresees: which results are audited, and on what.

Rules: a keyed hash of the unit, the node and the result's digests, under a secret that never
leaves the coordinator; the same secret draws the same again, and what was drawn is journaled.
"""

from __future__ import annotations

import hashlib

from smalltalk_fed.core.units import BlobRef

_PERSON = b"smalltalk-audit"


def draw(
    secret: bytes, unit_id: str, node_id: str, outputs: tuple[BlobRef, ...]
) -> tuple[float, int]:
    """A number in [0, 1), and the audit's sample, a 63-bit number."""
    key = hashlib.sha256(secret).digest()
    text = "\n".join((unit_id, node_id, *(ref.digest for ref in outputs)))
    drawn = hashlib.blake2b(text.encode(), digest_size=16, key=key, person=_PERSON).digest()
    share = (int.from_bytes(drawn[:8], "big") >> 11) / (1 << 53)
    return share, int.from_bytes(drawn[8:], "big") >> 1
