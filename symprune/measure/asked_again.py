"""Records turned back into questions, so that they can be measured again without the notebook that asked."""

from dataclasses import replace

from symprune.base.records import Record
from symprune.measure.experiment import Cell, Experiment
from symprune.measure.finetuned import FineTuned
from symprune.measure.protocol import Protocol
from symprune.measure.questions import Accuracy, MaskOverlap, WindowLosses
from symprune.measure.record_rows import recipe_of
from symprune.measure.refinement_terms import RefinementTerms
from symprune.measure.same_code import first_difference, kinds, repeatable, sample
from symprune.methods.recipe import Recipe


def cell_of(
    protocol: Protocol, record: Record, known: dict[Protocol, Experiment] | None = None
) -> tuple[Experiment, Cell] | None:
    """The experiment and the cell that a record answers, under a profile's protocol (None: of seconds).

    known: experiments that may serve, and to which this one is added. Raises ValueError if what they ask is
    not what the record was asked: its text or its weights are others now.
    """
    run = record.run
    if "timing" in run:
        return None
    protocol, seed = _protocol(protocol, run), _seed(run)
    measurement: object = WindowLosses()
    subject: object = recipe_of(run)
    if "zero_shot" in run:
        measurement = Accuracy(run["zero_shot"]["task"], run["zero_shot"]["limit"], protocol.batch_size)
    elif "reference" in run:
        reference = {"model": run["model"], **run["reference"]}
        measurement = MaskOverlap(replace(_protocol(protocol, reference), seeds=(_seed(reference),)))
        subject = (subject, recipe_of(reference))
    elif "finetuning" in run:
        lora = run["finetuning"]["lora"]
        measurement = FineTuned(lora["n_windows"], lora["rank"], lora["rate"])
    elif "terms" in run:
        measurement = RefinementTerms(tuple(run["terms"]["cycles"]), run["terms"]["n_layers"])
        subject = tuple(Recipe.from_dict(plain) for plain in run["terms"]["recipes"])
    known = {} if known is None else known
    experiment = known.setdefault(protocol, Experiment(protocol))
    cell = Cell(run["model"]["name"], seed, subject, measurement)
    if experiment.question(cell) != run:
        raise ValueError(f"{cell} cannot be asked again: its text, weights or profile are other ones now")
    return experiment, cell


def verify_records(protocol: Protocol, records: list[Record]) -> tuple[int, list[str]]:
    """Measure again a sample of records, one of each kind; how many, and a line for each that differs."""
    asked, findings = [], []
    of: dict[str, Experiment] = {}
    known: dict[Protocol, Experiment] = {}
    for record in records:
        try:
            found = cell_of(protocol, record, known)
        except ValueError as error:
            findings.append(str(error))
            continue
        if found is not None and repeatable(found[1]):
            of[record.key] = found[0]
            asked.append((found[1], record))
    wanted = {kind for cell, _ in asked for kind in kinds(cell)}
    chosen = sample(asked, wanted, "by hand")
    for cell, record in chosen:
        if name := first_difference(record, of[record.key].measure_again(cell)):
            findings.append(f"{cell}: {name} is measured otherwise ({', '.join(sorted(kinds(cell)))})")
    return len(chosen), findings


def _seed(run: dict) -> int:
    return (run["calibration"] or {}).get("seed", 0)


def _protocol(protocol: Protocol, run: dict) -> Protocol:
    """The profile's protocol with what the question says."""
    calibration, evaluation = run["calibration"] or {}, run.get("evaluation") or {}
    said = {
        "models": (run["model"]["name"],),
        "dtype": run["model"]["dtype"],
        "calibration_dtype": run.get("calibration_dtype", protocol.calibration_dtype),
        "calibration_corpus": calibration.get("corpus"),
        "evaluation_corpus": evaluation.get("corpus"),
        "evaluation_split": evaluation.get("split"),
        "eval_seq_len": evaluation.get("seq_len"),
        "n_eval": evaluation.get("n_windows"),
        "seeds": (_seed(run),),
        # a recipe that reads no text is asked the same under any propagation; overlap is asked under this one
        "propagate": calibration.get("propagate", "dense" if "reference" in run else None),
        **{name: calibration.get(name) for name in ("n_calib", "seq_len", "output_side")},
    }
    always = ("calibration_dtype",)
    return replace(protocol, **{name: x for name, x in said.items() if x is not None or name in always})
