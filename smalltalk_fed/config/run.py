"""The run's configuration: every key of run.toml, its meaning, default and bounds.

Rules: frozen and closed (an unknown key is an error); defaults are the paper's where it
gives one (arXiv 2410.03529, table 1 and section 3.1); checks that span keys live in
`RunConfig`. Reading files and `--set` is `loading`'s part; what depends on the corpus is
checked in `manifest`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from smalltalk_fed.config.privacy import PrivacySection, privacy_problem
from smalltalk_fed.config.private import PrivateSection, Share, problem
from smalltalk_fed.config.section import Section
from smalltalk_fed.config.shapes import PRESETS, ModelShape

MAX_EXPERTS = 1024


def _shape(value: object) -> object:
    """A preset's name stands for its shape."""
    if isinstance(value, str):
        if value not in PRESETS:
            raise ValueError(f"no preset is called '{value}'; there are {', '.join(PRESETS)}")
        return PRESETS[value]
    return value


Shape = Annotated[ModelShape, BeforeValidator(_shape)]


class RunSection(Section):
    """[run]"""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(default=1, ge=0, lt=2**63, description="Fixes everything that is random.")
    experts: int = Field(default=4, ge=1, le=MAX_EXPERTS, description="E: experts, and routers.")
    regime: Literal["shared", "private"] = Field(
        default="shared",
        description="'shared': every node can read the one corpus; 'private': every node brings "
        "text that never leaves it.",
    )
    nodes_to_start: int = Field(
        default=1, ge=1, le=100_000, description="Routing begins when so many nodes have joined."
    )
    lease_s: float = Field(
        default=120.0,
        ge=2.0,
        le=86400.0,
        description="A silent node's unit is lost after so long.",
    )
    poll_s: float = Field(
        default=30.0, ge=0.5, le=600.0, description="How long an idle node's question is held."
    )
    patience_s: float = Field(
        default=86400.0,
        ge=0.0,
        description="Longest time that an expert is kept for the vanished node that has its "
        "checkpoint; less if redoing the lost work takes less.",
    )
    idle_wait_s: float = Field(
        default=3600.0,
        ge=0.0,
        le=86400.0,
        description="Longest time between two questions of a node that is not needed now.",
    )
    spare_copies: int = Field(
        default=1, ge=0, le=4, description="Copies of a straggler's unit that free nodes may take."
    )


class SequenceSection(Section):
    """[sequence]"""

    length: int = Field(default=1024, ge=4, le=1 << 20, description="S: tokens in a sequence.")
    prefix: int = Field(default=256, ge=2, description="M: tokens that the routers see.")


class Optimizer(Section):
    """AdamW and its schedule, for routers and experts alike."""

    learning_rate: float = Field(gt=0, le=1)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    final_fraction: float = Field(
        default=0.0, ge=0, le=1, description="Cosine ends at this fraction of the peak rate."
    )
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float = Field(default=0.1, gt=0, description="Largest norm of the gradient.")


class RouterOptimizer(Optimizer):
    """The paper's for routers: constant, since only relative scores matter."""

    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    schedule: Literal["constant", "cosine"] = "constant"


class ExpertOptimizer(Optimizer):
    """The paper's for experts."""

    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    warmup_steps: int = Field(default=3000, ge=0)


class RouterSection(Section):
    """[router]: the tiny language models that learn to divide the text."""

    model: Shape = PRESETS["router-4.4m"]
    rounds: int = Field(default=94, ge=1, le=100_000, description="T: rounds of EM.")
    chunk_sequences: int = Field(
        default=43_945, ge=1, le=1 << 31, description="N: fresh sequences of a round."
    )
    batch_sequences: int = Field(default=32, ge=1)
    train_tokens: Literal["prefix", "sequence"] = Field(
        default="prefix", description="Loss on the prefix (equation 9) or on all tokens."
    )
    optimizer: RouterOptimizer = RouterOptimizer()


class ExpertSection(Section):
    """[expert]: the models that do the work; one is chosen for each prompt."""

    model: Shape = PRESETS["335m"]
    init: str = Field(
        default="fresh",
        description="'fresh', 'seed' (branch from one model trained first), or a folder in "
        "Hugging Face's format that every node can read.",
    )
    seed_fraction: float = Field(
        default=0.5, gt=0, lt=1, description="Share of all tokens that the seed model gets."
    )
    seed_rate_factor: float = Field(
        default=0.6, gt=0, le=1, description="Experts' peak rate after a seed, as a factor."
    )
    steps: int = Field(default=256_000, ge=1, description="Optimizer steps of one expert.")
    batch_sequences: int = Field(default=128, ge=1)
    accumulate: int = Field(
        default=1, ge=1, description="Parts that a batch is computed in, one after the other."
    )
    optimizer: ExpertOptimizer = ExpertOptimizer()
    collect: str = Field(
        default="final",
        pattern=r"^(never|final|every [1-9][0-9]{0,8} steps)$",
        description="Whether experts' weights travel to the coordinator: 'never', 'final', or "
        "'every N steps', so that another node can go on where a vanished one was.",
    )
    share: Share = Field(
        default="public",
        description="In a private run, who the run asks to have experts' weights: 'never', "
        "'operator' (the organiser's mixture), or 'public' (the other silos too). An owner can "
        "allow less, never more.",
    )
    weights_bytes_max: int = Field(
        default=0, ge=0, description="Largest upload of an expert; 0 = what its shape implies."
    )

    @property
    def collects(self) -> bool:
        """Whether finished experts travel to the coordinator."""
        return self.collect != "never"

    @property
    def collect_every_steps(self) -> int:
        """Steps between two collections of an unfinished expert; 0: only the finished one."""
        words = self.collect.split()
        return int(words[1]) if len(words) == 3 else 0


class AssignmentSection(Section):
    """[assignment]: how a chunk is divided."""

    method: Literal["paper", "regret", "optimal"] = "optimal"
    capacity: Literal["equal", "throughput"] | list[float] = Field(
        default="equal",
        description="An expert's share of the text: 'equal' (the paper's), 'throughput' (by the "
        "measured speed of the node that has it), or one positive weight per expert.",
    )


class AuditSection(Section):
    """[audit]: results that other nodes check before they count."""

    rate: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of units that another node checks, besides newcomers' first ones, odd "
        "ones, and every collected expert, which are always checked; 0 checks nothing at all.",
    )
    redo_share: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Largest part of the run's planned work that goes into training routers' "
        "rounds again to see whether they were trained as asked; where that is enough for all "
        "rounds, all are. 0: only rounds that somebody doubts.",
    )
    first_units: int = Field(
        default=2, ge=0, le=10_000, description="Units of a newcomer that are always checked."
    )
    sample_sequences: int = Field(
        default=64, ge=4, le=4096, description="Sequences of each kind that a check scores again."
    )
    wait_s: float = Field(
        default=600.0,
        ge=0,
        le=30 * 86400.0,
        description="A check is waived, and said so, when no other node was there for so long.",
    )


class ComputeSection(Section):
    """[compute]: what must be the same on all nodes for a unit to give the same answer."""

    threads: int = Field(default=0, ge=0, le=1024, description="Threads a node; 0: its choice.")
    score_dtype: Literal["float32", "bfloat16"] = "float32"
    score_batch: int = Field(default=64, ge=1, description="Sequences scored at once.")
    train_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="'auto': bfloat16 autocast on GPUs that have it."
    )
    compile: Literal["auto", "never"] = Field(
        default="auto", description="'auto': torch.compile on a GPU."
    )
    checkpoint_s: float = Field(default=300.0, gt=0, description="Seconds between checkpoints.")
    checkpoint_share: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="Largest share of the time that checkpoints may take; they come more rarely "
        "where they cost more.",
    )


class RunConfig(Section):
    """run.toml as a whole."""

    run: RunSection = RunSection()
    sequence: SequenceSection = SequenceSection()
    router: RouterSection = RouterSection()
    expert: ExpertSection = ExpertSection()
    assignment: AssignmentSection = AssignmentSection()
    audit: AuditSection = AuditSection()
    private: PrivateSection = PrivateSection()
    privacy: PrivacySection = PrivacySection()
    compute: ComputeSection = ComputeSection()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        experts, chunk = self.run.experts, self.router.chunk_sequences
        if self.sequence.prefix > self.sequence.length:
            raise ValueError(
                f"sequence.prefix ({self.sequence.prefix}) is longer than sequence.length "
                f"({self.sequence.length}); the routers can't see more than there is"
            )
        if experts > chunk:
            raise ValueError(
                f"run.experts ({experts}) is larger than router.chunk_sequences ({chunk}), so some "
                "routers would get no text; raise router.chunk_sequences"
            )
        if self.expert.batch_sequences % self.expert.accumulate:
            raise ValueError(
                f"expert.accumulate ({self.expert.accumulate}) must divide "
                f"expert.batch_sequences ({self.expert.batch_sequences})"
            )
        weights = self.assignment.capacity
        if isinstance(weights, list):
            if len(weights) != experts:
                raise ValueError(
                    f"assignment.capacity has {len(weights)} weights for {experts} experts; "
                    "give one for each"
                )
            if not all(0 < weight < float("inf") for weight in weights):
                raise ValueError("assignment.capacity has a weight that is not a positive number")
        if wrong := problem(self) or privacy_problem(
            self.privacy, self.run.regime, self.private.experts_of
        ):
            raise ValueError(wrong)
        return self
