"""Is a message about a unit acceptable? Checked completely before anything changes.

Form only, out of hard state: the unit is known, the outputs are the right ones and within
the manifest's limits, figures are finite numbers. What is inside a blob is the host's part.
"""

from __future__ import annotations

import math

from smalltalk_fed.core.state import HardState
from smalltalk_fed.core.units import Result, UnitKey
from smalltalk_fed.errors import Malformed, Refused, TooLarge

MAX_FIGURES = 64


def check_unit(state: HardState, key: UnitKey) -> None:
    """Raises Refused unless the unit is finished or of the run's present phase."""
    if not state.is_finished(key) and not state.in_phase(key):
        raise Refused(f"{key.unit_id} is not part of the run's present phase")


def check_form(state: HardState, result: Result) -> UnitKey:
    """The unit that `result` is of.

    Raises:
        Refused: the unit is not of the present phase.
        Malformed: not the outputs that the unit must bring, or a figure that is no number.
        TooLarge: an output or the list of figures is over its limit.
    """
    key = UnitKey.parse(result.unit_id)
    check_unit(state, key)
    names = tuple(ref.name for ref in result.outputs)
    if names != state.outputs_of(key):
        expected = ", ".join(state.outputs_of(key)) or "none"
        raise Malformed(f"{result.unit_id} must bring these outputs: {expected}")
    for ref in result.outputs:
        limit = state.size_limit(ref.name)
        if ref.size > limit:
            raise TooLarge(f"output '{ref.name}' of {result.unit_id} is over {limit} bytes")
    if len(result.figures) > MAX_FIGURES:
        raise TooLarge(f"{result.unit_id} has more than {MAX_FIGURES} figures")
    if not all(math.isfinite(value) for value in result.figures.values()):
        raise Malformed(f"{result.unit_id} has a figure that is not a finite number")
    return key
