"""How well experts agree with labels that the run never uses, such as the texts' domains.

Measurements for reports. They say what the routers found, and train nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def contingency(
    labels: ArrayLike, experts: ArrayLike, n_labels: int, n_experts: int
) -> NDArray[np.int64]:
    """Count sequences by label and expert, int64[n_labels, n_experts].

    Raises ValueError when the two lists differ in length, or a number is out of range.
    """
    label_N, expert_N = _numbers(labels, n_labels), _numbers(experts, n_experts)
    if len(label_N) != len(expert_N):
        raise ValueError(f"{len(label_N)} labels but {len(expert_N)} experts")
    cells = np.bincount(label_N * n_experts + expert_N, minlength=n_labels * n_experts)
    return cells.reshape(n_labels, n_experts)


def nmi(labels_a: ArrayLike, labels_b: ArrayLike) -> float:
    """Return the normalised mutual information of two labellings, from 0 to 1.

    Mutual information over the mean of the two entropies (arithmetic normalisation, as
    scikit-learn's default). Two labellings that both say nothing agree fully: 1.
    Raises ValueError when the two lists differ in length.
    """
    values_a, a = np.unique(np.asarray(labels_a), return_inverse=True)
    values_b, b = np.unique(np.asarray(labels_b), return_inverse=True)
    table = contingency(a, b, len(values_a), len(values_b))
    if max(table.shape) <= 1:
        return 1.0
    joint = table / table.sum()
    margin_a, margin_b = joint.sum(axis=1), joint.sum(axis=0)
    seen = joint > 0
    mutual = float((joint[seen] * np.log(joint[seen] / np.outer(margin_a, margin_b)[seen])).sum())
    entropies = _entropy(margin_a) + _entropy(margin_b)
    return min(1.0, max(0.0, 2 * mutual / entropies))


def majority_share(labels: ArrayLike, experts: ArrayLike) -> dict[int, float]:
    """Return, for each label there is, the share of it in its most frequent expert.

    Raises ValueError when the two lists differ in length, or for negative numbers.
    """
    label_N, expert_N = np.asarray(labels), np.asarray(experts)
    n_labels, n_experts = (int(x.max(initial=-1)) + 1 for x in (label_N, expert_N))
    table = contingency(label_N, expert_N, n_labels, n_experts)
    return {label: float(row.max() / row.sum()) for label, row in enumerate(table) if row.sum() > 0}


def _entropy(probabilities: NDArray[np.float64]) -> float:
    seen = probabilities[probabilities > 0]
    return -float((seen * np.log(seen)).sum())


def _numbers(values: ArrayLike, count: int) -> NDArray[np.int64]:
    numbers = np.asarray(values)
    if numbers.size == 0:
        return np.zeros(0, dtype=np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError("labels and experts are lists of whole numbers")
    if not 0 <= int(numbers.min()) <= int(numbers.max()) < count:
        raise ValueError(f"labels and experts must be within 0 and {count - 1}")
    return numbers.astype(np.int64)
