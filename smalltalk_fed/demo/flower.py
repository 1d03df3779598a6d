"""The command `smalltalk demo-flower`: the demonstration's run over Flower, on this machine.

A SuperLink and SuperNodes run as processes with TLS and node authentication, and Flower starts
our two apps in them. No dense model, no report: docs/carriers.md says what is compared where.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.markup import escape

from smalltalk_fed.data.corpus import LABELS_FILE, SOURCE_FILE, labels_file
from smalltalk_fed.data.packs import unpack_small
from smalltalk_fed.demo import recipe
from smalltalk_fed.demo.children import Children, program, tail
from smalltalk_fed.demo.driver import ending_politely
from smalltalk_fed.demo.federation import Federation
from smalltalk_fed.demo.folder import DemoFolder, claim
from smalltalk_fed.demo.recipe import Preset
from smalltalk_fed.errors import SmalltalkError, WorldError
from smalltalk_fed.flower.app_folder import write_app
from smalltalk_fed.host.clock import SystemClock
from smalltalk_fed.host.folder import RunFolder
from smalltalk_fed.host.offline import status_offline

RUN_LIMIT_S = 4 * 3600.0
LOOK_EVERY_S, SAY_EVERY_S, JOIN_S = 5.0, 20.0, 5.0
# Every turn over Flower is a process of its own, which costs seconds: few and long ones, and no
# second opinions, since everybody here is one.
QUICK = ("router.rounds=2", "router.chunk_sequences=4096", "audit.rate=0.0")


def demo_flower(
    out: Annotated[Path, typer.Option(help="Folder for the mixture and logs.")] = Path(
        "demo-flower"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything that is random.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, max=16, help="SuperNodes, and experts.")] = 4,
    preset: Annotated[
        Preset,
        typer.Option(help="quick: a few minutes, the machinery alone; full: the demo's run."),
    ] = "quick",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one key of the run: --set expert.steps=300"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print flower-history.json, all else to stderr.")
    ] = False,
) -> None:
    """Train a small mixture over Flower: SuperLink, SuperNodes, TLS and node authentication."""
    console = Console(stderr=as_json, highlight=False)
    for package in ("flwr", "torch"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{package} is not installed", name=package)
    folder, _ = claim(out)
    changes = (*(QUICK if preset == "quick" else ()), *(settings or ()))
    text = recipe.run_toml(preset, seed, nodes, nodes, changes)
    folder.config.write_text(text, encoding="utf-8")
    length = recipe.check(folder.config).sequence.length
    began = time.monotonic()
    environment = Federation.environment(folder.work)
    with (
        ending_politely(),
        Children(folder.logs, environment) as children,
        Progress(console, folder.coordinator) as progress,
    ):
        progress.step("the text pack becomes a corpus")
        prepare(folder, children, length)
        progress.step("a SuperLink starts, with TLS and node authentication")
        federation = Federation(folder.work, children)
        federation.start()
        for number in range(1, nodes + 1):
            name = f"node-{number}"
            progress.step(f"{name}'s key is registered, and its SuperNode starts")
            where = {"dir": str(folder.node(number).absolute()), "name": name, "device": "cpu"}
            corpus = str(folder.node_corpus.absolute())
            federation.add_node(name, where | {"corpus": corpus})
        progress.step("the run is handed in with `flwr run`")
        app = write_app(folder.work / "app")
        run_id = federation.submit(
            app,
            run_dir=str(folder.coordinator.absolute()),
            corpus=str(folder.node_corpus.absolute()),
            config=str(folder.config.absolute()),
        )
        progress.step(f"Flower's run {run_id} is under way; each turn is a process of its own")
        mixture = folder.coordinator / "mixture"
        line = federation.wait(run_id, RUN_LIMIT_S, mixture.exists)
        (folder.logs / "flower-run.log").write_text(federation.log(run_id), encoding="utf-8")
        if line["status"] != "finished:completed":
            raise WorldError(
                f"the Flower run ended as {line['status']}.{tail(folder.logs / 'flower-run.log')}"
            )
    shutil.copytree(mixture, folder.mixture)
    history = json.loads((folder.coordinator / "flower-history.json").read_text())
    (folder.path / "flower-history.json").write_text(json.dumps(history, indent=1) + "\n")
    folder.remove_work()
    if as_json:
        typer.echo(json.dumps(history, indent=1))
    _say(console, folder, history, time.monotonic() - began)


class Progress:
    """Sentences about what is done: at each news, and at least every half minute.

    Where the run is stands in its journal. The journal is the ServerApp's; reading it disturbs
    nobody, and costs little every few seconds. A thread looks, since commands of Flower's take
    seconds, on a busy machine a minute.
    """

    def __init__(self, console: Console, run: Path) -> None:
        self._console, self._run = console, run
        self._began = self._said_at = time.monotonic()
        self._doing = self._last = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(JOIN_S)

    def step(self, sentence: str) -> None:
        """What is done from now on."""
        self._doing = sentence
        self._say(sentence)

    def _say(self, sentence: str) -> None:
        self._said_at = time.monotonic()
        minutes, seconds = divmod(int(self._said_at - self._began), 60)
        self._console.print(f"{minutes}:{seconds:02d}  {escape(sentence)}", soft_wrap=True)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            found = self._where()
            late = time.monotonic() - self._said_at > SAY_EVERY_S
            if found != self._last or late:
                self._last = found
                self._say(found or f"still at it: {self._doing}")

    def _where(self) -> str:
        """Where the run is; empty while there is none."""
        try:
            status = status_offline(RunFolder.open(self._run), SystemClock())
        except (SmalltalkError, OSError):
            return ""
        units, phase = status["units"], status["phase"]
        if phase == "routing":
            phase = f"routing, round {status['round']} of {status['rounds']}"
        total = units["finished"] + units["open"] + units["leased"]
        return f"{phase}: {units['finished']} of {total} units done"


def prepare(folder: DemoFolder, children: Children, length: int) -> None:
    """The text pack becomes a corpus without labels."""
    unpack_small(folder.text)
    children.run(
        "prepare",
        [
            *(program("smalltalk"), "prepare", str(folder.text)),
            *("--out", str(folder.corpus), "--sequence-tokens", str(length)),
            *("--vocabulary", str(recipe.VOCABULARY), "--label-field", "domain"),
            *("--split-field", "split", "--json"),
        ],
    )
    labels = (LABELS_FILE, labels_file("train"), labels_file("heldout"), SOURCE_FILE)
    shutil.copytree(folder.corpus, folder.node_corpus, ignore=shutil.ignore_patterns(*labels))


def _say(console: Console, folder: DemoFolder, history: dict[str, Any], seconds: float) -> None:
    for number, row in history["rounds"].items():
        console.print(
            f"  round {number}: router loss {row['router-loss']:.3f}, "
            f"{row['displaced-fraction']:.0%} displaced"
        )
    found = history["evaluation"] or {}
    moved = history["bytes"]
    console.print(
        f"Held-out perplexity {found.get('suffix_ppl', float('nan')):.2f} of the suffix; "
        f"{moved['coordination_up'] + moved['coordination_down']:,} bytes of coordination; "
        f"{seconds:.0f} s in all."
    )
    console.print(f"The mixture is in {escape(str(folder.mixture))}.", soft_wrap=True)
