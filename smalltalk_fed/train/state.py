"""What a training run changes, as tensors by name, and what a run is known by.

Rules: copies are on the CPU and whole, whatever device or processes hold the parts; putting
back what was taken gives the same bits. Files and threads are `checkpoint`'s part.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smalltalk_fed.train.parallel import World
from smalltalk_fed.train.plan import TrainPlan


class TrainState:
    """All that a training run changes: weights, moments, losses, step, random state."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.AdamW, losses_T: Tensor, world: World
    ) -> None:
        self.model, self.optimizer, self.losses_T = model, optimizer, losses_T
        self.world = world
        self.step = 0
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]

    @property
    def nbytes(self) -> int:
        """Size of what `tensors` gives, about: weights, and AdamW's two moments of each."""
        trained = sum(weight.nbytes for weight in self.weights)
        return 2 * trained + sum(weight.nbytes for weight in self.model.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of everything, by name."""
        found = {"losses": _copy(self.losses_T[: self.step])}
        for name, weight in self.model.named_parameters():
            found[f"weight/{name}"] = _copy(self.world.whole(weight.detach()))
            for key, value in self.optimizer.state.get(weight, {}).items():
                found[f"{key}/{name}"] = _copy(self.world.whole(value))
        found["random/cpu"] = torch.get_rng_state()
        if self.losses_T.device.type == "cuda":
            found["random/cuda"] = torch.cuda.get_rng_state(self.losses_T.device)
        return found

    @torch.no_grad()
    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        self.step = step
        self.losses_T[:step] = tensors["losses"].to(self.losses_T.device)
        # Sorted: putting a part is talk between processes, who must all say the same.
        keys = sorted({key.partition("/")[0] for key in tensors} - {"losses", "weight", "random"})
        for name, weight in self.model.named_parameters():
            self.world.put(weight, tensors[f"weight/{name}"])
            if not weight.requires_grad:
                continue
            moments = {}
            for key in keys:
                value = tensors[f"{key}/{name}"]
                if value.ndim:
                    moment = torch.empty_like(weight)
                    self.world.put(moment, value)
                else:  # AdamW's own step count, on the device only where it is fused there
                    moment = value.to(weight.device if weight.device.type == "cuda" else "cpu")
                moments[key] = moment
            if moments:
                self.optimizer.state[weight] = moments
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and self.losses_T.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], self.losses_T.device)


def fingerprint(plan: TrainPlan, order: np.ndarray, model: nn.Module) -> str:
    """Return the identity of a run: its plan, its order, and the weights it starts from."""
    digest = hashlib.sha256(json.dumps(_plain(plan), sort_keys=True).encode())
    digest.update(np.ascontiguousarray(order, dtype="<i8").tobytes())
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _plain(plan: TrainPlan) -> dict[str, Any]:
    return asdict(plan) | {"optimizer": plan.optimizer.model_dump(mode="json")}
