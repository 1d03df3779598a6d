"""Colours and the way from a matplotlib figure to SVG that follows the page's theme.

Rules: an expert has one colour everywhere; ink, muted text, grid and paper are stand-in
colours that become CSS variables in the SVG, so that one picture serves light and dark;
text stays text; the SVG refers to nothing outside itself. matplotlib is used without pyplot:
no global state, no display.
"""

from __future__ import annotations

import io
import re

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#111213", "#6b6e73", "#d4d6d9", "#fdfdfe"
ACCENT = "#4a5bd4"  # the mixture
DENSE = "#94989f"  # the dense model, and all that is not ours
EXPERTS = (
    "#2a9d8f",
    "#e9a23b",
    "#c8553d",
    "#8a6fd1",
    "#5aa0d8",
    "#8fb339",
    "#c77dba",
    "#8d7b68",
)

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    ACCENT: "--accent",
}
_SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
}


def expert_colour(expert: int) -> str:
    """The colour of an expert; they repeat after eight."""
    return EXPERTS[expert % len(EXPERTS)]


class Drawing:
    """A figure in the report's style; use as a context while drawing and saving."""

    def __init__(self, width: float, height: float) -> None:
        """Size in inches."""
        self._context = rc_context(_SETTINGS)
        self._size = (width, height)

    def __enter__(self) -> Figure:
        self._context.__enter__()
        return Figure(figsize=self._size, layout="constrained")

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)


def quiet(ax: Axes, grid: str = "y") -> None:
    """Light grid behind the data along one axis, no tick marks."""
    ax.grid(axis=grid)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.tick_params(length=0)


def to_svg(figure: Figure, name: str) -> str:
    """`figure` as an <svg> element; `name` keeps its ids apart from other figures'."""
    out = io.StringIO()
    with rc_context({**_SETTINGS, "svg.hashsalt": name}):
        FigureCanvasSVG(figure)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"<svg {_role(name)} \1>", text, count=1)
    # matplotlib numbers its groups anew in every figure.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    # Fonts are the page's; sizes stay.
    return re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", text)


def to_png(figure: Figure, dots_per_inch: int = 160) -> bytes:
    """`figure` as PNG bytes on white."""
    out = io.BytesIO()
    with rc_context(_SETTINGS):
        FigureCanvasAgg(figure)
        figure.savefig(out, format="png", dpi=dots_per_inch, facecolor="white")
    return out.getvalue()


def _role(name: str) -> str:
    return f'class="figure" role="img" aria-label="{name.replace("-", " ")}"'
