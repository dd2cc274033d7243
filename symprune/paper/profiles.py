"""Profiles: how big, and where; the values that a run of the notebooks takes."""

from pathlib import Path
from typing import Any

import yaml

from symprune.base import paths
from symprune.base.errors import UserError, unknown

SMOKE = "smoke"
ALL = "all"  # the value of `notebooks` in a profile that runs every notebook; else it lists their names


def load_profile(name: str) -> dict[str, Any]:
    """The values in papermill_params/<name>.yaml.

    Raises UserError unless it has exactly the keys of the smoke profile.
    """
    profiles = sorted(file.stem for file in paths.PARAMS.glob("*.yaml"))
    if SMOKE not in profiles:
        raise UserError(
            f"no profiles in {paths.PARAMS}: run inside the project's source, or set SYMPRUNE_ROOT to it"
        )
    if name not in profiles:
        raise unknown("profile", name, profiles)
    values, keys = (_read_profile(paths.PARAMS / f"{n}.yaml") for n in (name, SMOKE))
    for key in values:
        if key not in keys:
            raise unknown(f"key in papermill_params/{name}.yaml", key, keys)
    if missing := sorted(set(keys) - set(values)):
        raise UserError(
            f"papermill_params/{name}.yaml lacks {', '.join(missing)}: every profile has the same keys"
        )
    if values["profile"] != name:
        raise UserError(f"papermill_params/{name}.yaml says profile: {values['profile']}: it must say {name}")
    return values


def _read_profile(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    # what PyYAML raises on odd values
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold key: value lines")
    return values
