"""How long the demonstration's steps take, and how far it is: the live view's time left.

Rules: seconds are first guesses from token counts and a reference machine's rates; as soon
as steps that compute are under way, their true durations say how much slower or faster this
machine is (how fast programs start says nothing of it). Only the terminal uses these figures;
the report has measured ones alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from smalltalk_fed.config.run import RunConfig


class Step(StrEnum):
    """The steps, in order; the middle four are phases of the run."""

    PREPARE = "prepare"
    ENROL = "enrol"
    ROUTING = "routing"
    SHARDING = "sharding"
    TRAINING = "training"
    EVALUATING = "evaluating"
    COLLECT = "collect"
    BASELINE = "baseline"
    COMPARE = "compare"
    GENERATE = "generate"
    REPORT = "report"


TITLES = {
    Step.PREPARE: "Text to tokens",
    Step.ENROL: "Coordinator and nodes start",
    Step.ROUTING: "Routers learn to divide the text",
    Step.SHARDING: "Every sequence gets its expert",
    Step.TRAINING: "Experts train, each alone",
    Step.EVALUATING: "Experts are evaluated on held-out text",
    Step.COLLECT: "The mixture is put together",
    Step.BASELINE: "The dense model trains on the same tokens",
    Step.COMPARE: "Both are evaluated on the same text",
    Step.GENERATE: "A sample of each domain",
    Step.REPORT: "The report is drawn",
}

COMPUTES = (Step.ROUTING, Step.TRAINING, Step.BASELINE)

# Of two cores of a 2020s server, both at work.
_ROUTER_TOKENS_PER_S = 110_000.0
_SCORED_TOKENS_PER_S = 550_000.0
_EXPERT_TOKENS_PER_S = 40_000.0
_UNIT_S = 0.15  # asking for a unit, fetching its inputs, handing it in


@dataclass
class Plan:
    """Expected seconds of each step, and what is done of them."""

    expected_s: dict[Step, float]
    done: dict[Step, float] = field(default_factory=dict)  # fraction, 0..1
    finished_s: dict[Step, float] = field(default_factory=dict)  # measured

    def finish(self, step: Step, seconds: float) -> None:
        """A step is over and took so long."""
        self.done[step] = 1.0
        self.finished_s[step] = seconds

    @property
    def fraction(self) -> float:
        """How much of the expected time is behind us."""
        total = sum(self.expected_s.values())
        return sum(s * self.done.get(step, 0.0) for step, s in self.expected_s.items()) / total

    def left_s(self, now_step: Step, in_step_s: float) -> float:
        """Expected seconds to the end, `in_step_s` seconds into `now_step`."""
        fraction = self.done.get(now_step, 0.0)
        expected = self.expected_s[now_step]
        if fraction > 0.05:  # measured speed of this very step
            here = in_step_s / fraction * (1 - fraction)
        else:
            here = max(0.0, expected * self._factor() - in_step_s)
        ahead = [s for s in Step if s is not now_step and s not in self.finished_s]
        later = sum(self.expected_s[s] for s in ahead if _order(s) > _order(now_step))
        return here + later * self._factor(now_step, in_step_s)

    def _factor(self, step: Step | None = None, seconds: float = 0.0) -> float:
        """How much longer than expected things take here; 1 while nothing is known."""
        over = [s for s in self.finished_s if s in COMPUTES]
        expected = sum(self.expected_s[s] for s in over)
        actual = sum(self.finished_s[s] for s in over)
        if step in COMPUTES and (fraction := self.done.get(step, 0.0)) > 0.05:
            expected += self.expected_s[step] * fraction
            actual += seconds
        return min(4.0, max(0.2, actual / expected)) if expected > 5.0 else 1.0


def make_plan(config: RunConfig, cores: int, nodes: int) -> Plan:
    """First guesses for a run of this configuration on this machine."""
    scale = 2.0 / max(1, min(cores, nodes))
    experts, steps = config.run.experts, config.expert.steps
    length, prefix = config.sequence.length, config.sequence.prefix
    chunk, rounds = config.router.chunk_sequences, config.router.rounds
    prefix_tokens = rounds * chunk * prefix
    trained = experts * steps * config.expert.batch_sequences * length
    routing = scale * (
        prefix_tokens / _ROUTER_TOKENS_PER_S + experts * prefix_tokens / _SCORED_TOKENS_PER_S
    )
    expected = {
        Step.PREPARE: 9.0,
        Step.ENROL: 12.0,
        Step.ROUTING: routing + rounds * _UNIT_S * 4,
        Step.SHARDING: 4.0,
        Step.TRAINING: scale * trained / _EXPERT_TOKENS_PER_S,
        Step.EVALUATING: 3.0,
        Step.COLLECT: 3.0,
        Step.BASELINE: 2.0 / max(1, cores) * trained / _EXPERT_TOKENS_PER_S + 4.0,
        Step.COMPARE: 9.0,
        Step.GENERATE: 9.0,
        Step.REPORT: 5.0,
    }
    return Plan(expected)


def _order(step: Step) -> int:
    return list(Step).index(step)
