"""The one style of all figures: a method has one colour and one marker everywhere; and how a figure is kept.

With `tables`, the only writer under figures/.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from symprune.base import paths
from symprune.base.files import write_whole
from symprune.paper.tables import measurements

# By name: scores, then what becomes of a mask or of the weights after it. The commonest have Okabe and Ito's
# colours, which can be told apart with any common colour vision; markers tell them apart in print.
METHODS = {
    "dense": ("#000000", "_"),
    "none": ("#4D4D4D", "o"),
    "magnitude": ("#999999", "o"),
    "wanda": ("#0072B2", "s"),
    "ria": ("#D55E00", "D"),
    "stochria": ("#E69F00", "^"),
    "symwanda": ("#56B4E9", "v"),
    "owanda": ("#7A4A1E", "P"),
    "ri": ("#F2A6A0", "X"),
    "symmetric": ("#CC79A7", "*"),
    "lp_norm": ("#B3A800", "<"),
    "general_diagonal": ("#6A3D9A", ">"),
    "dsnot": ("#8C1C3C", "s"),
    "r2dsnot": ("#009E73", "D"),
    "exact_swap": ("#E0218A", "^"),
    "sketch_swap": ("#8F7CF7", "v"),
    "refit": ("#1B2A6B", "P"),
    "symmetric_refit": ("#00A0B0", "*"),
    "sparsegpt": ("#5E7A1F", "X"),
}
# What is no method, such as a group or a norm, has none of their colours.
GREYS = [("#000000", "o"), ("#606060", "s"), ("#A0A0A0", "^"), ("#303030", "D"), ("#808080", "v")]

STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Picture:
    """A figure and its words: a caption that explains every mark, and what it shows to those who cannot see
    it (`alt`).
    """

    figure: Figure
    caption: str
    alt: str

    def _ipython_display_(self) -> None:
        from IPython.display import Markdown, display

        display(self.figure)
        display(Markdown(f"*{self.caption}*"))


def method_style(method: str) -> dict:
    """Colour and marker of a score or refiner by its name; variants share the colour of their method and are
    not filled.

    "ria + r2dsnot" is drawn as what was done last, r2dsnot.
    """
    last = method.rsplit(" + ", 1)[-1]
    colour, marker = METHODS.get(re.match(r"\w*", last)[0], GREYS[0])
    variant = re.search(r"[(,]", last)
    return {"color": colour, "marker": marker, "markerfacecolor": "white" if variant else colour}


def plain_log_ticks(ax: Axes, which: str) -> None:
    """Ticks at round numbers within the axis, written out, few enough not to collide."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps: Sequence[int] = (
        (1, 2, 5) if math.log10(high / low) < 1.5 else (1, 3) if math.log10(high / low) < 2.2 else (1,)
    )
    ticks = [tick for d in decades for step in steps if low <= (tick := step * 10.0**d) <= high]
    if len(ticks) < 3 and high < 10 * low:  # a narrow range: evenly spaced instead
        ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}" if value >= 1 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def save_figure(picture: Picture, profile: str, name: str, data: pd.DataFrame | None = None) -> Picture:
    """Write fig_<name>.png and .pdf, whole and the same bytes for the same figure, and as .csv the data that
    no table holds; returns the picture.

    Caption and alternative text are kept inside the PNG, see `words_of`.
    """
    folder = paths.figures(profile)
    folder.mkdir(parents=True, exist_ok=True)
    words = {"Software": None, "Title": picture.caption, "Description": picture.alt}
    with plt.rc_context(STYLE):  # resolution and fonts are read as a figure is saved, not as it is drawn
        png, pdf = (folder / f"fig_{name}.{kind}" for kind in ("png", "pdf"))
        picture.figure.savefig(png, metadata=words)
        if box := _cut(picture.figure):
            picture.figure.savefig(png, metadata=words, bbox_inches=box)
        picture.figure.savefig(pdf, metadata={"CreationDate": None, "Title": name}, bbox_inches=box)
    if data is not None:
        write_whole(folder / f"fig_{name}.csv", measurements(data).to_csv(index=False))
    plt.close(picture.figure)  # the caller shows it once, by returning it
    return picture


def words_of(png: Path) -> tuple[str, str]:
    """Caption and alternative text that `save_figure` kept in a PNG; empty where there are none."""
    from PIL import Image

    with Image.open(png) as image:
        return image.info.get("Title", ""), image.info.get("Description", "")


def _cut(figure: Figure) -> str | None:
    """ "tight" where something drawn sticks out of the figure: its layout makes no room for an axis label
    that is longer than the axis.
    """
    shown = figure.dpi
    figure.dpi = STYLE["savefig.dpi"]  # at another resolution words are not as wide
    drawn, canvas = figure.get_tightbbox(), figure.bbox_inches
    figure.dpi = shown
    inside = (drawn.min >= canvas.min).all() and (drawn.max <= canvas.max).all()
    return None if inside else "tight"
