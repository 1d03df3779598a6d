"""run.toml and `--set a.b=c` into a RunConfig, with errors a person can act on.

A misspelt key is answered with the nearest one that exists. Reads one file, writes none.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from smalltalk_fed.config.run import RunConfig
from smalltalk_fed.errors import ConfigError, shown

CONFIG_CHARS_MAX = 1 << 20
# A number of thousands of digits is a plain ValueError, thousands of brackets a RecursionError.
_NO_TOML = (ValueError, RecursionError)


def load_config(path: Path | None, settings: Iterable[str] = ()) -> RunConfig:
    """Read `path` (None: defaults alone), then apply `settings` such as `run.seed=2`.

    Raises:
        ConfigError: unreadable file, unknown key, or a value out of bounds.
    """
    table: dict[str, Any] = {}
    origin = "the settings"
    if path is not None:
        origin = str(path)
        try:
            text = path.read_text(encoding="utf-8")
            if len(text) > CONFIG_CHARS_MAX:
                raise ConfigError(f"{path} is too large to be a run's configuration.")
            table = tomllib.loads(text)
        except FileNotFoundError:
            raise ConfigError(f"{path} does not exist; give the run's configuration.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} can't be read ({error}).") from None
        except _NO_TOML as error:
            raise ConfigError(f"{path} is not valid TOML: {shown(str(error), 200)}.") from None
    for setting in settings:
        _apply(table, setting)
    return parse_config(table, origin)


def parse_config(table: dict[str, Any], origin: str) -> RunConfig:
    """Validate a parsed table; `origin` is named in errors."""
    try:
        return RunConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_first_problem(error)}") from None


def _apply(table: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"--set {shown(setting)}: write it as section.key=value, such as run.seed=2."
        )
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except _NO_TOML:
        value = text.strip()  # a bare word is a string: `--set assignment.method=paper`
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            what = f"'{shown(part)}' is a value, not a section"
            raise ConfigError(f"--set {shown(setting)}: {what}.")
    table[parts[-1]] = value


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    # An unknown key explains most of what else is wrong, so it goes first.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    names = [shown(str(part)) for part in problem["loc"]]
    key = shown(".".join(names), 200)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(names[-1], _keys_at(names[:-1]), n=1, cutoff=0.5)
        hint = f"; did you mean '{'.'.join([*names[:-1], near[0]])}'?" if near else ""
        return f"unknown key '{key}'{hint or '; see docs/configuration.md for all keys.'}"
    message = shown(problem["msg"].removeprefix("Value error, "), 300)
    more = f" ({len(problems) - 1} more after this)" if len(problems) > 1 else ""
    if not key:
        return f"{message}.{more}"
    return f"'{key}': {message} (it is {shown(repr(problem['input']), 100)}).{more}"


def _keys_at(names: list[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for name in names:
        field = model.model_fields.get(name)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
