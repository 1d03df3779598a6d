"""`smalltalk demo --private`: four silos whose text never leaves them, as real programs.

The bundled pack's eight domains are dealt out, two to a silo; each silo hosts two experts. A few
documents of each domain, which no silo gets, are the public text that the tokenizer is made of.
The coordinator knows the tokenizer and nothing else; every node is started with its own text
file. The owners of this demonstration give their experts to the operator, so that the mixture
can be evaluated whole: on each silo's held-out text, beside what the silo's own experts do.

Rules: those of `driver`: the programs are children, and none outlives this process.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smalltalk_fed.data.packs import unpack_small
from smalltalk_fed.demo import recipe
from smalltalk_fed.demo.children import Child, Children, program, tail
from smalltalk_fed.demo.driver import ending_politely
from smalltalk_fed.demo.folder import DemoFolder
from smalltalk_fed.demo.live import size
from smalltalk_fed.demo.running import POLL_S, START_S, free_ports
from smalltalk_fed.demo.stage import DemoOptions
from smalltalk_fed.demo.watching import StatusStream, wait_for_line
from smalltalk_fed.errors import WorldError

SILOS, EXPERTS_EACH = 4, 2
PUBLIC_DOCUMENTS = 12  # of each domain, for the tokenizer
LEAVE_S = 10.0
# As many tokens in all as with the shared demonstration's four experts.
PRIVATE = (
    'run.regime="private"',
    f"private.experts_of={json.dumps([EXPERTS_EACH] * SILOS)}",
    "router.chunk_sequences=5120",
    "expert.steps=300",
)
QUICK = (
    "router.chunk_sequences=1024",
    "expert.steps=30",
    "private.price_rounds=3",
    "private.heldout_sequences_min=2",
)


@dataclass(frozen=True)
class SiloText:
    """One silo's text file and the domains in it."""

    name: str
    domains: tuple[str, ...]
    file: Path


class SiloDemo:
    """One private demonstration in a claimed folder."""

    def __init__(self, folder: DemoFolder, options: DemoOptions, console: Console) -> None:
        """Raises ConfigError when the options make no valid run."""
        changes = (*PRIVATE, *(QUICK if options.preset == "quick" else ()), *options.settings)
        experts = SILOS * EXPERTS_EACH
        text = recipe.run_toml(options.preset, options.seed, experts, SILOS, changes)
        folder.config.write_text(text, encoding="utf-8")
        self._config = recipe.check(folder.config)
        self._folder, self._options, self._console = folder, options, console
        self._began = time.monotonic()

    def run(self) -> dict[str, Any]:
        """All of it; returns the report.

        Raises:
            WorldError: a program failed; the message ends with the end of its log.
        """
        with ending_politely(), Children(self._folder.logs) as children:
            silos = self._prepare(children)
            coordinator, nodes = self._start(children, silos)
            status = self._watch(children, coordinator, nodes)
            for node in nodes:  # they end by themselves once the run is over
                end = time.monotonic() + LEAVE_S
                while not node.ended and time.monotonic() < end:
                    time.sleep(0.1)
                children.end(node)
            children.end(coordinator)
            rows = self._evaluate(children, silos, status)
        return {
            "seed": self._options.seed,
            "command": self._options.command,
            "silos": rows,
            "bytes": {k: v for k, v in status["bytes"].items() if k != "rows"},
            "traffic": status["bytes"]["rows"],
            "prices": status["prices"],
            "evaluation": status["evaluation"],
            "seconds": time.monotonic() - self._began,
        }

    # ------------------------------------------------------------------------------ the steps

    def _prepare(self, children: Children) -> list[SiloText]:
        """The pack dealt out to silos' files, and the tokenizer made of public documents."""
        self._say("text is dealt out to four silos; a tokenizer is made of public documents")
        work = self._folder.work
        pack = unpack_small(self._folder.text)
        domains = sorted(path.stem for path in pack.glob("*.jsonl"))
        public: list[str] = []
        lines: dict[str, list[str]] = {}
        for domain in domains:
            every = (pack / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
            public += every[:PUBLIC_DOCUMENTS]
            lines[domain] = every[PUBLIC_DOCUMENTS:]
        _write(work / "public.jsonl", public)
        length = str(self._config.sequence.length)
        children.run(
            "prepare-tokenizer",
            [
                *(program("smalltalk"), "prepare", str(work / "public.jsonl")),
                *("--out", str(work / "public"), "--sequence-tokens", length),
                *("--vocabulary", str(recipe.VOCABULARY)),
            ],
        )
        silos = []
        for number in range(SILOS):
            mine = tuple(domains[2 * number : 2 * number + 2])
            file = work / f"silo-{number}.jsonl"
            _write(file, [line for domain in mine for line in lines[domain]])
            silos.append(SiloText(f"silo-{number}", mine, file))
        return silos

    def _start(self, children: Children, silos: list[SiloText]) -> tuple[Child, list[Child]]:
        """The coordinator with a tokenizer and no text; a node a silo with its own."""
        self._say("the coordinator starts, and a node at every silo")
        command, run = program("smalltalk-coordinator"), str(self._folder.coordinator)
        ports = free_ports(2)
        children.run(
            "coordinator-init",
            [
                *(command, "init", run, "--config", str(self._folder.config)),
                *("--tokenizer", str(self._folder.work / "public" / "tokenizer")),
                *("--run-address", f"127.0.0.1:{ports[0]}"),
                *("--enrol-address", f"127.0.0.1:{ports[1]}"),
            ],
        )
        coordinator = children.start("coordinator", [command, "serve", run])
        wait_for_line(coordinator, "serving ", START_S)
        asked = [command, "invite", run, "--uses", str(SILOS)]
        token = children.run("coordinator-invite", asked, watch=[coordinator]).strip()
        nodes = []
        for seat, silo in enumerate(silos):
            node, here = program("smalltalk-node"), str(self._folder.work / f"node-{seat}")
            joining = [node, "join", token, "--dir", here, "--name", silo.name]
            children.run(f"{silo.name}-join", joining, watch=[coordinator])
            nodes.append(
                children.start(
                    silo.name,
                    [
                        *(node, "run", "--dir", here, "--device", "cpu"),
                        *("--corpus", str(silo.file), "--seat", str(seat)),
                        *("--weights", "operator"),
                    ],
                )
            )
        return coordinator, nodes

    def _watch(self, children: Children, coordinator: Child, nodes: list[Child]) -> dict[str, Any]:
        """Follow the run to its end; returns the last status."""
        command = [program("smalltalk-coordinator"), "status", str(self._folder.coordinator)]
        stream = StatusStream(children, [*command, "--json", "--watch", "--every-s", str(POLL_S)])
        shown = ""
        while True:
            all_left = all(node.ended for node in nodes)
            status = stream.next()
            if (where := _where(status)) != shown:
                shown = where
                self._say(where)
            if status["phase"] in ("failed", "paused"):
                raise WorldError(f"the run stopped: {status['reason']}.{tail(coordinator.log)}")
            if status["phase"] == "finished" and status.get("mixture"):
                stream.close()
                return status
            if all_left and status["phase"] != "finished":
                raise WorldError(f"all nodes left before the end.{tail(nodes[0].log)}")

    def _evaluate(
        self, children: Children, silos: list[SiloText], status: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The mixture on every silo's held-out text, and where that text goes."""
        self._say("the mixture is evaluated on each silo's held-out text")
        status["mixture"] = str(Path(status["mixture"]).rename(self._folder.mixture))
        rows = []
        for seat, silo in enumerate(silos):
            (text,) = (self._folder.work / f"node-{seat}" / "text").iterdir()
            asked = [
                *(program("smalltalk"), "evaluate", str(self._folder.mixture)),
                *("--corpus", str(text), "--device", "cpu", "--json"),
            ]
            found: dict[str, Any] = json.loads(children.run(f"evaluate-{silo.name}", asked))
            row = status["seats"][seat]
            rows.append(
                {
                    "silo": silo.name,
                    "domains": list(silo.domains),
                    "train_sequences": row["train_sequences"],
                    "heldout_sequences": row["heldout_sequences"],
                    "away": row["away"],
                    "evaluation": found,
                }
            )
        return rows

    def _say(self, what: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._began:5.0f} s[/dim]  {what}")


def print_summary(console: Console, report: dict[str, Any]) -> None:
    """The table of the silos, and what travelled."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("silo", "text", "train", "held out", "goes elsewhere", "perplexity"):
        table.add_column(title, justify="left" if title in ("silo", "text") else "right")
    for row in report["silos"]:
        away = row["away"]
        table.add_row(
            row["silo"],
            " + ".join(domain.replace("_", " ") for domain in row["domains"]),
            f"{row['train_sequences']:,}",
            f"{row['heldout_sequences']:,}",
            "" if away is None else f"{away:.0%}",
            f"{row['evaluation']['mixture']['suffix_ppl']:.2f}",
        )
    moved = report["bytes"]
    console.print("")
    console.print(table)
    console.print("")
    console.print(
        f"{size(moved['coordination_up'] + moved['coordination_down'])} of routers, counts and "
        f"messages travelled, and {size(moved['weights_up'])} of experts, which their owners "
        "gave; no text, no ids, no scores."
    )


def _where(status: dict[str, Any]) -> str:
    match status["phase"]:
        case "recruiting":
            return "the nodes turn their texts into tokens, and take their seats"
        case "routing":
            return f"routers learn where their text is: block {status['block']} of " + str(
                status["blocks"]
            )
        case "training":
            fifth = int(5 * _trained(status) / status["experts"])  # a line each is enough
            return f"experts train, each on its silo's text: {20 * fifth}% done"
        case "evaluating":
            return "silos sum up losses on their held-out text"
        case _:
            return f"the run is {status['phase']}"


def _trained(status: dict[str, Any]) -> float:
    """How many experts are trained, parts included."""
    parts = [node["fraction"] for node in status["nodes"] if node["unit"]]
    return min(len(status["experts_done"]) + sum(parts), float(status["experts"]))


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
