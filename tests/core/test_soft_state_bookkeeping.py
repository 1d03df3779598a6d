"""Clever bookkeeping against its naive twin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smalltalk_fed.core.leases import Timers

STEPS = st.lists(
    st.tuples(st.sampled_from("abcde"), st.one_of(st.none(), st.integers(0, 30))), max_size=60
)


@given(STEPS)
def test_the_earliest_timer_is_that_of_a_plain_dictionary(
    steps: list[tuple[str, int | None]],
) -> None:
    timers, naive = Timers(), dict[str, float]()
    for name, time in steps:
        if time is None:
            timers.drop(name)
            naive.pop(name, None)
        else:
            timers.set(name, float(time))
            naive[name] = float(time)
        found = timers.earliest()
        assert (found[0] if found else None) == min(naive.values(), default=None)
        assert found is None or naive[found[1]] == found[0]
