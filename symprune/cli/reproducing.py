"""The commands on notebooks and what is published: reproduce, verify-report, verify-records, render."""

import argparse
from dataclasses import replace

from symprune.base import paths
from symprune.base.errors import UserError
from symprune.base.records import Store, read_lines
from symprune.cli.common import Answer, progress_bars, tell
from symprune.cli.given import refuse
from symprune.measure import executors
from symprune.measure.asked_again import verify_records
from symprune.measure.protocol import Protocol
from symprune.methods.recipe import parse_method
from symprune.paper import notebooks, reproduce, verify
from symprune.paper.profiles import load_profile


def run_reproduce(args: argparse.Namespace) -> Answer:
    """Execute the notebooks under a profile, or only measure a shard of what they ask."""
    if args.shard:
        refuse(args, "--shard only measures, in this process", "executor", "address", "again", "processes")
        records = reproduce.measure_shard(
            args.notebooks,
            args.profile,
            executors.Shard(*args.shard),
            show=not args.json,
            settings=dict(args.settings),
        )
        return Answer(
            {"records": str(records)}, f"all is on record in {records}: `symprune reproduce` draws it"
        )
    if args.executor is None:
        refuse(args, "give --executor ray with it", "address")
    else:
        refuse(args, "the executor measures", "processes")
    executor = args.executor and parse_method("executor", args.executor, {"ray": executors.Ray})
    if args.address is not None:
        executor = replace(executor, address=args.address)
    report = reproduce.reproduce(
        args.notebooks,
        args.profile,
        show=not args.json,
        again=args.again,
        executor=executor,
        settings=dict(args.settings),
        processes=args.processes or 1,
    )
    return Answer({"report": str(report)}, f"report: {report}")


def run_verify_report(args: argparse.Namespace) -> Answer:
    """Compare what is published with its records; raises RuntimeError that names every difference."""
    if findings := verify.verify_report(args.profile, args.notebooks, show=not args.json):
        raise RuntimeError(
            f"{len(findings)} of the published files are not what the records say: {'; '.join(findings)}"
        )
    return Answer(
        {"agrees": True}, f"every table, figure and verdict of {args.profile} is what its records say"
    )


def run_verify_records(args: argparse.Namespace) -> Answer:
    """Measure a sample of a profile's records again; raises RuntimeError where one differs."""
    records = list(Store(paths.records(args.profile)))
    records = records or list(read_lines(paths.results(args.profile) / "records.jsonl").values())
    if not records:
        raise UserError(f"profile {args.profile!r} has no records: `symprune reproduce` measures them")
    with progress_bars(args):
        protocol = Protocol.of(load_profile(args.profile))
        n, findings = verify_records(replace(protocol, device=args.device or protocol.device), records)
    for finding in findings:
        tell(args, finding)
    if findings:
        raise RuntimeError(f"{len(findings)} records are not what this code measures, {findings[0]}")
    return Answer(
        {"equal": n}, f"{n} of {len(records)} records, one of each kind, are measured the same again"
    )


def run_render(args: argparse.Namespace) -> Answer:
    """Execute the notebooks' sources into their pairs."""
    written = [str(path) for path in notebooks.render(args.notebooks)]
    return Answer({"written": written}, "\n".join(written))
