"""Profiles: how big, and where; the values that a run of the notebooks takes."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from symprune.base import paths
from symprune.base.errors import UserError, unknown
from symprune.measure.protocol import check_parameter

SMOKE = "smoke"
ALL = "all"  # the value of `notebooks` in a profile that runs every notebook; else it lists their names


NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


def load_profile(name: str, settings: Mapping[str, Any] = NO_SETTINGS) -> dict[str, Any]:
    """The values in papermill_params/<name>.yaml, with those of `settings` in their place.

    With settings the profile is called <name>_set, or what they say of `profile`: what a profile is made of
    and what was published of it stay as they are. Raises UserError unless the file has exactly the keys of
    the smoke profile, and for a setting that is no key or of another type than the key takes.
    """
    profiles = sorted(file.stem for file in paths.PARAMS.glob("*.yaml"))
    if SMOKE not in profiles:
        raise UserError(
            f"no profiles in {paths.PARAMS}: run inside the project's source, or set SYMPRUNE_ROOT to it"
        )
    if name not in profiles:
        raise unknown("profile", name, profiles)
    values, smoke = (_read_profile(paths.PARAMS / f"{n}.yaml") for n in (name, SMOKE))
    for key in values:
        if key not in smoke:
            raise unknown(f"key in papermill_params/{name}.yaml", key, smoke)
    if missing := sorted(set(smoke) - set(values)):
        raise UserError(
            f"papermill_params/{name}.yaml lacks {', '.join(missing)}: every profile has the same keys"
        )
    if values["profile"] != name:
        raise UserError(f"papermill_params/{name}.yaml says profile: {values['profile']}: it must say {name}")
    for key in settings:
        if key not in smoke:
            raise unknown("key of a profile", key, smoke)
    if settings:
        values |= {"profile": f"{name}_set", **settings}
        if values["profile"] in profiles or not re.fullmatch(r"[\w-]+", str(values["profile"])):
            raise UserError(
                f"profile {values['profile']!r} is no name for other settings: give one of letters and digits"
                " that is no profile's"
            )
    for key, value in values.items():
        check_parameter(key, value, smoke[key])
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
