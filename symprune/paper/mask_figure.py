"""A picture of one mask: where in a linear its kept weights are."""

import matplotlib.pyplot as plt
from torch import nn

from symprune.base.types import Mask
from symprune.paper.style import STYLE, Picture

_BLOCKS = 64  # the picture has at most so many blocks to a side


def kept_weights(mask: Mask, name: str = "") -> Picture:
    """The share of weights kept in each block of a mask, and beside it in each row and each column.

    name: of the linear, for the title.
    """
    shares = mask.detach().cpu().float()
    d_out, d_in = shares.shape
    blocks = nn.functional.adaptive_avg_pool2d(shares[None], (min(d_out, _BLOCKS), min(d_in, _BLOCKS)))[0]
    by_row, by_column = shares.mean(dim=1).numpy(), shares.mean(dim=0).numpy()
    with plt.rc_context(STYLE):
        fig, ((top, corner), (image, side)) = plt.subplots(
            2, 2, figsize=(5.5, 4.5), layout="constrained", width_ratios=(4, 1), height_ratios=(1, 4)
        )
        corner.remove()
        shown = image.imshow(
            blocks.numpy(), cmap="Greys", vmin=0, vmax=1, extent=(0, d_in, d_out, 0), aspect="auto"
        )
        image.grid(False)
        image.set(xlabel="column (input)", ylabel="row (output)")
        top.plot(range(d_in), by_column, color="black", linewidth=0.5)
        top.set(xlim=(0, d_in), ylim=(0, 1), ylabel="kept", xticklabels=[])
        top.set_title(name, loc="left")
        side.plot(by_row, range(d_out), color="black", linewidth=0.5)
        side.set(ylim=(d_out, 0), xlim=(0, 1), xlabel="kept", yticklabels=[])
        fig.colorbar(shown, ax=side, label="share kept in a block")
    plt.close(fig)  # shown once, by the picture
    caption = (
        f"Where the kept weights of {name or 'a linear'} are, {d_out} rows by {d_in} columns: darker blocks"
        f" keep more of their weights. Above, the share kept of each column, {by_column.min():.0%} to"
        f" {by_column.max():.0%}; at the right, of each row, {by_row.min():.0%} to {by_row.max():.0%}."
    )
    return Picture(fig, caption, f"A map of the kept weights of {name or 'a linear'}.")
