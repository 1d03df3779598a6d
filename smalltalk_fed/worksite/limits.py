"""What this machine's owner lets a run use: `limits.toml` in the node's folder.

Rules: the coordinator never sees these, and nothing that it sends can change them; they are
set by options of `run`, remembered, and may be edited by hand between two starts. A run that
can't be done within them is refused before any work, by `refuse`; what can only be seen while
working is `guard`'s part, and when to work is `hours`'. Gigabytes are 10^9 bytes.
"""

from __future__ import annotations

import json
import logging
import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from smalltalk_fed.config.manifest import RunManifest
from smalltalk_fed.errors import UserError, WorldError, shown
from smalltalk_fed.wire.secret_files import write_secret
from smalltalk_fed.worksite.footprint import disk_need, memory_need
from smalltalk_fed.worksite.hours import ALWAYS, Hours
from smalltalk_fed.worksite.machine import is_gpu

log = logging.getLogger("smalltalk.node")

LIMITS_FILE = "limits.toml"
GB = 10**9
UP_MBIT_LEAST = 0.05  # a part of 256 KiB then takes 42 s; a transfer that stands ends after 120
_HEADER = (
    "# What a run may use of this machine; read when the node starts. 0: no limit.\n"
    "# docs: node/README.md, 'Your limits'.\n"
)


class Limits(BaseModel):
    """All of them; the defaults are no limits, but for the folders that a run may read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hours: str = ""  # such as 22-7; empty: always
    memory_gb: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    gpu_memory_gb: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    disk_gb: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    up_mbit: float = Field(default=0.0, ge=0, allow_inf_nan=False)  # of uploads, a second
    share: float = Field(default=1.0, ge=0.01, le=1)  # of the time, that this node computes
    weights: Literal["never", "operator", "public"] = "never"  # who may have a silo's experts
    # In a private run, what its noised routers and counts may cost a sequence of this silo.
    epsilon_at_most: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    model_folder: str = ""  # the only folder of a model that a run may begin its experts from

    @field_validator("up_mbit")
    @classmethod
    def _moves(cls, value: float) -> float:
        if 0 < value < UP_MBIT_LEAST:
            raise ValueError(f"uploads that are slower than {UP_MBIT_LEAST} look as if they stood")
        return value

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What the node's folder says; without a file there are no limits.

        Raises:
            UserError: a key or value is wrong.
        """
        path = folder / LIMITS_FILE
        try:
            limits = cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
            Hours.parse(limits.hours)
        except FileNotFoundError:
            return cls()
        except ValidationError as error:
            raise UserError(f"{path}: {_first(error)}.") from None
        except (OSError, RecursionError, ValueError) as error:
            raise UserError(f"{path} can't be read: {shown(str(error), 200)}.") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        return limits

    def changed(self, **given: str | float | None) -> Self:
        """These limits with what was given on the command line; None leaves one as it is.

        Raises:
            UserError: a value is out of bounds.
        """
        changes = {name: value for name, value in given.items() if value is not None}
        if changes.get("hours") == ALWAYS:
            changes["hours"] = ""
        Hours.parse(str(changes.get("hours", "")))
        try:
            return self.model_validate(self.model_dump() | changes)
        except ValidationError as error:
            option = f"--{error.errors()[0]['loc'][0]}".replace("_", "-")
            raise UserError(f"{option}: {_first(error)}.") from None

    def save(self, folder: Path) -> None:
        """Write limits.toml.

        Raises:
            WorldError: the disk refuses.
        """
        # JSON's numbers and strings are TOML's, too.
        lines = [f"{name} = {json.dumps(value)}" for name, value in self.model_dump().items()]
        write_secret(folder / LIMITS_FILE, (_HEADER + "\n".join(lines) + "\n").encode())

    @property
    def one_process(self) -> bool:
        """Whether they can only be kept by a single process with a single GPU."""
        return self.share < 1 or self.gpu_memory_gb > 0

    def describe(self) -> str:
        """In a few words, for people."""
        said = [
            f"works {self.hours} o'clock" if self.hours else "",
            f"at most {self.memory_gb:g} GB of memory" if self.memory_gb else "",
            f"at most {self.gpu_memory_gb:g} GB of a GPU's memory" if self.gpu_memory_gb else "",
            f"at most {self.disk_gb:g} GB of disk" if self.disk_gb else "",
            f"uploads at most {self.up_mbit:g} Mbit/s" if self.up_mbit else "",
            f"computes {self.share:.0%} of the time" if self.share < 1 else "",
            f"may read the model in {self.model_folder}" if self.model_folder else "",
            f"experts of its own text: {self.weights}" if self.weights != "never" else "",
            f"epsilon at most {self.epsilon_at_most:g}" if self.epsilon_at_most else "",
        ]
        return ", ".join(words for words in said if words) or "none set"


def refuse(manifest: RunManifest, limits: Limits, *, on_gpu: bool) -> None:
    """Refuse a run that can't be done within the limits.

    Raises:
        UserError: with the first limit that is too small, and what the run needs.
    """
    memory = memory_need(manifest, on_gpu=on_gpu)
    for what, need, given, option in (
        ("memory", memory.host_bytes, limits.memory_gb, "--memory-gb"),
        ("GPU memory", memory.gpu_bytes, limits.gpu_memory_gb, "--gpu-memory-gb"),
        ("disk", disk_need(manifest), limits.disk_gb, "--disk-gb"),
    ):
        if given and need > given * GB:
            raise UserError(
                f"the run needs about {need / GB:.1f} GB of {what}, and this node may use "
                f"{given:g} GB: it takes no part; {option} sets another limit."
            )
    init = manifest.config.expert.init
    if init not in ("fresh", "seed") and not same_folder(init, limits.model_folder):
        raise UserError(
            f"the run begins its experts from a model in this machine's folder {init}, which it "
            f"would read and train further; if it may, say so with --model-folder {init}."
        )


def compute_device(asked: str, limits: Limits) -> str:
    """The device to compute on: one GPU where limits hold for a single process only."""
    if limits.one_process and asked in ("auto", "cuda") and is_gpu(asked):
        log.info("one GPU is used, since a share of the time or of its memory is limited")
        return "cuda:0"
    return asked


def same_folder(asked: str, allowed: str) -> bool:
    """Whether a folder that a run names is the one that it may read, links followed."""
    if not allowed:
        return False
    try:
        return Path(asked).resolve() == Path(allowed).expanduser().resolve()
    except OSError as error:
        raise WorldError(f"{asked} can't be looked at ({error.strerror or error}).") from error


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    name = shown(".".join(str(part) for part in problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"there is no limit called '{name}'; there are {', '.join(Limits.model_fields)}"
    return f"'{name}': {problem['msg']} (it is {shown(repr(problem['input']))})"
