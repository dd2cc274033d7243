"""R2-DSnoT against DSnoT, and each against the mask that it started from, over draws of calibration text.

SmolLM2-135M in the cpu profile's sizes, 60 % of each row, 18 evaluation articles; records are kept
under results/refiners, so that it goes on where it stopped:

    python benchmarks/refiners.py [--draws 10] [--literal]
"""

import argparse
from dataclasses import replace

from symprune import RIA, DSnoT, Recipe, Unstructured, Wanda
from symprune.base.files import write_whole
from symprune.base.paths import output
from symprune.measure import Experiment, Protocol
from symprune.methods.refine import AS_PUBLISHED
from symprune.paper.profiles import load_profile
from symprune.paper.verdicts import Claim, judge_all

STARTS = {"wanda": Wanda(), "ria": RIA(alpha=1.0)}
REFINERS = {
    "none": None,
    "dsnot": DSnoT(max_cycles=50, cycles_for_width=4096),
    "r2dsnot": replace(AS_PUBLISHED, cycles_for_width=4096),
}
LITERAL = {"dsnot, 50": DSnoT(max_cycles=50, cycles_for_width=None), "r2dsnot, 50": AS_PUBLISHED}
CLAIMS = [
    Claim("r2dsnot_below_dsnot", "R2-DSnoT loses less than DSnoT", "r2dsnot", "dsnot"),
    Claim("dsnot_below_start", "DSnoT loses less than its start", "dsnot", "none"),
    Claim("r2dsnot_below_start", "R2-DSnoT loses less than its start", "r2dsnot", "none"),
    Claim(
        "r2dsnot_of_50_below_dsnot",
        "R2-DSnoT loses less than DSnoT, 50 cycles each",
        "r2dsnot, 50",
        "dsnot, 50",
    ),
    Claim("dsnot_of_50_below_start", "DSnoT of 50 cycles loses less than its start", "dsnot, 50", "none"),
]


def main() -> None:
    """Measure what is not on record, and print a line for each comparison and start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--literal", action="store_true", help="50 cycles in every linear, too")
    args = parser.parse_args()
    refiners = REFINERS | (LITERAL if args.literal else {})
    protocol = Protocol.of(load_profile("cpu"), profile="refiners", seeds=range(args.draws), n_eval=18)
    names = {
        Recipe(start, Unstructured(0.6), refiner).key: (f"from {of}", name)
        for of, start in STARTS.items()
        for name, refiner in refiners.items()
    }
    recipes = [
        Recipe(start, Unstructured(0.6), refiner)
        for start in STARTS.values()
        for refiner in refiners.values()
    ]
    rows = Experiment(protocol).run([None, *recipes])
    rows = rows[rows["recipe_key"].isin(names)]
    rows["start"], rows["name"] = zip(*rows["recipe_key"].map(names), strict=True)
    claims = [claim for claim in CLAIMS if claim.a in refiners]
    together = len(claims) * len(STARTS)
    verdicts = judge_all(rows, claims, ["model", "start"], lambda *_: together, "name")
    lines = ["| comparison | start | verdict | evidence |", "|---|---|---|---|"]
    lines += [f"| {v.claim} | {v.of} | {v.verdict} | {v.evidence} |" for v in verdicts]
    means = rows.groupby(["start", "name"], sort=False)["perplexity"].agg(["mean", "std"]).round(1)
    lines += ["", "| start | refinement | perplexity | deviation over draws |", "|---|---|---:|---:|"]
    lines += [f"| {start} | {name} | {mean} | {std} |" for (start, name), (mean, std) in means.T.items()]
    print(text := "\n".join(lines) + "\n")
    write_whole(output() / "results" / "refiners" / "table.md", text)


if __name__ == "__main__":
    main()
