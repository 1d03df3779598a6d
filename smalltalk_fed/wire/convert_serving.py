"""What travels while a node serves its experts, and when it withdraws them; to protobuf and back.

Rules as in `convert`. A prompt and its answer are token ids of the run's tokenizer: whoever
relays them can read them. Their number is the relay's own, counted anew by each connection.
No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smalltalk_fed.config.manifest import MAX_VOCABULARY
from smalltalk_fed.config.run import MAX_EXPERTS
from smalltalk_fed.core import messages as msg
from smalltalk_fed.errors import Malformed, TooLarge
from smalltalk_fed.proto.v1 import smalltalk_pb2 as pb
from smalltalk_fed.wire.convert_measuring import (
    Losses,
    Text,
    losses_from_proto,
    losses_to_proto,
    text_from_proto,
    text_to_proto,
)
from smalltalk_fed.wire.values import (
    MAX_ANSWER_TOKENS,
    MAX_NAME_CHARS,
    MAX_PROMPT_TOKENS,
    MAX_REASON_CHARS,
    cut,
    expert_number,
    integer,
    number,
    text,
    token_ids,
)

MAX_AT_ONCE = 8  # prompts that one node has in hand
MAX_TEMPERATURE = 100.0


@dataclass(frozen=True)
class Offer:
    """A node's experts that may be asked now, and how many prompts it takes in hand at a time."""

    experts: tuple[int, ...]
    at_once: int = 1


@dataclass(frozen=True)
class Prompt:
    """A text to go on from; all that fixes the answer but the expert's weights.

    `end`: the token that ends a text, or None.
    """

    expert: int
    tokens: tuple[int, ...]
    tokens_max: int
    temperature: float
    top_p: float
    seed: int
    end: int | None = None
    number: int = 0


@dataclass(frozen=True)
class Completion:
    """The answer to the prompt of this number: its own tokens alone, or why there are none."""

    number: int
    tokens: tuple[int, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Answered:
    """What the operator gets: the answer, and which node gave it."""

    node_id: str
    node_name: str
    tokens: tuple[int, ...]


Asked = Prompt | Text
Answer = Completion | Losses


# ---------------------------------------------------------------------------- withdrawing


def withdraw_to_proto(withdraw: msg.Withdraw) -> pb.WithdrawRequest:
    """The node's id stays behind: the certificate says it."""
    return pb.WithdrawRequest(experts=withdraw.experts, reason=cut(withdraw.reason))


def withdraw_from_proto(node_id: str, request: pb.WithdrawRequest) -> msg.Withdraw:
    """`node_id` comes from the certificate. Raises Malformed or TooLarge."""
    reason = text(request.reason, MAX_REASON_CHARS, "the reason")
    return msg.Withdraw(_experts(request.experts), node_id, True, reason)


def take_out_to_proto(withdraw: msg.Withdraw) -> pb.TakeOutRequest:
    """The operator's."""
    return pb.TakeOutRequest(
        experts=withdraw.experts, node_id=withdraw.node_id, reason=cut(withdraw.reason)
    )


def take_out_from_proto(request: pb.TakeOutRequest) -> msg.Withdraw:
    """Raises Malformed or TooLarge."""
    return msg.Withdraw(
        _experts(request.experts),
        text(request.node_id, MAX_NAME_CHARS, "the node's id"),
        False,
        text(request.reason, MAX_REASON_CHARS, "the reason"),
    )


def withdrawn_from_proto(reply: pb.WithdrawReply) -> str:
    """What came of it. Raises Malformed or TooLarge."""
    return text(reply.reason, MAX_REASON_CHARS, "the answer")


# -------------------------------------------------------------------------------- serving


def offer_to_proto(offer: Offer) -> pb.ServeUp:
    """The first message of a node that serves."""
    return pb.ServeUp(offer=pb.Offer(experts=offer.experts, at_once=offer.at_once))


def answer_up(answer: Answer) -> pb.ServeUp:
    """One answer."""
    if isinstance(answer, Losses):
        return pb.ServeUp(losses=losses_to_proto(answer))
    return pb.ServeUp(
        completion=pb.Completion(
            number=answer.number, tokens=answer.tokens, problem=cut(answer.problem)
        )
    )


def serve_up_from_proto(message: pb.ServeUp) -> Offer | Answer:
    """Raises Malformed or TooLarge."""
    match message.WhichOneof("what"):
        case "offer":
            experts = _experts(message.offer.experts)
            if not experts:
                raise Malformed("an offer without experts")
            at_once = int(number(message.offer.at_once, "prompts at once", 1, MAX_AT_ONCE))
            return Offer(experts, at_once)
        case "completion":
            said = message.completion
            return Completion(
                integer(said.number, "the answer's number"),
                token_ids(said.tokens, MAX_ANSWER_TOKENS, "an answer"),
                text(said.problem, MAX_REASON_CHARS, "the reason"),
            )
        case "losses":
            return losses_from_proto(message.losses)
        case _:
            raise Malformed("a message of a node that serves has neither an offer nor an answer")


def taken_to_proto(reason: str) -> pb.ServeDown:
    """The offer stands; prompts follow."""
    return pb.ServeDown(taken=pb.Taken(reason=cut(reason)))


def asked_down(asked: Asked) -> pb.ServeDown:
    """A prompt, or a text to be measured, for a node that serves."""
    if isinstance(asked, Text):
        return pb.ServeDown(text=text_to_proto(asked))
    return pb.ServeDown(prompt=prompt_to_proto(asked))


def serve_down_from_proto(message: pb.ServeDown) -> str | Asked:
    """The words with which the offer was taken, or what is asked. Raises Malformed or TooLarge."""
    match message.WhichOneof("what"):
        case "taken":
            return text(message.taken.reason, MAX_REASON_CHARS, "the reason")
        case "prompt":
            return prompt_from_proto(message.prompt)
        case "text":
            return text_from_proto(message.text)
        case _:
            raise Malformed("a message to a node that serves says nothing")


def prompt_to_proto(prompt: Prompt) -> pb.Prompt:
    """A prompt."""
    return pb.Prompt(
        number=prompt.number,
        expert=prompt.expert,
        tokens=prompt.tokens,
        tokens_max=prompt.tokens_max,
        temperature=prompt.temperature,
        top_p=prompt.top_p,
        seed=prompt.seed,
        end=0 if prompt.end is None else prompt.end + 1,
    )


def prompt_from_proto(prompt: pb.Prompt) -> Prompt:
    """Raises Malformed or TooLarge."""
    tokens = token_ids(prompt.tokens, MAX_PROMPT_TOKENS, "a prompt")
    if not tokens:
        raise Malformed("a prompt without tokens")
    if not 1 <= prompt.tokens_max <= MAX_ANSWER_TOKENS:
        raise TooLarge(f"an answer has 1 to {MAX_ANSWER_TOKENS} tokens, not {prompt.tokens_max}")
    if prompt.end > MAX_VOCABULARY:
        raise Malformed("the token that ends a text is beyond any vocabulary")
    return Prompt(
        expert_number(prompt.expert),
        tokens,
        prompt.tokens_max,
        number(prompt.temperature, "the temperature", 0.0, MAX_TEMPERATURE),
        number(prompt.top_p, "top_p", 0.0, 1.0),
        integer(prompt.seed, "the seed"),
        prompt.end - 1 if prompt.end else None,
        integer(prompt.number, "the prompt's number"),
    )


def answered_to_proto(answered: Answered) -> pb.GenerateReply:
    """An answer for the operator."""
    return pb.GenerateReply(
        node_id=answered.node_id, node_name=answered.node_name, tokens=answered.tokens
    )


def answered_from_proto(reply: pb.GenerateReply) -> Answered:
    """Raises Malformed or TooLarge."""
    return Answered(
        text(reply.node_id, MAX_NAME_CHARS, "the node's id"),
        text(reply.node_name, MAX_NAME_CHARS, "the node's name"),
        token_ids(reply.tokens, MAX_ANSWER_TOKENS, "an answer"),
    )


# ---------------------------------------------------------------------------------- small


def _experts(values: Sequence[int]) -> tuple[int, ...]:
    if len(values) > MAX_EXPERTS:
        raise TooLarge(f"{len(values)} experts are named; at most {MAX_EXPERTS} can be")
    return tuple(sorted({expert_number(value) for value in values}))
