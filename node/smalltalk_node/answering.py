"""An expert of this machine goes on from a prompt: the same tokens as `smalltalk generate` draws.

Rules: weights are this node's own, loaded when they are first asked for and kept; a seed fixes
what is drawn. torch is imported with the first prompt. Whatever goes wrong is one sentence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.errors import Malformed, WorldError, shown
from smalltalk_fed.wire.convert_serving import Prompt


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

        if max(prompt.tokens) >= self._manifest.vocabulary:
            raise Malformed(
                f"a token of the prompt is over {self._manifest.vocabulary}, this run's vocabulary"
            )
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
            why = shown(" ".join(str(error).split()), 200)
            raise WorldError(f"expert {prompt.expert} could not go on from it ({why})") from None

    def _model(self, expert: int) -> Any:
        from smalltalk_fed.model.build import load_model
        from smalltalk_fed.train.device import choose_device

        with self._lock:
            if expert not in self._models:
                folder = self._experts / str(expert)
                model = load_model(folder, self._manifest.vocabulary, 1)
                self._models[expert] = model.to(choose_device(self._device)).eval()
            return self._models[expert]
