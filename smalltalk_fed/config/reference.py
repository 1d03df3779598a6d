"""docs/configuration.md out of the models themselves, so that no key is undocumented.

`python -m smalltalk_fed.config.reference` prints it; `make docs` writes it; a test compares.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.config.shapes import PRESETS, ModelShape

INTRODUCTION = """# Configuration: every key of run.toml

Made from the code by `make docs`. Every key has a default; a run needs only what differs.
`--set section.key=value` on the command line wins over the file. An unknown key is an error
that names the nearest known one. Defaults are the paper's (arXiv 2410.03529) where it gives
one.
"""


def markdown() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        doc = (section.__doc__ or "").strip().partition(": ")[2]
        parts.append(f"## [{name}]\n\n{doc[:1].upper()}{doc[1:]}\n" if doc else f"## [{name}]\n")
        parts.append(_table(section, name, field.get_default(call_default_factory=True)))
    parts.append(_presets())
    return "\n".join(parts)


def _table(section: type[BaseModel], prefix: str, default: BaseModel) -> str:
    rows = ["| key | default | bounds | meaning |", "|---|---|---|---|"]
    nested = []
    for name, field in section.model_fields.items():
        key, value = f"{prefix}.{name}", getattr(default, name)
        if isinstance(value, BaseModel) and not isinstance(value, ModelShape):
            nested.append((type(value), key, value))
            continue
        meaning = field.description or _HINTS.get(name, "")
        rows.append(f"| `{key}` | {_default(value)} | {_bounds(field)} | {meaning} |")
    text = "\n".join(rows) + "\n"
    for kind, key, value in nested:
        text += f"\n### [{key}]\n\n{(kind.__doc__ or '').strip()}\n\n{_table(kind, key, value)}"
    return text


_HINTS = {
    "model": "A preset's name, or a table of `hidden`, `layers`, `heads`, `feed_forward`.",
    "name": "Begins the run's id.",
    "method": "How a chunk is divided: the paper's greedy order, by regret, or optimally.",
    "batch_sequences": "Sequences of one optimizer step.",
    "score_dtype": "Precision in which prefixes are scored.",
    "learning_rate": "Peak rate.",
    "schedule": "Constant after the warm-up, or a cosine to `final_fraction`.",
    "warmup_steps": "Steps of linear warm-up.",
    "beta1": "AdamW's first moment.",
    "beta2": "AdamW's second moment.",
    "weight_decay": "On matrices only.",
}


def _default(value: Any) -> str:
    if isinstance(value, ModelShape):
        return next((f"`{name}`" for name, shape in PRESETS.items() if shape == value), "a shape")
    return f"`{json.dumps(value)}`"


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = []
    for constraint in field.metadata:
        for name, words in signs.items():
            limit = getattr(constraint, name, None)
            if limit is not None:
                found.append(f"{words} {limit}")
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str | int) for choice in choices):
        found.append(", ".join(f"`{choice}`" for choice in choices))
    return ", ".join(found)


def _presets() -> str:
    rows = [
        "## Presets of shapes\n",
        "| name | hidden | layers | heads | feed-forward | parameters |",
    ]
    rows.append("|---|---|---|---|---|---|")
    for name, shape in PRESETS.items():
        count = shape.parameters(32_000)
        rows.append(
            f"| `{name}` | {shape.hidden} | {shape.layers} | {shape.heads} | "
            f"{shape.feed_forward_width} | {count / 1e6:.1f} M at a vocabulary of 32,000 |"
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
