"""What travels when an expert that stayed home is measured on a text; to protobuf and back.

Rules as in `convert`. Who asks has the text; what comes back are two sums over all of its rows. No
I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from smalltalk_fed.errors import Malformed
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.values import (
    MAX_NAME_CHARS,
    MAX_PROMPT_TOKENS,
    expert_number,
    integer,
    number,
    text,
    token_ids,
)


@dataclass(frozen=True)
class Text:
    """Rows of `sequence_tokens`; losses are summed of tokens 2..prefix and of those after."""

    expert: int
    tokens: tuple[int, ...]
    sequence_tokens: int
    prefix_tokens: int
    number: int = 0


@dataclass(frozen=True)
class Losses:
    """Sums over all rows in nats."""

    number: int
    prefix_nll: float
    suffix_nll: float


@dataclass(frozen=True)
class Measured:
    """What the operator gets: the sums, and which node told them."""

    node_id: str
    node_name: str
    prefix_nll: float
    suffix_nll: float


def text_to_proto(asked: Text) -> pb.Text:
    """A text to be measured."""
    return pb.Text(
        number=asked.number,
        expert=asked.expert,
        tokens=asked.tokens,
        sequence_tokens=asked.sequence_tokens,
        prefix_tokens=asked.prefix_tokens,
    )


def text_from_proto(asked: pb.Text) -> Text:
    """Raises Malformed or TooLarge."""
    tokens = token_ids(asked.tokens, MAX_PROMPT_TOKENS, "a text")
    length, prefix = asked.sequence_tokens, asked.prefix_tokens
    if not tokens or length < 2 or len(tokens) % length:
        raise Malformed(f"{len(tokens)} tokens are no rows of {length}")
    if not 1 <= prefix <= length:
        raise Malformed(f"a prefix of {prefix} tokens is not within a row of {length}")
    counted = integer(asked.number, "the text's number")
    return Text(expert_number(asked.expert), tokens, length, prefix, counted)


def losses_to_proto(losses: Losses) -> pb.Losses:
    """The sums."""
    return pb.Losses(
        number=losses.number, prefix_nll=losses.prefix_nll, suffix_nll=losses.suffix_nll
    )


def losses_from_proto(losses: pb.Losses) -> Losses:
    """Raises Malformed or TooLarge."""
    return Losses(
        integer(losses.number, "the text's number"),
        number(losses.prefix_nll, "a sum of losses", 0.0),
        number(losses.suffix_nll, "a sum of losses", 0.0),
    )


def measured_to_proto(measured: Measured) -> pb.MeasureReply:
    """Sums for the operator."""
    return pb.MeasureReply(
        node_id=measured.node_id,
        node_name=measured.node_name,
        prefix_nll=measured.prefix_nll,
        suffix_nll=measured.suffix_nll,
    )


def measured_from_proto(reply: pb.MeasureReply) -> Measured:
    """Raises Malformed or TooLarge."""
    return Measured(
        text(reply.node_id, MAX_NAME_CHARS, "the node's id"),
        text(reply.node_name, MAX_NAME_CHARS, "the node's name"),
        number(reply.prefix_nll, "a sum of losses", 0.0),
        number(reply.suffix_nll, "a sum of losses", 0.0),
    )
