"""Options that several commands share, and what values they take."""

import argparse
import re
import sys

from symprune.cli.given import Default


class Parser(argparse.ArgumentParser):
    """One line for bad words, and help that may name what the package holds."""

    def error(self, message: str):
        print(f"symprune: error: {' '.join(message.split())} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self) -> str:
        """With what the package holds, a line each: methods where one may be asked for, or profiles."""
        lists: dict[str, dict[str, str]] = {}
        if "--refine" in self._option_string_actions:
            lists = _methods()
        elif self.prog.endswith(" reproduce"):
            lists = {"profiles": _profiles()}
        text = super().format_help()
        for title, lines in lists.items():
            text += f"\n{title}:\n" + "".join(f"  {name:<16} {line}\n" for name, line in lines.items())
        return text


def _methods() -> dict[str, dict[str, str]]:
    """The registries, by the first lines of their docstrings: late, for they come with torch."""
    from symprune.methods.masks import PATTERNS
    from symprune.methods.refine import REFINERS
    from symprune.methods.scores import SCORES
    from symprune.methods.update import CHOICES, UPDATES

    registries: dict[str, dict] = {
        "scores, with hyperparameters if wanted": SCORES | CHOICES,
        "patterns": {{"nm": "n:m"}.get(name, name): of for name, of in PATTERNS.items()},
        "refinements, with hyperparameters if wanted": REFINERS,
        "updates, with hyperparameters if wanted": UPDATES,
    }
    return {
        title: {name: str(of.__doc__).splitlines()[0] for name, of in registry.items()}
        for title, registry in registries.items()
    }


def _profiles() -> dict[str, str]:
    """The profiles there are, by the first lines of their files."""
    from symprune.base import paths

    files = sorted(paths.PARAMS.glob("*.yaml"))
    lines = {file.stem: file.read_text(encoding="utf-8").partition("\n")[0] for file in files}
    return {name: line.lstrip("# ") if line.startswith("#") else "" for name, line in lines.items()}


class Sparsity(argparse.Action):
    """A number, which is kept as such, or GLOB=PATTERN, which is added to those of `by_name`."""

    def __call__(self, parser, namespace, values, option_string=None):
        text = str(values)
        glob, equals, pattern = text.rpartition("=")
        if equals and glob:
            namespace.by_name = [*namespace.by_name, (glob, pattern)]
            return
        try:
            setattr(namespace, self.dest, float(text))
        except ValueError:
            message = f"must be a number, or GLOB=NUMBER such as 'mlp.*=0.7', not {text!r}"
            raise argparse.ArgumentError(self, message) from None


def shard(text: str) -> tuple[int, int]:
    """2/4: the second of four."""
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise argparse.ArgumentTypeError(f"must be i/n with 1 <= i <= n, such as 2/4, not {text!r}")
    return int(i), int(n)


def size(text: str) -> int:
    """Bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GiB|MiB|GB|MB)", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"must be a size such as 6GiB or 800MB, not {text!r}")
    return int(float(found[1]) * {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}[found[2]])


def at_least_one(text: str) -> int:
    """A whole number that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def batch_size(text: str) -> int | str:
    """A number, or auto."""
    return text if text == "auto" else at_least_one(text)


def setting(text: str) -> tuple[str, object]:
    """n_calib=16: a key and its value, which is read as YAML is."""
    import yaml

    key, equals, value = text.partition("=")
    try:
        if equals and key:
            return key, yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise argparse.ArgumentTypeError(f"must be KEY=VALUE, such as n_calib=16 or models=[a, b], not {text!r}")


def common() -> argparse.ArgumentParser:
    """How an answer is shown."""
    options = _options()
    options.add_argument("--json", action="store_true", help="print one JSON object, no progress bars")
    options.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return options


def recipe() -> argparse.ArgumentParser:
    """What is removed, and what happens to what stays."""
    options = _options()
    options.add_argument(
        "--score",
        default=Default("ria"),
        help="a score, with hyperparameters if wanted: wanda, 'ria(alpha=1.0)'; or sparsegpt, which chooses"
        " the mask itself (default: %(default)s)",
    )
    options.add_argument(
        "--pattern",
        default=Default("unstructured"),
        help="unstructured (see --sparsity, --group), 0.6, '0.6 per layer', or n:m to keep n of every m: 2:4"
        " (default: %(default)s)",
    )
    options.add_argument(
        "--sparsity",
        action=Sparsity,
        metavar="X or GLOB=X",
        default=Default(0.5),
        help="fraction removed, for unstructured (default: %(default)s); or another one, or an n:m, for the"
        " linears that a glob fits: 'mlp.*=0.7', as often as wanted, the first that fits decides",
    )
    options.set_defaults(by_name=[])
    options.add_argument(
        "--dense",
        action="append",
        default=[],
        metavar="GLOB",
        help="leave the linears dense that a glob fits: 'layers.0.*', as often as wanted",
    )
    options.add_argument(
        "--group",
        default=Default("output"),
        help="output: rows compete on their own; layer: the whole matrix (default: %(default)s)",
    )
    options.add_argument(
        "--refine",
        default=Default("none"),
        help="a refinement of the mask, listed below (default: %(default)s)",
    )
    options.add_argument(
        "--update",
        default=Default("none"),
        help="what happens to the weights that stay: refit, symmetric_refit, sequential (default:"
        " %(default)s)",
    )
    return options


def layers_path() -> argparse.ArgumentParser:
    """Where a model's decoder layers are."""
    options = _options()
    options.add_argument(
        "--layers-path",
        metavar="PATH",
        help="list of decoder layers, where it is not found: model.decoder.blocks",
    )
    return options


def model() -> argparse.ArgumentParser:
    """A model, in which dtype, and where."""
    options = _options()
    options.add_argument("model", metavar="MODEL", help="embedded, a local folder, or a hub id")
    options.add_argument(
        "--dtype", default=Default("float32"), help="float32, bfloat16 or float16 (default: %(default)s)"
    )
    options.add_argument(
        "--device",
        default=Default("cpu"),
        help="cpu, cuda, cuda:1, ..., or auto for all GPUs (default: %(default)s)",
    )
    return options


def model_and_text() -> argparse.ArgumentParser:
    """A model, and windows of a text to run it on."""
    options = _options(model())
    options.add_argument(
        "--corpus",
        default=Default("embedded"),
        help="embedded, wikitext2, c4, or a file: .txt, .md, .jsonl, each also .gz (default: %(default)s)",
    )
    options.add_argument(
        "--seq-len",
        type=at_least_one,
        default=Default(512),
        help="tokens per window (default: %(default)s; the papers use 2048)",
    )
    options.add_argument(
        "--batch-size",
        type=batch_size,
        default=Default(1),
        help="windows per forward pass, or auto (default: %(default)s)",
    )
    return options


def calibration_dtype() -> argparse.ArgumentParser:
    """What calibration computes in."""
    options = _options()
    options.add_argument(
        "--calibration-dtype",
        metavar="DTYPE",
        help="what calibration and scores are computed in: float64 gives the same masks on every processor,"
        " in about twice the time on a CPU (default: the model's dtype; the same masks on one machine)",
    )
    return options


def draw() -> argparse.ArgumentParser:
    """Which calibration windows are drawn."""
    options = _options()
    options.add_argument(
        "--n-calib",
        type=at_least_one,
        default=Default(16),
        help="calibration windows (default: %(default)s; the papers use 128)",
    )
    options.add_argument(
        "--seed", type=int, default=Default(0), help="seed of the calibration windows (default: %(default)s)"
    )
    return options


def notebooks() -> argparse.ArgumentParser:
    """Some notebooks, or all."""
    options = _options()
    options.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="names or numbers (default: all)")
    return options


def profile() -> argparse.ArgumentParser:
    """How large everything is."""
    options = _options()
    options.add_argument(
        "--profile", default=Default("cpu"), help="a file in papermill_params/ (default: %(default)s)"
    )
    return options


def _options(*parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(add_help=False, parents=parents)
