"""What every table of run.toml has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of run.toml: closed and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
