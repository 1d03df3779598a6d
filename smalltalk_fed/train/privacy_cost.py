"""What the noise of a run is worth: epsilon, over all that one silo sends.

The promise, for one sequence of a silo: whether it was there or not changes the probability of
anything that the silo's routers and counts could show by a factor of e^epsilon at most, except
with probability delta. Two ledgers, and one sequence is in one of them only:

- a *training* sequence shows in the routers alone: DP-SGD, each step a Gaussian mechanism on a
  Poisson sample at rate q = B/n, all steps of all blocks together;
- a *held-out* sequence shows in the counts alone: a Gaussian mechanism for each row of counts
  that is sent, where one sequence changes one count by one.

The accountant is opacus' (Renyi differential privacy; Mironov et al. 2019, arXiv 1908.10530,
turned into epsilon by Balle et al. 2020, arXiv 1905.09982): an upper bound. n, the number of a
silo's sequences, is taken as public. Experts, their losses and sums over held-out text have no
noise and are promised nothing: docs/privacy.md. Functions only; nothing is drawn here.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from smalltalk_fed.config.privacy import PrivacySection
from smalltalk_fed.errors import UserError

# Fine where most runs end up, wide enough for runs that give away very little.
_ORDERS = [1 + tenth / 10 for tenth in range(1, 100)] + [*range(12, 64), 80, 128, 256, 512]


@dataclass(frozen=True)
class PrivacySpent:
    """What was spent of a silo's privacy: the promise holds with `epsilon` and `delta`."""

    epsilon: float
    delta: float

    @property
    def figures(self) -> dict[str, float]:
        """As a unit reports it."""
        return {"epsilon": self.epsilon, "delta": self.delta}


def batch_rate(privacy: PrivacySection, batch_sequences: int, sequences: int) -> float:
    """Return q, the probability with which a step draws each of a silo's sequences."""
    return min(1.0, (privacy.expected_batch or batch_sequences) / sequences)


def private_steps(privacy: PrivacySection, batch_sequences: int, seen: int) -> int:
    """Return the steps that look at `seen` sequences on average, at least one."""
    return max(1, -(-seen // (privacy.expected_batch or batch_sequences)))


def routers_spent(
    privacy: PrivacySection, batch_sequences: int, sequences: int, steps: int
) -> PrivacySpent:
    """Return what `steps` of DP-SGD cost a silo with `sequences` of training text.

    Raises UserError when opacus is not installed.
    """
    rate = batch_rate(privacy, batch_sequences, sequences)
    delta = privacy.delta_for(sequences)
    return PrivacySpent(_epsilon(privacy.router_noise, rate, steps, delta), delta)


def counts_spent(privacy: PrivacySection, sequences: int, rows: int) -> PrivacySpent:
    """Return what `rows` of noised counts cost a silo with `sequences` of held-out text.

    Raises UserError when opacus is not installed.
    """
    delta = privacy.delta_for(sequences)
    return PrivacySpent(_epsilon(privacy.count_noise, 1.0, rows, delta), delta)


def _epsilon(noise: float, rate: float, times: int, delta: float) -> float:
    """Return epsilon of a sampled Gaussian mechanism used so many times; 0 for none."""
    if times == 0:
        return 0.0
    try:
        from opacus.accountants.analysis import rdp
    except ImportError:
        raise UserError(
            "the accountant of [privacy] needs opacus, which is not installed; "
            "run: pip install 'smalltalk-fed[privacy]'"
        ) from None
    spent = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=times, orders=_ORDERS)
    with warnings.catch_warnings():  # at the last order the bound is looser, and still one
        warnings.filterwarnings("ignore", message="Optimal order is the")
        epsilon, _ = rdp.get_privacy_spent(orders=_ORDERS, rdp=spent, delta=delta)
    return max(0.0, float(epsilon)) if math.isfinite(epsilon) else math.inf
