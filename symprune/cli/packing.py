"""The commands on packed folders: pack, unpack."""

import argparse
from pathlib import Path

from symprune import models
from symprune.base.errors import UserError
from symprune.base.files import require_disk, require_free, whole_folder
from symprune.cli.common import Answer
from symprune.models import packed
from symprune.models.folder import weight_files


def run_pack(args: argparse.Namespace) -> Answer:
    """Write a model's folder without its zeros."""
    out = Path(args.out)
    require_free(out, "--out")
    folder = models.locate(args.model)
    if packed.is_packed(folder):
        raise UserError(f"{folder} is packed already")
    require_disk(out, sum(file.stat().st_size for file in weight_files(folder)))
    with whole_folder(out) as work:
        sizes = packed.pack(folder, work)
    ratio = sizes.packed / sizes.plain
    facts = {"out": args.out, "bytes": sizes.packed, "bytes_before": sizes.plain, "ratio": ratio}
    return Answer(
        facts,
        f"weights of {sizes.plain / 1e6:.1f} MB packed into {sizes.packed / 1e6:.1f} MB ({ratio:.2f}), saved"
        f" to {out}; symprune reads it as any model, `symprune unpack` makes it one for all others",
    )


def run_unpack(args: argparse.Namespace) -> Answer:
    """Write a packed folder as it was before."""
    out, folder = Path(args.out), Path(args.folder)
    require_free(out, "--out")
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give a folder that `symprune pack` wrote")
    sizes = packed.packed_sizes(folder)
    require_disk(out, sizes.plain)
    with whole_folder(out) as work:
        packed.unpack(folder, work)
    facts = {"out": args.out, "bytes": sizes.plain}
    return Answer(facts, f"weights of {sizes.plain / 1e6:.1f} MB, every byte as before, saved to {out}")
