"""The one style of all figures: the same method has the same colour and marker everywhere.

With `tables`, the only writer under figures/.
"""

import math
import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from symprune.base import paths
from symprune.base.files import write_whole
from symprune.paper.tables import measurements

# Okabe and Ito's colours can be told apart with any common colour vision; markers tell them apart in print.
COLOURS = [
    "#000000",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7F7F7F",
    "#8B5E00",
    "#B3A800",
]
MARKERS = "osD^vP*X<>"
# Place in the lists above: scores, then refiners (which never share a legend with scores).
_PLACES = {
    name: place
    for names in (
        [
            "magnitude",
            "wanda",
            "ria",
            "stochria",
            "symwanda",
            "owanda",
            "ri",
            "symmetric",
            "lp_norm",
            "general_diagonal",
        ],
        ["none", "dsnot", "r2dsnot", "exact_swap"],
    )
    for place, name in enumerate(names)
}

STYLE = {
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


def method_style(method: str) -> dict:
    """Colour and marker of a score or refiner by its name; variants of one family share the colour and are
    filled differently.
    """
    place = _PLACES.get(re.match(r"\w*", method)[0], len(COLOURS) - 1)
    colour = COLOURS[place]
    return {
        "color": colour,
        "marker": MARKERS[place],
        "markerfacecolor": "white" if re.search("[(+]", method) else colour,
    }


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


def save_figure(fig: Figure, profile: str, name: str, data: pd.DataFrame | None = None) -> Figure:
    """Write fig_<name>.png and .pdf, the same bytes for the same figure, and as .csv the data that no table
    holds; returns the figure.
    """
    folder = paths.figures(profile)
    folder.mkdir(parents=True, exist_ok=True)
    fig.savefig(folder / f"fig_{name}.png", metadata={"Software": None})
    fig.savefig(folder / f"fig_{name}.pdf", metadata={"CreationDate": None})
    if data is not None:
        write_whole(folder / f"fig_{name}.csv", measurements(data).to_csv(index=False))
    plt.close(fig)  # the caller shows it once, by returning it
    return fig
