"""An expert of this machine goes on from a prompt, or measures a text, as `smalltalk` does.

Rules: weights are this node's own, loaded when they are first asked for and kept; a seed fixes
what is drawn. torch is imported with the first prompt. Whatever goes wrong is one sentence.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.errors import Malformed, WorldError, shown
from smalltalk_fed.wire.convert_measuring import Text
from smalltalk_fed.wire.convert_serving import Prompt

BATCH_SEQUENCES = 32


class Answering:
    """The experts below one folder. Any thread may ask."""

    def __init__(self, manifest: RunManifest, experts: Path, device: str) -> None:
        """`experts`: has a folder in Hugging Face's format for each, by number."""
        self._manifest, self._experts, self._device = manifest, experts, device
        self._models: dict[int, Any] = {}
        self._lock = threading.Lock()

    def tokens(
        self, prompt: Prompt, most: int, should_stop: Callable[[], bool] = lambda: False
    ) -> tuple[int, ...]:
        """The answer: at most `most` tokens; `should_stop` ends it where it is.

        Raises:
            Malformed: the prompt has a token that this run's vocabulary does not.
            SmalltalkError: the expert can't be loaded or run.
        """
        from smalltalk_fed.evaluate.generate import Sampling, continue_tokens
        from smalltalk_fed.evaluate.mixture import context_tokens

        self._check(prompt.tokens)
        sampling = Sampling(most, prompt.temperature, prompt.top_p, prompt.seed)
        try:
            model = self._model(prompt.expert)
            context = context_tokens(model, self._manifest.config.sequence.length)
            drawn = continue_tokens(model, list(prompt.tokens), sampling, prompt.end, context)
            found = []
            for token in drawn:
                found.append(token)
                if should_stop():
                    break
            return tuple(found)
        except RuntimeError as error:  # torch's, such as for lack of memory
            raise _failed(prompt.expert, error) from None

    def losses(
        self, text: Text, should_stop: Callable[[], bool] = lambda: False
    ) -> tuple[float, float]:
        """Sums of losses in nats over all rows: of their prefixes, and of the rest.

        Raises:
            Malformed: the text has a token that this run's vocabulary does not.
            SmalltalkError: the expert can't be loaded or run, or was told to stop.
        """
        import numpy as np

        from smalltalk_fed.evaluate.heldout import heldout_of_tokens
        from smalltalk_fed.train.device import choose_device
        from smalltalk_fed.train.plan import Stopped
        from smalltalk_fed.train.scoring import sequence_losses

        self._check(text.tokens)
        tokens_NxS = np.asarray(text.tokens, dtype=np.int64).reshape(-1, text.sequence_tokens)
        try:
            prefix_N, suffix_N = sequence_losses(
                self._model(text.expert),
                heldout_of_tokens(tokens_NxS).sequences,
                np.arange(len(tokens_NxS)),
                text.prefix_tokens,
                batch_sequences=BATCH_SEQUENCES,
                device=choose_device(self._device),
                should_stop=should_stop,
            )
        except Stopped:
            raise WorldError("its node is stopping") from None
        except RuntimeError as error:
            raise _failed(text.expert, error) from None
        return math.fsum(prefix_N), math.fsum(suffix_N)

    def _check(self, tokens: tuple[int, ...]) -> None:
        if max(tokens) >= self._manifest.vocabulary:
            raise Malformed(
                f"a token is beyond this run's vocabulary of {self._manifest.vocabulary}"
            )

    def _model(self, expert: int) -> Any:
        from smalltalk_fed.model.build import load_model
        from smalltalk_fed.train.device import choose_device

        with self._lock:
            if expert not in self._models:
                folder = self._experts / str(expert)
                model = load_model(folder, self._manifest.vocabulary, 1)
                self._models[expert] = model.to(choose_device(self._device)).eval()
            return self._models[expert]


def _failed(expert: int, error: RuntimeError) -> WorldError:
    why = shown(" ".join(str(error).split()), 200)
    return WorldError(f"expert {expert} could not go on from it ({why})")
