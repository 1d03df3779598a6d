"""What the command line of `smalltalk-node run` says, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smalltalk_fed.worksite.limits import Limits, compute_device
from smalltalk_fed.worksite.machine import is_gpu
from smalltalk_node.outgoing import Outgoing
from smalltalk_node.recording import EgressRecorder


@dataclass(frozen=True)
class Options:
    """`threads` 0: the manifest's, or torch's own choice. `recorder` writes down what leaves.

    `corpus`: a corpus folder, or in a private run also the text itself; `public`: the corpus folder
    of a private run's public text. `seat` -1: any.
    """

    corpus: Path | None = None
    device: str = "auto"
    threads: int = 0
    limits: Limits = Limits()
    recorder: EgressRecorder | None = None
    seat: int = -1
    public: Path | None = None

    def outgoing(self) -> Outgoing:
        """What messages go out through."""
        return Outgoing(self.recorder, self.limits.up_mbit)

    @property
    def on_gpu(self) -> bool:
        """Whether an NVIDIA GPU will compute, as far as can be known without torch."""
        return is_gpu(self.device)

    @property
    def compute_device(self) -> str:
        """The device to compute on: one GPU where limits hold for a single process only."""
        return compute_device(self.device, self.limits)
