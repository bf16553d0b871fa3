"""What an evaluation found, as data: ``record.json`` holds it under ``metrics``; no torch here.

Rates are fractions; ``n`` counts scored answers alone, ``unscored`` the rest.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["harm", "refusal", "over_refusal", "accuracy", "coherence", "win_rate"]
Better = Literal["lower", "higher", "neither"]
Rate = Annotated[float, Field(ge=-1e-9, le=1 + 1e-9)]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Data):
    """A rate with its 95 % Wilson interval."""

    value: Rate
    n: Count
    low: Rate
    high: Rate
    unscored: Count = 0


class Difference(_Data):
    """A model minus the reference on the same prompts, both scored.

    Attributes:
        value: difference of the rates over the ``n`` pairs.
        low: of the bootstrap's 95 % interval.
        high: of the same.
        p: exact McNemar.
        p_holm: after Holm's correction over the evaluation's comparisons of this kind.
        n: pairs.
        up: pairs that only the model counts in.
        down: pairs that only the reference counts in.
    """

    value: float
    low: float
    high: float
    p: float
    p_holm: float | None
    n: Count
    up: Count
    down: Count


class ArmFigure(_Data):
    """Several seeds of one method: mean, standard deviation over seeds, clustered interval."""

    seeds: int
    mean: float
    sd: float | None
    low: float
    high: float


class Measure(_Data):
    """One thing measured on one set, for every model.

    Attributes:
        key: unique, ``harm:builtin:advbench``, ``accuracy:sst2``.
        kind: what it is.
        set: the prompt set or task.
        judge: who judged, where somebody did.
        label: for people.
        better: which way is good.
        indicative: the judge misses the bar it was set.
        figures: by model.
        differences: by model other than the reference.
        categories: category -> model -> figure.
        arms: by arm, where a model names one.
        note: e.g. how many answers could not be parsed.
    """

    key: str
    kind: Kind
    set: str
    judge: str | None = None
    label: str
    better: Better
    indicative: bool = False
    figures: dict[str, Figure]
    differences: dict[str, Difference] = Field(default_factory=dict)
    categories: dict[str, dict[str, Figure]] = Field(default_factory=dict)
    arms: dict[str, ArmFigure] = Field(default_factory=dict)
    note: str = ""


class Agreement(_Data):
    """Two judges on the same answers: equal verdicts, and Cohen's kappa (None: no spread)."""

    judges: tuple[str, str]
    set: str
    n: int
    agree: float
    kappa: float | None


class Results(_Data):
    """One evaluation.

    Attributes:
        models: by name, in order, what each is: path, adapters, hashes.
        reference: the name the others are compared with.
        part: which part of the sets was asked, ``report``, ``selection`` or ``all``.
        measures: everything measured.
        agreements: of every two judges.
        judges: identities, with calibration figures where a judge brings them.
        warnings: what a reader must know before they believe a figure.
        curves: by model, its run's log: step, loss, penalty, lam; empty where no run is named.
        anchors: by model, the summary of its run's anchor.
    """

    format_version: int = 1
    models: dict[str, dict[str, Any]]
    reference: str
    part: Literal["report", "selection", "all"]
    measures: list[Measure]
    agreements: list[Agreement] = Field(default_factory=list)
    judges: list[dict[str, Any]] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    curves: dict[str, list[dict[str, Any]]] = Field(default_factory=dict)
    anchors: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def measure(self, key: str) -> Measure | None:
        """The measure under ``key``, if there is one."""
        return next((m for m in self.measures if m.key == key), None)
