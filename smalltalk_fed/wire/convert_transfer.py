"""What the first part of an upload says, to protobuf and back; later parts are bytes alone.

Rules: those of `convert`.
"""

from __future__ import annotations

from dataclasses import dataclass

from smalltalk_fed.core.units import BlobRef
from smalltalk_fed.errors import Malformed
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.values import blob_from_proto, digest_to_proto, unit_id_text


@dataclass(frozen=True)
class Upload:
    """What the first part of an upload says of the whole."""

    ref: BlobRef
    unit_id: str
    offset: int


def upload_to_proto(upload: Upload, data: bytes) -> pb.BlobPart:
    """The first part; later ones carry only data."""
    return pb.BlobPart(
        digest=digest_to_proto(upload.ref.digest),
        size=upload.ref.size,
        offset=upload.offset,
        name=upload.ref.name,
        unit_id=upload.unit_id,
        data=data,
    )


def upload_from_proto(part: pb.BlobPart) -> Upload:
    """Raises Malformed or TooLarge. `part.data` is left to the caller."""
    ref = blob_from_proto(pb.BlobRef(name=part.name, digest=part.digest, size=part.size))
    if part.offset > ref.size:
        raise Malformed(f"an upload of {ref.size} bytes can't begin at offset {part.offset}")
    return Upload(ref, unit_id_text(part.unit_id), part.offset)
