"""Every path of the project, and the only place that builds one."""

import os
from pathlib import Path


def _root() -> Path:
    """The project: SYMPRUNE_ROOT, else the nearest folder upwards that holds papermill_params, else the
    source checkout.
    """
    if override := os.environ.get("SYMPRUNE_ROOT"):
        return Path(override).resolve()
    checkout = Path(__file__).resolve().parents[2]
    return next((p for p in (Path.cwd(), *Path.cwd().parents) if (p / "papermill_params").is_dir()), checkout)


ROOT = _root()
NOTEBOOKS = ROOT / "notebooks"
PARAMS = ROOT / "papermill_params"


def output() -> Path:
    """Where results/ and figures/ live: SYMPRUNE_OUTPUT (relative: to the project, for kernels run in another
    folder), else the project.
    """
    return (ROOT / os.environ.get("SYMPRUNE_OUTPUT", "")).resolve()


def figures(profile: str) -> Path:
    """Tables and figures of one profile."""
    return output() / "figures" / profile


def results(profile: str) -> Path:
    """Executed notebooks and records of one profile."""
    return output() / "results" / profile


def records(profile: str) -> Path:
    """The record store of one profile."""
    return results(profile) / "records"


def cache() -> Path:
    """What can be made again: SYMPRUNE_CACHE, else the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("SYMPRUNE_CACHE", base / "symprune")).resolve()


def statistics() -> Path:
    """Calibration statistics of dense models, kept from run to run."""
    return cache() / "statistics"


def hub_mirror() -> Path | None:
    """A local folder in the hub's layout (SYMPRUNE_DATA), for machines that cannot reach the hub."""
    folder = os.environ.get("SYMPRUNE_DATA")
    return Path(folder).resolve() if folder else None
