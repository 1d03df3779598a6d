"""Do a dataclass' fields hold what their annotations say? For values that came out of JSON.

JSON decides types by its text alone, and Python's dataclasses take anything; a time that is a
text would be noticed far from where it was read. Rules: exact types (True is no number), an
integer may stand for a float, numbers are finite and within 64 bits; what is inside tuples,
lists, dictionaries and other dataclasses is looked at too. Checks are made once a class.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

Check = Callable[[Any], bool]


def wrong_field(value: Any) -> str:
    """Name of the first field of a dataclass that holds something else; empty if none does."""
    kind: Any = type(value)
    for name, check in _checks(kind):
        if not check(getattr(value, name)):
            return name
    return ""


@functools.cache
def _checks(kind: Any) -> tuple[tuple[str, Check], ...]:
    hints = get_type_hints(kind)
    return tuple((field.name, _check(hints[field.name])) for field in fields(kind))


def _check(annotation: Any) -> Check:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        either = [_check(one) for one in inner]
        return lambda value: any(check(value) for check in either)
    if origin in (tuple, list):  # tuple[X, ...] or list[X]
        each = _check(inner[0])
        return lambda value: type(value) is origin and all(map(each, value))
    if origin is dict:
        key, item = _check(inner[0]), _check(inner[1])
        return lambda value: (
            type(value) is dict and all(map(key, value)) and all(map(item, value.values()))
        )
    if annotation is float:
        return lambda value: _integer(value) or (type(value) is float and math.isfinite(value))
    if annotation is int:
        return _integer
    kind: type = type(None) if annotation is None else annotation  # as in dict[str, None]
    if is_dataclass(kind):
        return lambda value: type(value) is kind and not wrong_field(value)
    return lambda value: isinstance(value, kind)


def _integer(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63
