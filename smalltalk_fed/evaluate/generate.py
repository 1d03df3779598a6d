"""Continuing a prompt: the routers choose one expert by the prompt's beginning, it writes.

Rules: one irrevocable choice a prompt (arXiv 2410.03529, section 2.2), made from at most the
first M tokens; only the chosen expert is loaded and run. Text comes in whole characters as
soon as they are there. A seed fixes what is drawn. A text longer than the expert's context
goes on from its latest half.
"""

from __future__ import annotations

import inspect
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor, nn
from transformers import DynamicCache

from smalltalk_fed.data.tokenizer import end_of_text_id, token_ids, tokenizing
from smalltalk_fed.errors import UserError
from smalltalk_fed.evaluate.mixture import Choice, Mixture

__all__ = ["Choice", "Sampling", "generate"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; `temperature` 0 takes the likeliest."""

    tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int | None = None


def generate(mixture: Mixture, prompt: str, sampling: Sampling) -> tuple[Choice, Iterator[str]]:
    """The choice of an expert, and what it writes after `prompt`, in pieces as they come.

    Raises:
        UserError: the prompt is empty and the tokenizer has no token to begin a text with.
    """
    choice, ids, end = begin(mixture, prompt)
    model = mixture.expert(choice.expert)
    drawn = continue_tokens(model, ids, sampling, end, mixture.context_tokens(model))
    return choice, as_text(mixture.tokenizer, ids, drawn)


def begin(mixture: Mixture, prompt: str) -> tuple[Choice, list[int], int | None]:
    """The choice of an expert, the tokens that it goes on from, and the one that ends a text.

    Raises:
        UserError: the prompt is no text, or is empty and the tokenizer has no token to begin one
            with.
    """
    half = re.search("[\ud800-\udfff]", prompt)  # how Python reads bytes that are not UTF-8
    if half:
        raise UserError(
            f"the prompt has something that is no text at character {half.start() + 1}; give it as "
            "UTF-8."
        )
    ids = token_ids(mixture.tokenizer, prompt)
    choice = mixture.route(ids)
    end = end_of_text_id(mixture.tokenizer_folder, mixture.tokenizer)
    if not ids:
        if end is None:
            raise UserError("the prompt is empty; give some text to continue.")
        ids = [end]
    return choice, ids, end


@torch.inference_mode()
def continue_tokens(
    model: nn.Module, ids: list[int], sampling: Sampling, end: int | None, context_tokens: int
) -> Iterator[int]:
    """Draw up to `sampling.tokens` token ids after `ids`; stops at `end`, which is not given."""
    seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
    random = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    cached = _cache_argument(model)
    text = list(ids)
    new, cache = _window(text, context_tokens), DynamicCache()
    filled = len(new)
    for _ in range(sampling.tokens):
        tokens_1xT = torch.tensor([new], dtype=torch.int64, device=device)
        output = model(input_ids=tokens_1xT, use_cache=True, **{cached: cache})
        token = _draw(output.logits[0, -1].float().cpu(), sampling, random)
        if token == end:
            return
        yield token
        text.append(token)
        new, filled = [token], filled + 1
        if filled > context_tokens:  # begin again with what still fits
            new, cache = _window(text, context_tokens), DynamicCache()
            filled = len(new)


def _cache_argument(model: nn.Module) -> str:
    """What this version of transformers calls the cache of keys and values."""
    known = inspect.signature(type(model).forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def _window(text: list[int], context_tokens: int) -> list[int]:
    """All of the text if it fits into the context, else its latest half a context."""
    return text if len(text) <= context_tokens else text[-max(1, context_tokens // 2) :]


def _draw(logits_V: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    if sampling.temperature <= 0:
        return int(logits_V.argmax())
    probabilities = torch.softmax(logits_V / sampling.temperature, dim=0)
    ordered, order = torch.sort(probabilities, descending=True, stable=True)
    before = ordered.cumsum(0) - ordered  # a token is kept if those before it don't reach top_p
    kept = torch.where(before < max(sampling.top_p, 1e-9), ordered, 0.0)
    return int(order[torch.multinomial(kept, 1, generator=random)])


def as_text(tokenizer: Tokenizer, prompt: list[int], drawn: Iterator[int]) -> Iterator[str]:
    """Tokens to text; a character of several tokens comes with its last one.

    Raises:
        DataError: the tokenizer fails over them.
        Whatever iterating over `drawn` raises.
    """
    stream = DecodeStream(skip_special_tokens=True)

    def step(token: int) -> str | None:
        with tokenizing("tokens can't be made into text"):
            return stream.step(tokenizer, token)

    for token in prompt:  # so that spaces at the seam come out as in one text
        step(token)
    for token in drawn:
        piece = step(token)
        if piece:
            yield piece
