"""The demonstration's configuration: the packaged run.toml, changed by options.

Rules: what is shown in the report is exactly what the coordinator was given: the options
are written into the TOML text, comments and all, and read back to check them.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from smalltalk_fed.config.loading import load_config
from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.errors import ConfigError

Preset = Literal["full", "quick"]

VOCABULARY = 1024

# Small enough to try the machinery in half a minute; far too short for the mixture to win.
QUICK = (
    "router.rounds=4",
    "router.chunk_sequences=1024",
    "expert.steps=30",
    "expert.batch_sequences=8",
    "expert.optimizer.warmup_steps=5",
)


def run_toml(
    preset: Preset, seed: int, experts: int, nodes: int, settings: Sequence[str] = ()
) -> str:
    """Text of the run.toml for these options; `settings` are `section.key=value`.

    Raises:
        ConfigError: a setting can't be read.
    """
    text = resources.files("smalltalk_fed.demo").joinpath("run.toml").read_text("utf-8")
    changes = [
        f"run.seed={seed}",
        f"run.experts={experts}",
        f"run.nodes_to_start={nodes}",
        *(QUICK if preset == "quick" else ()),
        *settings,
    ]
    for change in changes:
        text = _changed(text, change)
    return text


def check(path: Path) -> RunConfig:
    """The configuration in `path`.

    Raises:
        ConfigError: a key or value is wrong.
    """
    return load_config(path)


def _changed(text: str, setting: str) -> str:
    """`text` with one value replaced, or added to its table."""
    key, equals, value = setting.partition("=")
    section, _, name = key.strip().rpartition(".")
    if not equals or not section or not name:
        raise ConfigError(f"--set {setting}: write it as section.key=value, such as run.seed=2.")
    line = f"{name} = {_literal(value.strip())}"
    lines, here, header = text.splitlines(), False, None
    for index, old in enumerate(lines):
        stripped = old.strip()
        if stripped.startswith("["):
            here = stripped == f"[{section}]"
            header = index if here else header
        elif here and stripped.partition("=")[0].strip() == name:
            lines[index] = line
            return "\n".join(lines) + "\n"
    if header is None:
        lines += ["", f"[{section}]", line]
    else:
        lines.insert(header + 1, line)
    return "\n".join(lines) + "\n"


def _literal(value: str) -> str:
    """`value` as TOML: as it is where it parses, else a string."""
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return json.dumps(value, ensure_ascii=False)
    del parsed
    return value
