"""Small values and their bounds: what every message between the programs is made of.

Rules: `*_from_proto` trusts nothing: every text, count and number is bounded, texts can be
printed, digests have 32 bytes, unit ids parse, NaN and infinities are refused. Whole messages
are `convert`'s and `convert_admin`'s part. No I/O.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from smalltalk_fed.config.manifest import MAX_VOCABULARY
from smalltalk_fed.config.private import MAX_SEAT_EXPERTS
from smalltalk_fed.config.run import MAX_EXPERTS
from smalltalk_fed.core.units import BlobRef, Result, Unit, UnitKey
from smalltalk_fed.errors import Malformed, TooLarge, UserError, shown
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.token import check_address

MAX_REASON_CHARS = 500
MAX_NAME_CHARS = 64
MAX_SOFTWARE_CHARS = 200
MAX_FIGURES = 64
MAX_OUTPUTS = MAX_SEAT_EXPERTS + 8  # a silo's block brings a router for each of its experts
MAX_INPUTS = 2 * MAX_EXPERTS + 8  # every router, and every expert that is public
MAX_MANIFEST_BYTES = 1 << 20
MAX_RELEASED = 16
MAX_ADDRESSES = 16
MAX_PROMPT_TOKENS = 16_384  # 48 KiB on the wire with the largest usual vocabularies
MAX_ANSWER_TOKENS = 4096
MAX_INTEGER = 2**63 - 1
MAX_SECONDS = 1e12  # far after any time that a run will see

DIGEST_BYTES = 32
KEY_BYTES = 32
SIGNATURE_BYTES = 64


def digest_to_proto(digest: str) -> bytes:
    """64 hexadecimal digits to 32 bytes; `digest` is our own and right."""
    return bytes.fromhex(digest)


def digest_from_proto(data: bytes) -> str:
    """32 bytes to 64 hexadecimal digits. Raises Malformed on any other length."""
    if len(data) != DIGEST_BYTES:
        raise Malformed(f"a digest has {DIGEST_BYTES} bytes, this one {len(data)}")
    return data.hex()


def text(value: str, limit: int, what: str) -> str:
    """`value` if it has at most `limit` characters, all printable.

    Raises:
        TooLarge: it is longer.
        Malformed: it would write into a terminal or a log of ours.
    """
    if len(value) > limit:
        raise TooLarge(f"{what} has {len(value)} characters; at most {limit} are allowed")
    if not value.isprintable():
        raise Malformed(f"{what} has characters that can't be shown")
    return value


def number(value: float, what: str, least: float = -math.inf, most: float = math.inf) -> float:
    """`value` if it is finite and within `least..most`. Raises Malformed."""
    if not math.isfinite(value):
        raise Malformed(f"{what} is not a finite number")
    if not least <= value <= most:
        raise Malformed(f"{what} is {value:g}; it must be within {least:g} and {most:g}")
    return value


def integer(value: int, what: str) -> int:
    """`value` if it fits a signed 64-bit integer. Raises TooLarge."""
    if value > MAX_INTEGER:
        raise TooLarge(f"{what} is over {MAX_INTEGER}")
    return value


def unit_id_text(value: str) -> str:
    """`value` if it is a work unit's id. Raises Malformed or TooLarge."""
    return UnitKey.parse(text(value, MAX_NAME_CHARS, "a work unit's id")).unit_id


def expert_number(value: int) -> int:
    """`value` if a run may have such an expert. Raises Malformed."""
    if value >= MAX_EXPERTS:
        raise Malformed(f"no run has an expert {value}")
    return value


def token_ids(values: Sequence[int], limit: int, what: str) -> tuple[int, ...]:
    """`values` if they are at most `limit` and within any vocabulary.

    Raises:
        TooLarge, Malformed: they are not.
    """
    if len(values) > limit:
        raise TooLarge(f"{what} has {len(values)} tokens; at most {limit} are allowed")
    if any(value >= MAX_VOCABULARY for value in values):
        raise Malformed(f"{what} has a token beyond any vocabulary")
    return tuple(values)


def addresses(found: Sequence[str], what: str) -> tuple[str, ...]:
    """`found` if they are a few of the form host:port. Raises Malformed or TooLarge."""
    if len(found) > MAX_ADDRESSES:
        raise TooLarge(f"there are {len(found)} {what}; at most {MAX_ADDRESSES} are allowed")
    try:
        return tuple(check_address(address) for address in found)
    except UserError:
        raise Malformed(f"one of the {what} is not host:port") from None


def cut(reason: str) -> str:
    """Our own explanation, as the other end accepts it: short, and in one printable line."""
    return shown(" ".join(reason.split()), MAX_REASON_CHARS)


# ----------------------------------------------------------------------- blobs and figures


def blob_to_proto(ref: BlobRef) -> pb.BlobRef:
    """A blob's name, digest and size."""
    return pb.BlobRef(name=ref.name, digest=digest_to_proto(ref.digest), size=ref.size)


def blob_from_proto(ref: pb.BlobRef) -> BlobRef:
    """Raises Malformed or TooLarge."""
    if not ref.name:
        raise Malformed("a blob has no name")
    return BlobRef(
        text(ref.name, MAX_NAME_CHARS, "a blob's name"),
        digest_from_proto(ref.digest),
        integer(ref.size, "a blob's size"),
    )


def _blobs(refs: Sequence[pb.BlobRef], limit: int, what: str) -> tuple[BlobRef, ...]:
    if len(refs) > limit:
        raise TooLarge(f"{what} names {len(refs)} blobs; at most {limit} are allowed")
    found = tuple(blob_from_proto(ref) for ref in refs)
    if len({ref.name for ref in found}) != len(refs):
        raise Malformed(f"{what} names a blob twice")
    return found


def figures_to_proto(figures: dict[str, float]) -> list[pb.Figure]:
    """Figures in the order of their names."""
    return [pb.Figure(name=name, value=value) for name, value in sorted(figures.items())]


def figures_from_proto(figures: Sequence[pb.Figure]) -> dict[str, float]:
    """Raises Malformed or TooLarge."""
    if len(figures) > MAX_FIGURES:
        raise TooLarge(f"there are {len(figures)} figures; at most {MAX_FIGURES} are allowed")
    found = {
        text(figure.name, MAX_NAME_CHARS, "a figure's name"): number(
            figure.value, f"the figure '{shown(figure.name)}'"
        )
        for figure in figures
    }
    if len(found) != len(figures) or "" in found:
        raise Malformed("a figure has no name, or a name comes twice")
    return found


def unit_to_proto(unit: Unit) -> pb.Unit:
    """A work unit and its inputs."""
    return pb.Unit(
        unit_id=unit.unit_id,
        inputs=[blob_to_proto(ref) for ref in unit.inputs],
        start_step=unit.start_step,
        weights=unit.weights,
        sample=unit.sample,
        prices=unit.prices,
        redo=unit.redo,
        withdrawn=unit.withdrawn,
    )


def unit_from_proto(unit: pb.Unit) -> Unit:
    """Raises Malformed or TooLarge."""
    key = UnitKey.parse(unit_id_text(unit.unit_id))
    if len(unit.weights) > MAX_EXPERTS:
        raise TooLarge(f"a work unit has {len(unit.weights)} shares; at most {MAX_EXPERTS} can be")
    weights = tuple(number(weight, "an expert's share", 0.0) for weight in unit.weights)
    inputs = _blobs(unit.inputs, MAX_INPUTS, "a work unit")
    start_step = integer(unit.start_step, "the first step")
    sample = integer(unit.sample, "the audit's sample")
    if len(unit.prices) > MAX_EXPERTS:
        raise TooLarge(f"a work unit has {len(unit.prices)} prices; at most {MAX_EXPERTS} can be")
    prices = tuple(number(price, "an expert's price") for price in unit.prices)
    withdrawn = tuple(unit.withdrawn)
    if any(expert >= MAX_EXPERTS for expert in withdrawn) or len(set(withdrawn)) < len(withdrawn):
        raise Malformed("a work unit names experts that have left which can't be, or one twice")
    return Unit(key, inputs, start_step, weights, sample, prices, unit.redo, withdrawn)


def result_to_proto(result: Result) -> pb.Result:
    """A finished unit."""
    return pb.Result(
        unit_id=result.unit_id,
        outputs=[blob_to_proto(ref) for ref in result.outputs],
        figures=figures_to_proto(result.figures),
        signature=result.signature,
    )


def result_from_proto(result: pb.Result) -> Result:
    """Raises Malformed or TooLarge. Whether the signature is right is `signing`'s part."""
    if len(result.signature) not in (0, SIGNATURE_BYTES):
        raise Malformed(f"a signature has {SIGNATURE_BYTES} bytes, not {len(result.signature)}")
    return Result(
        unit_id_text(result.unit_id),
        _blobs(result.outputs, MAX_OUTPUTS, "a result"),
        figures_from_proto(result.figures),
        result.signature,
    )
