"""What was found of a run's drift, as data: ``drift.json``; pictures are made from it alone.

Shares are of the update's energy ``‖U‖²_F`` and lie in [0, 1]; each stands beside its value by
chance, for an update turned at random on both sides.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from anchortune.sections import Section

FORMAT: Literal[1] = 1
DRIFT_FILE = "drift.json"


class Shares(Section):
    """How an update lies to one anchor.

    Attributes:
        energy: ``‖U‖²_F``.
        forwards: along the anchor's own direction D, with it.
        backwards: along D, against it.
        chance_along: of ``forwards + backwards``: one direction of N.
        inside: within D's output subspace.
        chance_inside: k / d_out.
        both: within its output and its input subspace.
        chance_both: k² / (d_out · d_in).
    """

    energy: float
    forwards: float
    backwards: float
    chance_along: float
    inside: float
    chance_inside: float
    both: float
    chance_both: float

    @property
    def off(self) -> float:
        """Outside of the output subspace: what AsFT's ``subspace`` punishes."""
        return 1.0 - self.inside


class Lie(Section):
    """An update beside the anchor and, where one was given, beside a harmful anchor."""

    anchor: Shares
    harmful: Shares | None = None


class Place(Section):
    """The update at one checkpoint.

    Attributes:
        label: ``step 20``, or ``result`` for what the run saved at its end.
        step: optimizer steps; None where that is not known.
        whole: all modules as one vector.
        modules: by name; a module that has not moved is left out.
    """

    label: str
    step: int | None
    whole: Lie
    modules: dict[str, Lie]


class Turn(Section):
    """A direction estimated at one checkpoint, beside the same estimator at step 0.

    Attributes:
        label: of the place.
        step: of the place.
        cosine: over all modules as one vector.
        anchor_cosine: of the direction with the anchor that was given for it.
        angle_mean: mean principal angle of the output subspaces, degrees, a mean over modules.
        random_mean: of random subspaces of these dimensions.
        inside: share of the direction's energy inside the subspaces found at step 0.
        chance_inside: by chance.
        modules: cosine by module.
    """

    label: str
    step: int | None
    cosine: float
    anchor_cosine: float | None = None
    angle_mean: float
    random_mean: float
    inside: float
    chance_inside: float
    modules: dict[str, float]


class Direction(Section):
    """One direction estimated again and again.

    Attributes:
        name: ``aligned`` (from refusals) or ``harmful`` (from harmful pairs).
        data: what the gradient was taken on, by name.
        data_sha256: of its content.
        rows: sequences that were used.
        rank: triplets kept in each module.
        chance: the mean ``|cosine|`` of two random directions of that many entries.
        noise: the cosine at step 0 between the directions of the even and of the odd rows: what the
            sample alone lets the estimate differ by, of half as many rows each.
        start_cosine: at step 0 with the anchor that was given for it.
        turns: by checkpoint.
    """

    name: Literal["aligned", "harmful"]
    data: str
    data_sha256: str
    rows: int
    rank: int
    chance: float
    noise: float
    start_cosine: float | None = None
    turns: list[Turn]


class Drift(Section):
    """A whole ``anchortune drift``.

    Attributes:
        format: of this file.
        run: its folder's name.
        anchor: by name, and ``anchor_sha256``.
        harmful: of the harmful anchor; None without.
        method: what trained the run, as the config calls it.
        places: by rising step.
        directions: estimated again; empty where nobody asked.
        notes: what a reader should know.
        platform: device and dtype of the estimates.
        timings: seconds.
    """

    format: Literal[1] = FORMAT
    run: str
    anchor: str
    anchor_sha256: str
    harmful: str | None = None
    harmful_sha256: str | None = None
    method: str
    places: list[Place]
    directions: list[Direction] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    platform: dict[str, Any] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
