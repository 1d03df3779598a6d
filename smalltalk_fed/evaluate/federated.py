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

from smalltalk_fed.errors import OurError, Refused, SmalltalkError, UserError, WorldError, shown
from smalltalk_fed.evaluate.generate import Sampling, as_text, begin, continue_tokens
from smalltalk_fed.evaluate.mixture import Choice, Mixture

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
        said = self._exchange(json.dumps(question).encode() + b"\n")
        if "error" in said:
            raise _ERRORS.get(said.get("exit_code", 4), WorldError)(said["error"])
        return Answer(said["node_id"], said["node_name"], tuple(said["tokens"]))

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
