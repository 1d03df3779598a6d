"""Token streams of documents into rows of S tokens.

`cut`: every document is cut into whole sequences and its remainder is dropped, so that a
sequence never spans two documents. `concat`: documents follow one another with an
end-of-text token after each, and only the very last remainder is dropped. Pure numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NO_LABEL = 0


class Packer:
    """Packs the documents of one split; feed it every document's pieces in order."""

    def __init__(
        self, sequence_tokens: int, dtype: np.dtype[Any], end_of_text: int | None = None
    ) -> None:
        """`end_of_text` None means `cut`; otherwise `concat` with this token id."""
        self._sequence_tokens = sequence_tokens
        self._end = None if end_of_text is None else np.asarray([end_of_text], dtype=dtype)
        self._rest = np.empty(0, dtype=dtype)
        self._rest_label = NO_LABEL
        self.dropped_tokens = 0

    def add(
        self, tokens: np.ndarray, last: bool, label: int = NO_LABEL
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take the tokens of a piece; returns finished rows [n, S] and their labels uint16 [n].

        A row's label is that of the document which its first token is from.
        """
        parts = [self._rest, tokens]
        if last and self._end is not None:
            parts.append(self._end)
        joined = np.concatenate(parts)
        whole = joined.size - joined.size % self._sequence_tokens
        rows_NxS = joined[:whole].reshape(-1, self._sequence_tokens)
        labels_N = np.full(len(rows_NxS), label, dtype=np.uint16)
        if self._rest.size == 0:
            self._rest_label = label
        elif len(labels_N):
            labels_N[0] = self._rest_label
            self._rest_label = label
        self._rest = joined[whole:].copy()
        if last and self._end is None:
            self.finish()
        return rows_NxS, labels_N

    def finish(self) -> None:
        """Drop what is left; call it after the last document."""
        self.dropped_tokens += self._rest.size
        self._rest = self._rest[:0]
