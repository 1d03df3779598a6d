"""How often a router's round may be trained again to see how it was trained: an account.

What a sample of scores can't tell, training the same round again from the same state on the
same share can. It costs a part of the round. Rules: what such checks may cost is a part of the
run's planned work (`audit.redo_share`), known from the manifest alone; so is the part of all
rounds that this pays for. A check is paid for as rounds begin, a round's worth ahead, since
newcomers come first; what is granted in all is never more than that part. Opinions beside the
first, and those on rounds that somebody doubts, are not refused but counted: liars cause
them, and later rounds pay. Work is in forward passes of one parameter over one token; training
is three of them. Evaluation and a seed model are left out, so the plan is rather too small.
"""

from __future__ import annotations

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import UnitKey

BACKWARD = 3  # training on a token costs so many times what scoring it does
SCORED = 9  # sets of `audit.sample_sequences` that such an opinion scores


def planned_work(manifest: RunManifest) -> float:
    """Work of all rounds, slices and experts."""
    config, experts = manifest.config, manifest.experts
    router = config.router.model.parameters(manifest.vocabulary)
    expert = config.expert.model.parameters(manifest.vocabulary)
    scored = experts * config.sequence.prefix * router  # by every router, a sequence
    chunk = config.router.chunk_sequences
    routing = config.router.rounds * chunk * (BACKWARD * _trained(manifest) * router + scored)
    sharding = manifest.train_sequences * scored
    sequences = experts * config.expert.steps * config.expert.batch_sequences
    return routing + sharding + BACKWARD * sequences * config.sequence.length * expert


def redo_work(manifest: RunManifest) -> float:
    """Work of one opinion for which a router's round is trained again, its sample included."""
    config = manifest.config
    share = config.router.chunk_sequences / manifest.experts
    sample = SCORED * config.audit.sample_sequences * config.sequence.prefix
    router = config.router.model.parameters(manifest.vocabulary)
    return (BACKWARD * share * _trained(manifest) + sample) * router


def redo_part(manifest: RunManifest) -> float:
    """Part of all routers' rounds that may be trained again, 0 to 1."""
    audit = manifest.config.audit
    if not audit.rate:
        return 0.0
    everything = manifest.experts * manifest.config.router.rounds * redo_work(manifest)
    return min(1.0, audit.redo_share * planned_work(manifest) / everything)


def may_redo(state: HardState) -> bool:
    """Whether the account pays for one more."""
    part, each = redo_part(state.manifest), state.experts
    granted = min(part * state.round * each + each, part * state.rounds_total * each)
    return state.redos + 1 <= granted


def is_redo(state: HardState, key: UnitKey) -> bool:
    """Whether a router's round is trained again for this opinion."""
    audit = state.audits.get(key.target)
    return audit is not None and 0 < audit.redo_from <= key.index


def _trained(manifest: RunManifest) -> int:
    """Tokens of a sequence that a router trains on."""
    config = manifest.config
    whole = config.router.train_tokens != "prefix"
    return config.sequence.length if whole else config.sequence.prefix
