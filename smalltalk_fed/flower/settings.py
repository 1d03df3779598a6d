"""What Flower hands our apps: the run config of `flwr run`, the node config of a SuperNode.

    run config    run-dir, corpus, config, settings, turn-s                 docs/carriers.md
                  node-dir, node-text, node-weights                         of simulated nodes
    node config   dir, corpus, public, seat, weights, device, name          of a SuperNode
                  partition-id                                              of a simulated node

Rules: paths are absolute, since Flower starts apps in folders of its own; a SuperNode's owner
names the node's folder and text and who may have the experts of that text; the run does so only
for the nodes of a simulation, which are on the run's own machine: node k sits in seat k there. A
key that is missing or wrong is named in one sentence.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smalltalk_fed.config.loading import load_config
from smalltalk_fed.errors import UserError, shown
from smalltalk_fed.host.addresses import Addresses
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.worksite.machine import is_gpu, machine_name

Values = Mapping[str, bool | float | int | str]

PARTITION = "partition-id"
OWNERS = frozenset({"dir", "corpus"})  # who names these is an owner, whatever else is named
NUMBER = "{}"  # in node-text: where a simulated node's number goes
ANY_SEAT = -1
TURN_LEAST_S = 0.001
# A run folder names where nodes dial its coordinator. Over Flower nobody does; a run that goes on
# over the native carrier is given others with `smalltalk-coordinator addresses`.
UNDIALLED = Addresses("127.0.0.1:7070", "127.0.0.1:7071")


@dataclass(frozen=True)
class RunSettings:
    """Of the ServerApp."""

    run_dir: Path
    corpus: Path | None
    config: Path | None
    settings: tuple[str, ...]
    turn_s: float

    @classmethod
    def of(cls, values: Values) -> RunSettings:
        """Raises UserError: a key is missing or wrong."""
        turn_s = values.get("turn-s", 600.0)
        if isinstance(turn_s, bool | str) or turn_s < TURN_LEAST_S:
            raise UserError(f"the run config's turn-s must be {TURN_LEAST_S} seconds or more.")
        run_dir = _path(values, "run-dir", "run config")
        if run_dir is None:
            raise UserError(
                "the run config names no folder for the run; add --run-config 'run-dir=\"/path\"'."
            )
        return cls(
            run_dir,
            _path(values, "corpus", "run config"),
            _path(values, "config", "run config"),
            tuple(shlex.split(_text(values, "settings", "run config"))),
            float(turn_s),
        )

    def folder(self, now: float) -> RunFolder:
        """The run's folder; made if it is not there yet.

        Raises:
            UserError: it can't be used, or there is nothing to make it from.
            WorldError: the disk refuses.
        """
        if self.run_dir.exists() and any(self.run_dir.iterdir()):
            return RunFolder.open(self.run_dir)
        if self.corpus is None:
            raise UserError(
                f"{self.run_dir} is not a run folder yet; name the corpus to make it from with "
                "--run-config 'corpus=\"/path\"'."
            )
        config = load_config(self.config, self.settings)
        text = self.config.read_text(encoding="utf-8") if self.config else "# the defaults\n"
        text += "".join(f"# --set {setting}\n" for setting in self.settings)
        return RunFolder.create(self.run_dir, config, text, self.corpus, UNDIALLED, now)


@dataclass(frozen=True)
class NodeSettings:
    """Of the ClientApp, on one node.

    `corpus`: the run's, or in a private run this node's own text; `public`: the corpus folder of a
    private run's public text. `seat` -1: any. `weights`: who may have the experts of this node's
    text; empty: as `limits.toml` says.
    """

    folder: Path
    corpus: Path
    device: str
    name: str
    public: Path | None = None
    seat: int = -1
    weights: str = ""

    @classmethod
    def of(cls, node: Values, run: Values) -> NodeSettings:
        """`node`: the node config; `run`: the run config. Raises UserError."""
        simulated = PARTITION in node and not OWNERS.intersection(node)
        values = _simulated(node, run) if simulated else node
        folder, corpus, public = (
            _path(values, key, "node config") for key in ("dir", "corpus", "public")
        )
        if folder is None or corpus is None:
            keys = "--run-config 'node-dir" if simulated else "--node-config 'dir"
            raise UserError(
                "this node does not know its folder and its corpus; name them with "
                f'{keys}="/path" corpus="/path"\'.'
            )
        device, name, weights = (
            _text(values, key, "node config") for key in ("device", "name", "weights")
        )
        seat = values.get("seat", ANY_SEAT)
        if type(seat) is not int or seat < ANY_SEAT:
            raise UserError(f"the node config's 'seat' must be a number from 0 (it is {seat!r}).")
        name = name or machine_name()
        return cls(folder, corpus, device or "auto", name, public, seat, weights)

    @property
    def on_gpu(self) -> bool:
        """Whether an NVIDIA GPU will compute, as far as can be known without torch."""
        return is_gpu(self.device)


def _simulated(node: Values, run: Values) -> Values:
    """The node config of a simulated node, whose organiser is the run's."""
    number = int(node[PARTITION])
    values: dict[str, bool | float | int | str] = {"name": f"node-{number}", "seat": number}
    values |= node
    run_dir, nodes = (_path(run, key, "run config") for key in ("run-dir", "node-dir"))
    if nodes is None and run_dir is not None:
        nodes = run_dir.with_name(f"{run_dir.name}-nodes")
    if nodes is not None:
        values["dir"] = str(nodes / str(values["name"]))
    if corpus := _path(run, "corpus", "run config"):
        values["corpus"] = values["public"] = str(corpus)
    if text := _text(run, "node-text", "run config"):
        if NUMBER not in text:
            raise UserError(
                f"the run config's 'node-text' must have {NUMBER} where a node's number goes, "
                f"since each has a text of its own (it is {shown(text)})."
            )
        values["corpus"] = text.replace(NUMBER, str(number))
    if weights := _text(run, "node-weights", "run config"):
        values["weights"] = weights
    return values


def _text(values: Values, key: str, where: str) -> str:
    value = values.get(key, "")
    if not isinstance(value, str):
        raise UserError(f"the {where}'s '{key}' must be a text (it is {shown(repr(value))}).")
    return value


def _path(values: Values, key: str, where: str) -> Path | None:
    text = _text(values, key, where)
    if not text:
        return None
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise UserError(
            f"the {where}'s '{key}' must be a whole path, since Flower starts apps in folders of "
            f"its own (it is {shown(text)})."
        )
    return path
