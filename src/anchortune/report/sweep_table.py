"""A sweep's table: which cells it has, which is best, and what is claimed of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from anchortune.report.runs import RunRecord
from anchortune.report.sweep_grid import Grid, Key, lay_out, row_name
from anchortune.report.sweep_load import SweepError
from anchortune.report.sweep_stats import (
    Contrast,
    Estimate,
    NonInferiority,
    Spec,
    best_of,
    contrast,
    corrected,
    estimate,
    judge_margin,
    specs_of,
)

NAMES = {
    "harm": "HS",
    "refusal": "refusal",
    "accuracy": "FA",
    "over_refusal": "over-refusal",
    "coherence": "coherence",
    "win_rate": "win rate",
}
"""What a column's head says; HS is the harmful score, FA the accuracy on the fine-tuning task."""
_USUAL = ("harm", "accuracy")
AVERAGE = "average"


@dataclass(frozen=True)
class TableOptions:
    """What a table shows.

    Attributes:
        rows: axes that name a row.
        column: axis of the columns; None: the one other axis that varies.
        measures: ``MEASURE`` or ``MEASURE:SET``; empty: harm and accuracy, as far as measured.
        judge: whose verdicts, where several judged.
        where: axis -> wanted values.
        reference: a row to which every cell's paired difference is shown.
        average: whether to add the mean over the columns.
        non_inferior: the row that is claimed to be not much worse.
        against: the row it is held against, for each of ``measures``.
        margins: most that it may be worse, for each of ``measures``; fractions.
        command: how the table was asked for, without a path.
    """

    rows: tuple[str, ...] = ("defence",)
    column: str | None = None
    measures: tuple[str, ...] = ()
    judge: str | None = None
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reference: str | None = None
    average: bool = False
    non_inferior: str | None = None
    against: tuple[str, ...] = ()
    margins: tuple[float, ...] = ()
    command: str = "anchortune table RESULTS"


@dataclass(frozen=True)
class Column:
    """One column of figures: a value of the column's axis and what is counted.

    Attributes:
        key: the value; None where there is one column.
        spec: what is counted.
        average: whether it is the mean over the others.
    """

    key: str | None
    spec: Spec
    average: bool = False

    @property
    def title(self) -> str:
        """``sst2: HS``."""
        return f"{self.key}: {measure_title(self.spec)}" if self.key else measure_title(self.spec)


@dataclass(frozen=True)
class Cell:
    """One figure.

    Attributes:
        estimate: of the rate; None where it is missing.
        best: whether it is better than every other of its column, beyond chance.
        gap: its paired difference to the reference row.
        failed: how many of its runs failed.
        dirty: whether a run came from a tree with uncommitted changes.
        average: in the average's columns, the mean of the row's cells; no interval.
    """

    estimate: Estimate | None = None
    best: bool = False
    gap: Contrast | None = None
    failed: int = 0
    dirty: bool = False
    average: float | None = None


@dataclass(frozen=True)
class Table:
    """All of a table, in no format yet.

    Attributes:
        options: what it shows.
        grid: the runs.
        specs: what is counted in each of the grid's columns.
        columns: in order.
        cells: for each row of the grid, for each column.
        claims: statements of non-inferiority.
    """

    options: TableOptions
    grid: Grid
    specs: tuple[Spec, ...]
    columns: tuple[Column, ...]
    cells: tuple[tuple[Cell, ...], ...]
    claims: tuple[NonInferiority, ...]


def measure_title(spec: Spec) -> str:
    """``HS``, or ``HS advbench`` where a set was chosen."""
    return NAMES[spec.measure] + (f" {spec.set}" if spec.set else "")


def arrow(spec: Spec) -> str:
    """Which way is better."""
    return "↓" if spec.less_is_better else "↑"


def usual_measures(runs: Sequence[RunRecord]) -> list[str]:
    """Harm and accuracy, as far as a run measured them, else whatever was measured."""
    there: set[str] = {outcome.measure for run in runs for outcome in run.outcomes}
    if "win_rate" in there:
        there.add("accuracy")  # of a task that is about winning
    return [m for m in _USUAL if m in there] or sorted(there) or list(_USUAL)


def build(runs: Sequence[RunRecord], options: TableOptions) -> Table:
    """The table of the runs.

    Raises:
        SweepError: the runs do not have what ``options`` asks for.
    """
    grid = lay_out(runs, options.rows, options.column, options.where)
    wanted = list(options.measures) or usual_measures(runs)
    specs = specs_of(grid.groups(), wanted, options.judge)
    columns = tuple(Column(key, spec) for key in grid.column_keys for spec in specs)
    reference = None if options.reference is None else grid.row_named(options.reference)
    by_column = [_column_cells(grid, column, reference) for column in columns]
    if options.average:
        if grid.column is None:
            raise SweepError("There is one column, so no average over columns; leave --average.")
        by_column += [_averages(by_column[at :: len(specs)]) for at in range(len(specs))]
        columns += tuple(Column(AVERAGE, spec, average=True) for spec in specs)
    cells = tuple(zip(*by_column, strict=True))
    claims = tuple(_claims(grid, specs, wanted, options))
    return Table(options, grid, tuple(specs), columns, cells, claims)


def _column_cells(grid: Grid, column: Column, reference: Key | None) -> list[Cell]:
    groups = [grid.group(row, column.key) for row in grid.row_keys]
    best = best_of(groups, column.spec)
    gaps: list[Contrast | None] = [None] * len(groups)
    if reference is not None:
        base = grid.group(reference, column.key)
        gaps = corrected(
            [
                None if row == reference else contrast(group, base, column.spec)
                for row, group in zip(grid.row_keys, groups, strict=True)
            ]
        )
    return [
        Cell(
            estimate(group, column.spec),
            best=place == best,
            gap=gaps[place],
            failed=sum(_is_in(run, grid, row, column.key) for run in grid.failed),
            dirty=any(is_dirty(run) for run in group.runs),
        )
        for place, (row, group) in enumerate(zip(grid.row_keys, groups, strict=True))
    ]


def _averages(columns: Sequence[Sequence[Cell]]) -> list[Cell]:
    rows = []
    for cells in zip(*columns, strict=True):
        rates = [cell.estimate.value for cell in cells if cell.estimate is not None]
        whole = len(rates) == len(cells)
        rows.append(Cell(average=sum(rates) / len(rates) if whole else None))
    return rows


def is_dirty(run: RunRecord) -> bool:
    """Whether the code was not as committed."""
    return run.commit is not None and run.commit.endswith("-dirty")


def _is_in(run: RunRecord, grid: Grid, row: Key, column: str | None) -> bool:
    own = tuple(run.labels.get(axis) for axis in grid.rows)
    at = None if grid.column is None else run.labels.get(grid.column)
    return own == row and at in (None, column)


def _claims(
    grid: Grid, specs: Sequence[Spec], wanted: Sequence[str], options: TableOptions
) -> list[NonInferiority]:
    if options.non_inferior is None:
        if options.against or options.margins:
            raise SweepError("--against and --margins belong to --non-inferior ROW; give it too.")
        return []
    arm = grid.row_named(options.non_inferior)
    given = len(options.against), len(options.margins)
    if given != (len(wanted), len(wanted)):
        raise SweepError(
            f"--non-inferior needs a row of --against and one of --margins for each measure "
            f"({', '.join(wanted)}), not {given[0]} and {given[1]}."
        )
    if not all(0 < margin < 1 for margin in options.margins):
        raise SweepError("--margins are fractions between 0 and 1: 0.05 is five points; give such.")
    claims = []
    for word, against, margin in zip(wanted, options.against, options.margins, strict=True):
        other = grid.row_named(against)
        if other == arm:
            raise SweepError(
                f"--against {against} is the row that --non-inferior names; name others."
            )
        own = [spec for spec in specs if spec.measure == word.partition(":")[0]]
        own = [spec for spec in own if word.partition(":")[2] in ("", spec.set)]
        for column in grid.column_keys:
            for spec in own:
                found = contrast(grid.group(arm, column), grid.group(other, column), spec)
                claims.append(
                    NonInferiority(
                        row_name(arm), row_name(other), column or "", measure_title(spec),
                        margin, found, judge_margin(found, spec, margin),
                    )
                )  # fmt: skip
    return claims
