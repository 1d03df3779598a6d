"""Agreement of experts with domains: scikit-learn's figures, and plain counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from smalltalk_fed.mixture.agreement import contingency, majority_share, nmi

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=60)


@given(PAIRS)
def test_nmi_is_that_of_scikit_learn(pairs):
    labels, experts = zip(*pairs, strict=True)
    expected = normalized_mutual_info_score(labels, experts)
    assert nmi(labels, experts) == pytest.approx(expected, abs=1e-9)
    assert nmi(experts, labels) == pytest.approx(expected, abs=1e-9)


def test_nmi_of_the_same_groups_by_other_names_is_one():
    assert nmi([0, 0, 1, 2, 2], [7, 7, 3, 5, 5]) == pytest.approx(1)
    assert nmi([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0)
    assert nmi(["c", "c", "python"], [1, 1, 0]) == pytest.approx(1)
    assert nmi([], []) == 1


@given(PAIRS)
def test_the_table_counts_pairs(pairs):
    labels, experts = zip(*pairs, strict=True)
    table = contingency(labels, experts, 5, 4)
    assert table.shape == (5, 4)
    for label in range(5):
        for expert in range(4):
            assert table[label, expert] == pairs.count((label, expert))


def test_the_share_in_the_most_frequent_expert():
    assert majority_share([0, 0, 0, 2, 2], [1, 1, 0, 3, 3]) == {0: 2 / 3, 2: 1.0}
    assert majority_share([], []) == {}


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 labels but 1 experts"):
        contingency([0, 1], [0], 2, 2)
    with pytest.raises(ValueError, match="within 0 and 1"):
        contingency([0, 2], [0, 0], 2, 2)
    with pytest.raises(ValueError, match="within"):
        majority_share([-1, 0], [0, 0])
    with pytest.raises(ValueError, match="whole numbers"):
        contingency([0.5], [0], 2, 2)
    with pytest.raises(ValueError, match="1 labels but 2 experts"):
        nmi(np.array([0]), np.array([0, 1]))
