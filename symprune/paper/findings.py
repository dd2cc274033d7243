"""What was found, in Markdown: the few claims that the README shows, and every claim as a sentence with the
verdicts behind it.
"""

from symprune.base import paths
from symprune.base.files import write_whole
from symprune.paper.claims import NOT_RUN, ClaimFound, claims_of
from symprune.paper.report import TITLES, effect_in_words

SHOWN_FIRST = (  # in the README
    "wanda_below_magnitude",
    "ria_below_wanda",
    "stochria_close_to_ria",
    "stochria_at_high_sparsity",
    "r2dsnot_below_ria",
    "refined_below_start",
    "r2dsnot_below_dsnot",
    "exact_swap_below_start",
    "refit_below_mask",
    "both_sides_below_refit",
)


def write_findings(profile: str) -> None:
    """Write claims.md, a table of few, and findings.md, a sentence for each, into results/<profile>."""
    claims = claims_of(profile)
    write_whole(paths.results(profile) / "claims.md", claims_table(claims))
    write_whole(paths.results(profile) / "findings.md", findings(claims))


def claims_table(claims: list[ClaimFound]) -> str:
    """Markdown: claim, verdict, effect with its interval, of `SHOWN_FIRST`."""
    lines = ["| claim | found | effect | 95 % interval |", "|:--|:--|:--|:--|"]
    of = {claim.id: claim for claim in claims}
    for claim in (of[name] for name in SHOWN_FIRST):
        effect, interval = effect_in_words(claim)
        lines.append(f"| {claim.asked} | {_counted(claim)} | {effect} | {interval} |")
    return "\n".join(lines) + "\n"


def findings(claims: list[ClaimFound]) -> str:
    """Markdown: every claim with its mark, its sentence, and the ids of the verdicts that it is made from."""
    parts = []
    for by, title in TITLES.items():
        parts.append(f"## {title}")
        for claim in (claim for claim in claims if claim.by == by):
            of = ", ".join(f"`{name}`" for name in claim.verdicts) or "none"
            said = " ".join(filter(None, [claim.sentence, claim.answer]))
            parts.append(
                f"**{claim.asked}** *{claim.mark}* (`{claim.id}`)\n\n{said}\n\n"
                f"<details><summary>verdicts</summary>\n\n{of}\n\n</details>"
            )
    return "\n\n".join(parts) + "\n"


def _counted(claim: ClaimFound) -> str:
    run = claim.reproduced + claim.contradicted + claim.undecided
    if not run:
        return NOT_RUN
    ways = zip(
        ("reproduced", "contradicted", "undecided"),
        (claim.reproduced, claim.contradicted, claim.undecided),
        strict=True,
    )
    cases = ", ".join(f"{n} {way}" for way, n in ways if n)
    return f"**{claim.mark}**" + (f": {cases}" if run > 1 else "")
