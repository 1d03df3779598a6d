"""[privacy]: routers and counts that say little about any one sequence of a silo's text.

Rules: what is promised is differential privacy for one *sequence* of a silo, counted over the
whole run (docs/privacy.md); noise that could not keep the promise is refused here, in one
sentence. The noise itself is drawn on the silo, in `train.secret_noise`; nothing here is
secret. What the settings come to (epsilon) is `train.privacy_cost`'s part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from smalltalk_fed.config.section import Section

LEAST_NOISE = 0.3  # below it epsilon is in the hundreds: a promise of nothing
DELTA_POWER = 1.1
LARGEST_DRAW = 9  # standard deviations: `secret_noise` draws in steps of 2^-53, 8.6 at most


class PrivacySection(Section):
    """[privacy]: differential privacy of what silos send; only in the regime `private`."""

    router_noise: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Noise multiplier of the routers' DP-SGD: standard deviation of the noise on "
        f"the sum of clipped gradients, as a multiple of the clip; at least {LEAST_NOISE}. 0: off, "
        "and nothing of this section is used.",
    )
    router_clip: float = Field(
        default=1.0, gt=0, description="Largest norm of one sequence's gradient."
    )
    expected_batch: int = Field(
        default=0,
        ge=0,
        le=1 << 31,
        description="Sequences of a step on average (each is drawn by itself); 0: "
        "router.batch_sequences. Larger ones learn more under the same noise, and cost more.",
    )
    count_noise: float = Field(
        default=10.0,
        ge=1,
        le=1e6,
        description="Standard deviation of the noise on each count of held-out sequences, in "
        "sequences.",
    )
    delta: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="Probability with which the promise may fail; 0: n^-1.1, where n is the "
        "silo's number of sequences.",
    )

    @property
    def on(self) -> bool:
        """Whether routers and counts are noised."""
        return self.router_noise > 0

    def counts_beyond(self, experts: int) -> int:
        """Return the most that noise adds to a row of counts of so many experts; 0 without it."""
        return experts * math.ceil(LARGEST_DRAW * self.count_noise + 1) if self.on else 0

    def delta_for(self, sequences: int) -> float:
        """Return delta for a silo of so many sequences (at least 1)."""
        return self.delta or min(0.5, max(2, sequences) ** -DELTA_POWER)


def privacy_problem(privacy: PrivacySection, regime: str, experts_of: Sequence[int]) -> str:
    """What makes the noise no promise, or nothing; `experts_of` are experts by seat.

    Several experts in one silo divide its text in balance, where one sequence moves another to
    the other router: both routers change with it, by more than the clip allows.
    """
    if not privacy.on:
        return ""
    if privacy.router_noise < LEAST_NOISE:
        return (
            f"privacy.router_noise ({privacy.router_noise:g}) promises nothing worth its cost; "
            f"give at least {LEAST_NOISE}, or 0 for none"
        )
    if regime != "private":
        return (
            f"privacy.router_noise is for run.regime = 'private'; in the regime '{regime}' every "
            "node can read the text, so set it to 0"
        )
    crowded = next((seat for seat, count in enumerate(experts_of) if count > 1), None)
    if crowded is not None:
        return (
            f"private.experts_of gives seat {crowded} {experts_of[crowded]} experts; with "
            "privacy.router_noise it must be one a seat, since dividing a silo's text in balance "
            "lets one sequence move another"
        )
    return ""
