"""Holds what a private run's `[privacy]` will cost this silo against its owner's limit.

Rules: looked at when the text is made ready and before anything is said of it; what counts is
the plan of the whole run, by the accountant that the silo's units report by, for the sequences
that this text has. The owner is told the figures; the coordinator hears only that the node
takes no part, since the figures tell how much text there is. What the silo's ledger lets out
afterwards is `train.releases`' part: never more than this plan.
"""

from __future__ import annotations

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.core.silo_book import is_private
from smalltalk_fed.data.corpus import TokenCorpus
from smalltalk_fed.errors import UserError
from smalltalk_fed.worksite.limits import Limits

TOLD = "the run's [privacy] costs this node's text more than its owner allows"


class CostsTooMuch(UserError):
    """A run would tell more of this text than its owner allows."""


def refuse_cost(manifest: RunManifest, limits: Limits, corpus: TokenCorpus) -> None:
    """Refuse a private run whose plan costs a sequence of `corpus` more than `epsilon_at_most`.

    Raises:
        CostsTooMuch: with what it would cost.
        UserError: opacus, which has the accountant, is not installed.
    """
    most = limits.epsilon_at_most
    if not most or not is_private(manifest):
        return
    out = f"and this node allows {most:g}: it takes no part; --epsilon-at-most sets another limit."
    if not manifest.config.privacy.on:
        raise CostsTooMuch(
            "the run's routers learn without noise (privacy.router_noise is 0), so that no epsilon "
            f"bounds what they tell of this text, {out}"
        )
    from smalltalk_fed.train.silo_counts import silo_cost

    routers, counts = silo_cost(manifest, len(corpus.train), len(corpus.heldout))
    for what, whose, spent in (("routers", "training", routers), ("counts", "held-out", counts)):
        if spent.epsilon > most:
            raise CostsTooMuch(
                f"the run's {what} would cost each {whose} sequence of this text an epsilon of "
                f"{spent.epsilon:.3g} (delta {spent.delta:.2g}), {out}"
            )
