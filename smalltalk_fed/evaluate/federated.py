"""A mixture whose experts stay with their owners: routed here, answered there.

Rules: the choice is `Mixture.route`'s, with all routers and prices, on this machine. What an
expert that is not here shall go on from leaves as token ids, through the run's coordinator, to
the node that has it; nothing else of the mixture does. An expert that is here is run here. The
relay is a child, `smalltalk-coordinator relay`, which alone holds the operator's key: no room
below the programs speaks gRPC.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from smalltalk_fed.errors import OurError, Refused, SmalltalkError, UserError, WorldError, shown
from smalltalk_fed.evaluate.generate import Sampling, as_text, begin, continue_tokens
from smalltalk_fed.evaluate.heldout import Heldout
from smalltalk_fed.evaluate.mixture import Choice, Mixture
from smalltalk_fed.evaluate.report import SequenceSums
from smalltalk_fed.wire.values import MAX_PROMPT_TOKENS

END_S = 10.0
_ERRORS: dict[int, type[SmalltalkError]] = {
    kind.exit_code: kind for kind in (UserError, Refused, WorldError, OurError)
}


@dataclass(frozen=True)
class Answer:
    """What a node's expert wrote, and which node it was."""

    node_id: str
    node_name: str
    tokens: tuple[int, ...]


class RelayedExperts:
    """Experts at their nodes, asked through the coordinator of a run folder. A context manager."""

    def __init__(self, run_folder: Path) -> None:
        # The program of this very installation, never another of that name.
        command = [sys.executable, "-m", "smalltalk_coordinator.cli", "relay", str(run_folder)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def ask(
        self, expert: int, ids: list[int], sampling: Sampling, end: int | None, seed: int
    ) -> Answer:
        """What the expert's node draws after these tokens.

        Raises:
            PeerError: nobody serves it now, or it was withdrawn.
            WorldError: its node went away, was late or could not answer; or nobody relays.
        """
        question = {
            "expert": expert,
            "tokens": ids,
            "tokens_max": sampling.tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "end": end,
        }
        said = self._answered(question)
        return Answer(said["node_id"], said["node_name"], tuple(said["tokens"]))

    def measure(
        self, expert: int, tokens_NxS: np.ndarray, prefix_tokens: int
    ) -> tuple[float, float]:
        """Sums of losses of these rows, of prefixes and of the rest, from the expert's node.

        Raises as `ask` does.
        """
        question = {
            "expert": expert,
            "tokens": tokens_NxS.ravel().tolist(),
            "sequence_tokens": tokens_NxS.shape[1],
            "prefix_tokens": prefix_tokens,
        }
        said = self._answered(question)
        return float(said["prefix_nll"]), float(said["suffix_nll"])

    def _answered(self, question: dict[str, Any]) -> dict[str, Any]:
        said = self._exchange(json.dumps(question).encode() + b"\n")
        if "error" in said:
            raise _ERRORS.get(said.get("exit_code", 4), WorldError)(said["error"])
        return said

    def _exchange(self, line: bytes) -> dict[str, Any]:
        questions, answers = self._child.stdin, self._child.stdout
        assert questions is not None
        assert answers is not None
        try:
            questions.write(line)
            questions.flush()
            answer: dict[str, Any] = json.loads(answers.readline())
        except (BrokenPipeError, ValueError):
            code = self._child.wait(END_S)
            what = "the relay ended: what it said is above"
            raise _ERRORS.get(code, WorldError)(f"{what} (exit code {code}).") from None
        return answer

    def close(self) -> None:
        """End the child."""
        if self._child.stdin is not None:
            self._child.stdin.close()
        try:
            self._child.wait(END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()


def relayed_sums(
    experts: RelayedExperts, expert: int, heldout: Heldout, ids: np.ndarray, prefix_tokens: int
) -> SequenceSums:
    """Losses of the sequences `ids` under an expert elsewhere, as `sequence_losses` gives them.

    Only sums over many rows come back: each row of a message gets their mean. Rows of one message
    have one label, so that sums by expert and by label are right; single rows' are not.
    """
    rows = max(1, MAX_PROMPT_TOKENS // heldout.sequence_tokens)
    labels_N = heldout.labels_N
    labels = np.zeros(len(ids), dtype=np.int64) if labels_N is None else labels_N[ids]
    prefix_N, suffix_N = np.zeros(len(ids)), np.zeros(len(ids))
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        for start in range(0, len(places), rows):
            part = places[start : start + rows]
            sums = experts.measure(expert, heldout.sequences.rows(ids[part]), prefix_tokens)
            prefix_N[part], suffix_N[part] = sums[0] / len(part), sums[1] / len(part)
    return SequenceSums(prefix_N, suffix_N)


def generate_federated(
    mixture: Mixture, experts: RelayedExperts, prompt: str, sampling: Sampling
) -> tuple[Choice, Answer | None, Iterator[str]]:
    """The choice, who answered (None: this machine, which has the expert), and the text.

    Raises:
        UserError: the prompt is empty and the tokenizer has no token to begin a text with.
        PeerError, WorldError: the chosen expert gives no answer; no other is asked instead.
    """
    choice, ids, end = begin(mixture, prompt)
    if choice.expert in mixture.here:
        model = mixture.expert(choice.expert)
        drawn = continue_tokens(model, ids, sampling, end, mixture.context_tokens(model))
        return choice, None, as_text(mixture.tokenizer, ids, drawn)
    seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
    try:
        answer = experts.ask(choice.expert, ids, sampling, end, seed)
    except (Refused, WorldError) as error:
        raise type(error)(f"expert {choice.expert} was chosen: {shown(str(error), 600)}") from None
    if any(token >= mixture.manifest.vocabulary for token in answer.tokens):
        raise Refused(f"node {answer.node_id} answered with tokens that this mixture has not")
    return choice, answer, as_text(mixture.tokenizer, ids, iter(answer.tokens))
