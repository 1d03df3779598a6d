"""What the person sees while the demonstration works: phase, nodes, bytes, time left.

On a terminal one live picture; elsewhere (a pipe, CI) a line when a step begins or ends,
and one every half a minute. It is told everything and asks for nothing.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from smalltalk_fed.demo.plan import TITLES, Plan, Step

LINE_EVERY_S = 30.0


class DemoView:
    """The picture; `begin`, `update` and `end` follow the steps."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self._console, self._plan = console, plan
        self._started = time.monotonic()
        self._step: Step | None = None
        self._step_started = self._started
        self._detail = ""
        self._status: dict[str, Any] = {}
        self._last_line = self._started
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._live.stop()

    def begin(self, step: Step) -> None:
        """A step begins."""
        self._step, self._step_started, self._detail = step, time.monotonic(), ""
        self._plan.done.setdefault(step, 0.0)
        if not self._console.is_terminal:
            self._console.print(f"{self._clock()}  {TITLES[step]} …")

    def update(
        self, fraction: float, detail: str = "", status: dict[str, Any] | None = None
    ) -> None:
        """How far the step is; `status` is the coordinator's, where it was asked."""
        if self._step is None:
            return
        self._plan.done[self._step] = min(1.0, max(0.0, fraction))
        self._detail = detail
        if status is not None:
            self._status = status
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > LINE_EVERY_S:
            self._last_line = now
            self._console.print(
                f"{self._clock()}  {detail or TITLES[self._step]}  about {self._left()} left"
            )

    def end(self, said: str = "") -> float:
        """The step is over; returns its seconds and leaves one line on the screen."""
        assert self._step is not None
        seconds = time.monotonic() - self._step_started
        self._plan.finish(self._step, seconds)
        line = Text.assemble(
            ("✓ ", "green"), f"{TITLES[self._step]:<46}", (f"{seconds:6.1f} s", "cyan")
        )
        if said:
            line.append(f"   {said}", "dim")
        self._console.print(line, soft_wrap=True)
        self._step = None
        return seconds

    # ------------------------------------------------------------------------- rendering

    def _clock(self) -> str:
        return _minutes(time.monotonic() - self._started)

    def _left(self) -> str:
        if self._step is None:
            return "…"
        return _minutes(self._plan.left_s(self._step, time.monotonic() - self._step_started))

    def _render(self) -> RenderableType:
        if self._step is None:
            return Text("")
        time_left = Table.grid(padding=(0, 2))
        time_left.add_row(
            ProgressBar(total=1.0, completed=self._plan.fraction, width=36),
            Text(f"{self._clock()} gone, about {self._left()} left", "dim"),
        )
        doing = Text.assemble((TITLES[self._step], "bold"), "  ", (self._detail, "cyan"))
        parts: list[RenderableType] = [Text(""), doing, time_left]
        if self._step in (Step.ROUTING, Step.SHARDING, Step.TRAINING, Step.EVALUATING):
            parts += [Text(""), self._nodes(), self._bytes()]
        return Group(*parts)

    def _nodes(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
        for title in ("node", "doing", "", "tokens/s", "loss", "up", "down"):
            table.add_column(title, justify="right" if title in _NUMBERS else "left")
        moved = _moved_by_node(self._status.get("bytes") or {})
        for node in self._status.get("nodes") or []:
            figures = node.get("figures") or {}
            up, down = moved.get(node["node_id"], (0, 0))
            table.add_row(
                escape(node.get("name") or node["node_id"]),
                escape(_doing(node)),
                ProgressBar(total=1.0, completed=node.get("fraction") or 0.0, width=14),
                _number(figures.get("tokens_per_s"), ",.0f"),
                _number(figures.get("loss"), ".2f"),
                size(up),
                size(down),
            )
        return table

    def _bytes(self) -> RenderableType:
        moved = self._status.get("bytes") or {}
        return Text(
            f"so far: coordination {size(moved.get('coordination_up', 0))} up, "
            f"{size(moved.get('coordination_down', 0))} down · "
            f"weights {size(moved.get('weights_up', 0))} up, "
            f"{size(moved.get('weights_down', 0))} down · no text",
            "dim",
        )


_NUMBERS = ("tokens/s", "loss", "up", "down")


def size(count: float) -> str:
    """Bytes for people: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def phase_fraction(status: dict[str, Any]) -> float:
    """How far the present phase of a run is, 0..1."""
    units = status.get("units") or {}
    finished = units.get("finished", 0)
    total = finished + units.get("open", 0) + units.get("leased", 0)
    busy: dict[str, float] = {}
    for node in status.get("nodes") or []:
        if node.get("unit"):  # of copies of a unit the furthest counts
            busy[node["unit"]] = max(busy.get(node["unit"], 0.0), node.get("fraction") or 0.0)
    here = min(1.0, (finished + sum(busy.values())) / total) if total else 0.0
    if status.get("phase") == Step.ROUTING and status.get("rounds"):
        return (max(0, status.get("round", 0) - 1) + here) / status["rounds"]
    return here


def _moved_by_node(moved: dict[str, Any]) -> dict[str, tuple[int, int]]:
    sums: dict[str, tuple[int, int]] = {}
    for row in moved.get("rows") or []:
        up, down = sums.get(row["node_id"], (0, 0))
        if row["direction"] == "up":
            up += row["bytes"]
        else:
            down += row["bytes"]
        sums[row["node_id"]] = (up, down)
    return sums


def _doing(node: dict[str, Any]) -> str:
    if not node.get("present"):
        return "not heard of"
    kind, *rest = (node.get("unit") or "").split("/")
    match kind, rest:
        case "router_round", [expert, number]:
            return f"router {expert}, round {number}"
        case "shard", ["heldout"]:
            return "routes the held-out text"
        case "shard", [index]:
            return f"shards slice {index}"
        case "train_expert", [expert]:
            return f"trains expert {expert}"
        case "train_seed", _:
            return "trains the seed"
        case "evaluate", [expert]:
            return f"evaluates expert {expert}"
        case "audit", [_, *_]:
            return "looks at another's work"
    return "waits"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
