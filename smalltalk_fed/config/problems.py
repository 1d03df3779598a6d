"""What pydantic found wrong with somebody's file, as the half of a sentence.

Rules: short and printable whatever the file holds, since its own keys are part of what is
said; the input itself is never repeated, and never copied for each of a million mistakes.
"""

from __future__ import annotations

from pydantic import ValidationError

from smalltalk_fed.errors import shown

WHERE_CHARS = 100
WHAT_CHARS = 300


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Where the first mistake is (empty: in the whole) and what it is."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:WHERE_CHARS] for part in problem["loc"])
    return shown(where, WHERE_CHARS), shown(
        problem["msg"].removeprefix("Value error, "), WHAT_CHARS
    )
