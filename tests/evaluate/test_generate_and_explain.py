"""Prompts: who is chosen and why, and that the text is what plain sampling would give."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_mixture import EXPERTS, LENGTH, PREFIX, change_manifest
from tokenizers import Tokenizer
from tokenizers.decoders import Decoder, Fuse, Metaspace, Replace, Sequence, Strip
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM

from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import DataError, UserError
from smalltalk_fed.evaluate.generate import Sampling, as_text, continue_tokens, generate
from smalltalk_fed.evaluate.mixture import Mixture
from smalltalk_fed.mixture.package import MixtureError

PROMPT = "one two three four five six seven"


def naive_tokens(model: torch.nn.Module, ids: list[int], count: int, seed: int) -> list[int]:
    """No cache, no sorting tricks: the whole window again for every token (top_p = 1)."""
    random = torch.Generator().manual_seed(seed)
    window, drawn = list(ids), []
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([window])).logits[0, -1].float()
        ordered, order = torch.sort(torch.softmax(logits / 0.7, 0), descending=True, stable=True)
        token = int(order[torch.multinomial(ordered, 1, generator=random)])
        drawn.append(token)
        window.append(token)
    return drawn


def test_the_cache_changes_nothing(whole_mixture: Path) -> None:
    mixture = Mixture.load(whole_mixture)
    plain = AutoModelForCausalLM.from_pretrained(whole_mixture / "experts" / "1").eval()
    ids = mixture.tokenizer.encode(PROMPT).ids[:6]
    sampling = Sampling(tokens=LENGTH - 6, temperature=0.7, top_p=1.0, seed=5)
    ours = list(continue_tokens(mixture.expert(1), ids, sampling, None, LENGTH))
    assert ours == naive_tokens(plain, ids, LENGTH - 6, seed=5)


def test_a_long_text_goes_on_beyond_the_context(whole_mixture: Path) -> None:
    mixture = Mixture.load(whole_mixture)
    model, seen = mixture.expert(0), []
    sizes = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    ids = list(range(3, 3 + LENGTH))
    sampling = Sampling(tokens=2 * LENGTH, temperature=0.0)
    drawn = list(continue_tokens(model, ids, sampling, None, LENGTH))
    sizes.remove()
    assert len(drawn) == 2 * LENGTH
    assert seen[0] == LENGTH
    assert seen[1] == LENGTH // 2  # the latest half, then token by token
    assert set(seen[2:]) == {1, LENGTH // 2}


def test_temperature_zero_takes_the_likeliest_and_top_p_cuts_the_tail(whole_mixture: Path) -> None:
    mixture = Mixture.load(whole_mixture)
    model, ids = mixture.expert(2), [5, 6, 7]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    best = int(logits.argmax())
    assert list(continue_tokens(model, ids, Sampling(1, 0.0), None, LENGTH)) == [best]
    for seed in range(20):
        tiny = Sampling(1, 1.0, top_p=1e-6, seed=seed)
        assert list(continue_tokens(model, ids, tiny, None, LENGTH)) == [best]


def test_the_end_of_text_ends_it(whole_mixture: Path) -> None:
    mixture = Mixture.load(whole_mixture)
    model, ids = mixture.expert(2), [5, 6, 7]
    first = next(continue_tokens(model, ids, Sampling(1, 0.0), None, LENGTH))
    assert list(continue_tokens(model, ids, Sampling(9, 0.0), first, LENGTH)) == []


def test_pieces_join_to_the_decoded_text(whole_mixture: Path) -> None:
    mixture = Mixture.load(whole_mixture)
    choice, pieces = generate(mixture, PROMPT, Sampling(12, 0.9, seed=3))
    ids = mixture.tokenizer.encode(PROMPT).ids
    drawn = list(
        continue_tokens(mixture.expert(choice.expert), ids, Sampling(12, 0.9, seed=3), 0, LENGTH)
    )
    whole = mixture.tokenizer.decode(drawn)
    assert "".join(pieces) == whole.rstrip("�")


def test_a_space_at_the_seam_is_kept() -> None:
    tokenizer = Tokenizer(WordLevel({"▁one": 0, "▁two": 1, "▁three": 2}, unk_token="▁one"))
    tokenizer.decoder = Metaspace()
    assert "".join(as_text(tokenizer, [0], iter([1, 2]))) == " two three"


@pytest.mark.parametrize(
    ("decoder", "ids"),
    [
        (Strip("a", 1, 1), [0]),  # a panic
        (Sequence([Fuse(), Replace("ab", "")]), [0, 1, 2, 0]),  # what came later changes the text
    ],
)
def test_tokens_that_the_tokenizer_cannot_write_are_an_error(
    decoder: Decoder, ids: list[int]
) -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    tokenizer.decoder = decoder
    with pytest.raises(DataError, match="tokens can't be made into text by this tokenizer"):
        list(as_text(tokenizer, [], iter(ids)))


def test_the_same_seed_writes_the_same(whole_mixture: Path) -> None:
    mixture = Mixture.load(whole_mixture)
    texts = ["".join(generate(mixture, PROMPT, Sampling(20, seed=8))[1]) for _ in range(2)]
    assert texts[0] == texts[1]


def test_a_prompt_goes_where_the_evaluation_sends_it(whole_mixture: Path, corpus: Path) -> None:
    mixture = Mixture.load(whole_mixture)
    heldout = TokenCorpus.open(corpus).heldout
    ids = np.arange(len(heldout))
    chosen = mixture.route_rows(heldout, ids)
    assert len(set(chosen.tolist())) > 1
    for row, expert in zip(heldout.rows(ids).tolist(), chosen.tolist(), strict=True):
        assert mixture.route(row).expert == expert
        assert mixture.route(row[:PREFIX]).expert == expert  # later tokens are not looked at


def test_a_price_moves_the_choice_by_as_much(mixture: Path) -> None:
    ids = list(range(3, 3 + PREFIX))
    free = Mixture.load(mixture).route(ids)
    assert free.margin is not None
    for change, same in ((free.margin - 0.01, True), (free.margin + 0.01, False)):
        prices = [0.0] * EXPERTS
        prices[free.expert] = change
        change_manifest(mixture, prices=prices)
        assert (Mixture.load(mixture).route(ids).expert == free.expert) is same


@pytest.mark.parametrize("length", [2, 5, PREFIX])
def test_a_short_prompt_uses_what_there_is(whole_mixture: Path, length: int) -> None:
    choice = Mixture.load(whole_mixture).route(list(range(3, 3 + length)))
    assert choice.prefix_tokens == length
    assert choice.scores_E is not None
    assert choice.expert == int(np.argmax(choice.scores_E))
    assert ("the routers learned on" in choice.why) is (length < PREFIX)


def test_one_token_leaves_the_prior_alone(mixture: Path) -> None:
    change_manifest(mixture, prices=[3.0, 1.0, 2.0])
    choice = Mixture.load(mixture).route([7])
    assert choice.scores_E is None
    assert choice.expert == 1
    assert choice.margin == pytest.approx(1.0)
    assert "tells routers nothing" in choice.why
    assert [row["note"] for row in choice.rows()] == ["", "chosen", ""]


def test_an_absent_expert_is_never_chosen(mixture: Path) -> None:
    ids = list(range(3, 3 + PREFIX))
    first = Mixture.load(mixture).route(ids).expert
    shutil.rmtree(mixture / "experts" / str(first))
    without = Mixture.load(mixture)
    choice = without.route(ids)
    assert choice.expert != first
    assert choice.rows()[first]["note"] == "not present"
    with pytest.raises(MixtureError, match=f"no expert {first}"):
        without.expert(first)


def test_a_disabled_expert_is_never_chosen(mixture: Path) -> None:
    ids = list(range(3, 3 + PREFIX))
    loaded = Mixture.load(mixture)
    first = loaded.route(ids).expert
    entries = [entry.model_dump() for entry in loaded.manifest.experts]
    entries[first]["enabled"] = False
    change_manifest(mixture, experts=entries)
    assert Mixture.load(mixture).route(ids).expert != first


def test_experts_that_cannot_be_loaded_are_named(mixture: Path) -> None:
    (mixture / "experts" / "0" / "config.json").write_text("{}")
    with pytest.raises(MixtureError, match="experts/0"):
        Mixture.load(mixture).expert(0)


def test_an_empty_prompt_begins_with_the_end_of_text(whole_mixture: Path) -> None:
    choice, pieces = generate(Mixture.load(whole_mixture), "", Sampling(3, seed=1))
    assert choice.prefix_tokens == 0
    assert "".join(pieces)


def test_an_empty_prompt_without_such_a_token_is_refused(
    whole_mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smalltalk_fed.evaluate.generate.end_of_text_id", lambda *_: None)
    with pytest.raises(UserError, match="the prompt is empty"):
        generate(Mixture.load(whole_mixture), "", Sampling(3))


def test_a_prompt_that_is_not_utf_8_is_refused(whole_mixture: Path) -> None:
    prompt = b"one t\xffwo".decode("utf-8", "surrogateescape")  # as arguments are read
    with pytest.raises(UserError, match="no text at character 6"):
        generate(Mixture.load(whole_mixture), prompt, Sampling(3))
