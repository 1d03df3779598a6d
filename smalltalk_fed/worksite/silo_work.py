"""The work units of a private run on this machine, over its own text.

Rules: those of `work`. What a unit hands in is router parameters, a row of counts as
`silo_counts` lets it leave (with noise where `[privacy]` is on, small ones withheld), sums and
means over many sequences, and an expert's weights only where its owner's word allows it; ids and
scores of sequences stay in this process and in the node's folder. A silo's expert is trained by
one process on one device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.config.private import seat_experts, seat_of
from smalltalk_fed.core.seats import SHARES
from smalltalk_fed.core.units import Unit
from smalltalk_fed.errors import Malformed, Refused
from smalltalk_fed.mixture.silo_prices import encode_counts
from smalltalk_fed.worksite.folders import (
    WEIGHTS_FILE,
    Workplace,
    expert_folder_of,
    given_folder,
    metrics_folder,
    scores_folder,
    unit_folder,
)
from smalltalk_fed.worksite.unit_inputs import UnitInputs

if TYPE_CHECKING:
    from smalltalk_fed.train.releases import Releases

OnProgress = Callable[[float, dict[str, float]], None]


@dataclass(frozen=True)
class SiloWork:
    """One unit over this node's own text; every method computes one kind."""

    unit: Unit
    inputs: UnitInputs
    place: Workplace
    device: str
    on_progress: OnProgress
    should_stop: Callable[[], bool]

    def block(self) -> tuple[dict[str, bytes], dict[str, float]]:
        """The silo's routers after a block of rounds, by the outputs' names, and figures."""
        from smalltalk_fed.train.silo import silo_block

        key = self.unit.key
        own = self._own(key.seat) if key.index > 1 else {}
        result = silo_block(
            self._manifest,
            key.seat,
            self.place.corpus,
            key.index,
            own,
            without=self.unit.withdrawn,
            releases=self._releases(),
            work_folder=unit_folder(self.place, self.unit),
            device=self.device,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        )
        return {f"router-{e}": data for e, data in result.parameters.items()}, result.figures

    def count(self) -> tuple[bytes, dict[str, float]]:
        """The row of what each router wins of the held-out text, as it may leave, and figures."""
        from smalltalk_fed.train.silo_counts import silo_counts

        key = self.unit.key
        row_E, figures = silo_counts(
            self._manifest,
            key.seat,
            self.place.corpus,
            key.index,
            key.turn,
            self.inputs.routers_left(),
            self._prices(),
            releases=self._releases(),
            cache_folder=scores_folder(self.place),
            device=self.device,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        )
        return encode_counts(row_E), figures

    def train(self) -> tuple[Path, dict[str, float]]:
        """The expert's weights and figures, trained on its part of the silo's text."""
        from smalltalk_fed.train.silo import silo_segments
        from smalltalk_fed.train.silo_expert import train_silo_expert

        expert = self.unit.key.expert
        seat = seat_of(self._manifest.config, expert)
        segments = silo_segments(
            self._manifest,
            seat,
            self.place.corpus,
            self._own(seat),
            without=self.unit.withdrawn,
            device=self.device,
            should_stop=self.should_stop,
        )
        if len(self.unit.weights) != self._manifest.experts:
            raise Malformed(f"{self.unit.unit_id} came without the experts' parts of all text")
        public, ids = self.place.public, None
        if public is not None:
            ids = self.inputs.ids("segment")
        weights, figures = train_silo_expert(
            self._manifest,
            self.place.corpus,
            expert,
            segments[expert],
            self.unit.weights[expert],
            unit_folder(self.place, self.unit),
            public=public.train if public is not None else None,
            public_ids=ids,
            device=self.device,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
            metrics_folder=metrics_folder(self.place, self.unit),
        )
        return weights, figures

    def evaluate(self) -> dict[str, float]:
        """Sums over the held-out text, of the experts whose weights are here."""
        from smalltalk_fed.train.silo import evaluate_silo

        seat = self.unit.key.seat
        experts = {e: expert_folder_of(self.place, e) / WEIGHTS_FILE for e in self._experts(seat)}
        for expert, path in experts.items():
            if not path.exists():
                raise Refused(f"this node does not have the weights of expert {expert}")
        for ref in self.unit.inputs:
            if ref.name.startswith("weights-"):
                experts[int(ref.name.removeprefix("weights-"))] = self.inputs.file(ref.name)
        return evaluate_silo(
            self._manifest,
            self.place.corpus,
            self.inputs.routers_left(),
            self._prices(),
            experts,
            cache_folder=scores_folder(self.place),
            device=self.device,
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        ).figures

    @property
    def _manifest(self) -> RunManifest:
        return self.place.manifest

    def _releases(self) -> Releases | None:
        """The ledger of what this silo gave under noise; None where there is none."""
        if not self._manifest.config.privacy.on:
            return None
        from smalltalk_fed.train.silo_counts import silo_releases

        folder = given_folder(self.place)
        return silo_releases(self._manifest, self.unit.key.seat, self.place.corpus, folder)

    def _experts(self, seat: int) -> list[int]:
        """The seat's experts that the unit is done with: all but those that have left."""
        own = seat_experts(self._manifest.config)[seat]
        return [expert for expert in own if expert not in self.unit.withdrawn]

    def _own(self, seat: int) -> dict[int, bytes]:
        """The parameters of the seat's own routers."""
        own = self._experts(seat)
        return {expert: self.inputs.data(f"router-{expert}") for expert in own}

    def _prices(self) -> tuple[float, ...]:
        if len(self.unit.prices) != self._manifest.experts:
            raise Malformed(f"{self.unit.unit_id} came without a price for each expert")
        return self.unit.prices


def weights_may_leave(place: Workplace) -> bool:
    """Whether the run asks for experts' weights, and this machine's owner gives them."""
    expert, allowed = place.manifest.config.expert, place.limits.weights
    narrower = min(expert.share, allowed, key=SHARES.index)
    return expert.collects and narrower != "never"
