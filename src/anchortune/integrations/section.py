"""The section ``anchortune`` in the config of somebody else's trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anchortune.config import PenaltySection
from anchortune.config_io import validate
from anchortune.errors import ConfigError


def penalty_section(given: Any, missing: str, host: str) -> PenaltySection:
    """The penalty that a trainer's config asks for.

    Args:
        given: the section, a mapping with the keys of ``penalty`` in a config of ours; None, or
            empty, where there is none.
        missing: what the config lacks then, for the error.
        host: whose config it is, for the error.

    Raises:
        ConfigError: there is no section, a key is unknown, or a value is of no use; or it asks for
            the probe, which takes rows of its own.
    """
    if not given:
        raise ConfigError(
            f"{missing}: give it an anchor, or training would go on without a penalty."
        )
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"anchortune in {host}'s config is {given!r}; make it a section, "
            "with anchor: FILE in it."
        )
    # Some trainers fill their config with keys that are None; those are unset.
    plain = {key: value for key, value in dict(given).items() if value is not None}
    section = validate(plain, PenaltySection, "anchortune")
    if section.steer == "probe":
        raise ConfigError(
            f"anchortune.steer: probe needs a probe's rows; in {host} take steer: budget, or a lam."
        )
    return section
