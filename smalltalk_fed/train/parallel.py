"""Several GPUs in one node: what the training loop asks of the processes beside it.

`World` is one process alone. `ProcessWorld` is this process's part of a `torchrun` group:
every batch is shared out by rows, gradients are averaged by torch's own DDP, or, for models
that don't fit one GPU, by FSDP2 (`fully_shard`). Rules: the group computes what one process
would, up to the order of sums; processes decide together, so that none waits for a partner
that has stopped. NCCL on GPUs, gloo on CPUs. Between nodes nothing of this is used.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from smalltalk_fed.errors import UserError

Strategy = Literal["ddp", "fsdp"]
AGREE_EVERY = 8  # steps between two questions whether to stop, which wait for the device


class World:
    """One process: it has all rows, and decides alone."""

    rank = 0
    size = 1
    lean = True  # whether weights may be used without calling the modules that hold them

    def share(self, order: np.ndarray, batch_sequences: int) -> tuple[np.ndarray, np.ndarray]:
        """Return this process's part of `order`, and for each step the weight of its loss.

        Weights are such that the mean over processes is the mean over the whole batch.
        """
        return order, np.ones(-(-len(order) // batch_sequences))

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return what to call instead of `module`, so that gradients are averaged."""
        return module

    def gradients(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return the context of one part of a batch; only the last part talks."""
        return contextlib.nullcontext()

    def average(self, value: Tensor) -> None:
        """Average a figure over all processes, in place."""

    def agree(self, step: int, stop: bool, save: bool) -> tuple[bool, bool]:
        """Return what all processes do after `step`: each of the two if any of them wants it."""
        return stop, save

    def lead(self, word: bool) -> bool:
        """Return the word of the process of rank 0; all must ask at the same step."""
        return word

    def whole(self, value: Tensor) -> Tensor:
        """Return all of a tensor of which this process may hold a part."""
        return value

    def put(self, target: Tensor, value: Tensor) -> None:
        """Put a whole value into a tensor of which this process may hold a part."""
        target.copy_(value)


ONE_PROCESS = World()


class ProcessWorld(World):
    """This process's part in a group that torchrun started."""

    def __init__(self, device: torch.device, strategy: Strategy = "ddp") -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.lean = strategy == "ddp"
        self._device, self._strategy = device, strategy

    def share(self, order: np.ndarray, batch_sequences: int) -> tuple[np.ndarray, np.ndarray]:
        """See `World.share`. Raises UserError when a batch can't be shared out evenly."""
        if batch_sequences % self.size:
            raise UserError(
                f"a batch of {batch_sequences} sequences can't be shared out to {self.size} "
                "processes; change batch_sequences or the number of processes."
            )
        mine, weights = [], []
        for start in range(0, len(order), batch_sequences):
            batch = order[start : start + batch_sequences]
            rows = np.array_split(batch, self.size)[self.rank]
            weights.append(len(rows) * self.size / len(batch))
            # Nobody sits out: a process without rows repeats one, and it counts nothing.
            mine.append(rows if len(rows) else batch[:1])
        return np.concatenate(mine), np.array(weights)

    def wrap(self, module: nn.Module) -> nn.Module:
        """See `World.wrap`; FSDP2 shards the decoder's layers one by one, then the rest."""
        if self._strategy == "ddp":
            ids = [self._device.index] if self._device.type == "cuda" else None
            return DistributedDataParallel(module, device_ids=ids)
        for part in module.modules():
            if isinstance(part, nn.ModuleList):
                for layer in part:
                    fully_shard(layer)
        fully_shard(module)
        return module

    @contextlib.contextmanager
    def gradients(self, module: nn.Module, last: bool) -> Iterator[None]:
        """See `World.gradients`."""
        if isinstance(module, DistributedDataParallel):
            with contextlib.nullcontext() if last else module.no_sync():
                yield
            return
        module.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def average(self, value: Tensor) -> None:
        """See `World.average`."""
        dist.all_reduce(value)
        value /= self.size

    def agree(self, step: int, stop: bool, save: bool) -> tuple[bool, bool]:
        """See `World.agree`; they talk every `AGREE_EVERY` steps only."""
        if step % AGREE_EVERY:
            return False, False
        wishes = torch.tensor([stop, save], dtype=torch.int32, device=self._device)
        dist.all_reduce(wishes, op=dist.ReduceOp.MAX)
        both = wishes.tolist()
        return bool(both[0]), bool(both[1])

    def lead(self, word: bool) -> bool:
        """See `World.lead`."""
        said = torch.tensor([word], dtype=torch.int32, device=self._device)
        dist.broadcast(said, src=0)
        return bool(said.item())

    def whole(self, value: Tensor) -> Tensor:
        """See `World.whole`."""
        return value.full_tensor() if isinstance(value, DTensor) else value

    def put(self, target: Tensor, value: Tensor) -> None:
        """See `World.put`."""
        if isinstance(target, DTensor):
            value = distribute_tensor(
                value.to(target.device), target.device_mesh, target.placements
            )
        target.copy_(value)


@contextlib.contextmanager
def joined_world(strategy: Strategy = "ddp") -> Iterator[tuple[World, torch.device | None]]:
    """Join the group that torchrun started this process in, and leave it at the end.

    Yields the world and this process's device; outside torchrun one process and None.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ONE_PROCESS, None
        return
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessWorld(device, strategy), device
    finally:
        dist.destroy_process_group()
