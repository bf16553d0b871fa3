"""Runs laid out by the labels that a table's rows and columns, or a plot's lines, are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anchortune.report.runs import RunRecord
from anchortune.report.sweep_load import (
    SEED,
    SweepError,
    axes_of,
    check_axis,
    listed,
    same_value,
    select,
    value_key,
)
from anchortune.report.sweep_stats import Group

Key = tuple[str | None, ...]
"""Labels in the order of the axes; None where a run has no such axis."""


@dataclass(frozen=True)
class Grid:
    """Cells by row and column.

    Attributes:
        rows: axes that name a row.
        column: the axis that names a column; None: there is one column.
        row_keys: sorted.
        column_keys: sorted; ``(None,)`` where there is one column.
        cells: (row, column) -> its complete runs.
        failed: the runs that failed.
        runs: how many were chosen in all.
        fixed: axes with one value, and that.
    """

    rows: tuple[str, ...]
    column: str | None
    row_keys: tuple[Key, ...]
    column_keys: tuple[str | None, ...]
    cells: dict[tuple[Key, str | None], Group]
    failed: tuple[RunRecord, ...]
    runs: int
    fixed: dict[str, str]

    def group(self, row: Key, column: str | None) -> Group:
        """The cell's runs; none where it is missing."""
        return self.cells.get((row, column), Group(()))

    def groups(self) -> list[Group]:
        """Every cell that is there."""
        return list(self.cells.values())

    def with_fewer(self, seeds: Sequence[int]) -> list[str]:
        """Names of the rows that lack one of the seeds in a cell which they have."""
        lacking = [
            row_name(row)
            for (row, _), group in self.cells.items()
            if not group.untrained and {run.seed for run in group.runs} < set(seeds)
        ]
        return list(dict.fromkeys(lacking))

    def row_named(self, name: str) -> Key:
        """The row with this name: its labels joined by ``/``.

        Raises:
            SweepError: there is none; the sentence says which there are.
        """
        for key in self.row_keys:
            if same_value(row_name(key), name):
                return key
        names = [row_name(key) for key in self.row_keys]
        raise SweepError(f"There is no row {name}; there is {listed(names)}.")


def row_name(key: Key) -> str:
    """``asft/gram``: the labels of a row; of an axis that the run lacks, nothing."""
    return "/".join(label for label in key if label is not None) or "all"


def lay_out(
    runs: Sequence[RunRecord],
    rows: Sequence[str],
    column: str | None,
    where: Mapping[str, Sequence[str]],
) -> Grid:
    """The chosen runs as a grid.

    A run without the column's axis belongs to every column, as the aligned model does to every λ.

    Args:
        runs: of ``read_runs``.
        rows: axes that name a row.
        column: the axis of the columns; None: the one axis beside the rows' that varies, if any.
        where: axis -> wanted values.

    Raises:
        SweepError: an axis that is not there, a choice that leaves nothing, a cell that would mix
            runs of several settings, two runs of one cell and seed.
    """
    chosen = select(runs, where)
    axes = axes_of(chosen)
    for axis in (*rows, *([] if column is None else [column])):
        check_axis(axis, axes)
    if column is not None and column in rows:
        raise SweepError(
            f"The axis {column} cannot name both rows and columns; leave it out of one."
        )
    if column is None:
        column = _varying(axes, rows)
    complete = [run for run in chosen if run.state == "complete"]
    row_of = {run.digest: tuple(run.labels.get(axis) for axis in rows) for run in chosen}
    columns: list[str | None] = list(axes[column]) if column is not None else [None]
    fixed = {axis: values[0] for axis, values in axes.items() if len(values) == 1}
    cells: dict[tuple[Key, str | None], Group] = {}
    for key in dict.fromkeys(row_of.values()):
        own = [run for run in complete if row_of[run.digest] == key]
        for value in columns:
            here = [run for run in own if column is None or run.labels.get(column) in (None, value)]
            if not here:
                continue
            labels = {**fixed, **({} if column is None or value is None else {column: value})}
            labels |= {axis: label for axis, label in zip(rows, key, strict=True) if label}
            cells[key, value] = Group(
                tuple(sorted(here, key=lambda run: run.seed)), labels.get("task")
            )
            _check_cell(here, " ".join(filter(None, (row_name(key), value))), axes, {*rows, column})
    return Grid(
        rows=tuple(rows),
        column=column,
        row_keys=tuple(_sorted_rows(set(row_of.values()), rows, where)),
        column_keys=tuple(_sorted(columns, where.get(column or "", ()))),
        cells=cells,
        failed=tuple(run for run in chosen if run.state == "failed"),
        runs=len(chosen),
        fixed={axis: value for axis, value in fixed.items() if axis not in (*rows, column)},
    )


def _varying(axes: Mapping[str, Sequence[str]], rows: Sequence[str]) -> str | None:
    varying = [axis for axis, values in axes.items() if len(values) > 1 and axis not in rows]
    if len(varying) > 1:
        told = "; ".join(f"{axis} ({listed(axes[axis], 6)})" for axis in varying)
        raise SweepError(
            f"The runs differ in several axes, {told}: name one with --columns or --x, put others "
            "among --rows or --series, or choose with --where AXIS=VALUE."
        )
    return varying[0] if varying else None


def _check_cell(
    runs: Sequence[RunRecord],
    name: str,
    axes: Mapping[str, Sequence[str]],
    used: set[str | None],
) -> None:
    for axis in axes:
        values = sorted({run.labels.get(axis, "none") for run in runs}, key=value_key)
        if axis not in used and len(values) > 1:
            raise SweepError(
                f"The cell {name} would mix runs of {axis} {listed(values)}: choose with "
                f"--where {axis}={values[-1]}, or name {axis} in --rows or --columns of a table, "
                "in --series of a plot."
            )
    by_seed: dict[int, str] = {}
    for run in runs:
        other = by_seed.setdefault(run.seed, run.digest)
        if other != run.digest:
            pair = " and ".join(sorted((other[:12], run.digest[:12])))
            raise SweepError(
                f"The cell {name} has two runs of {SEED} {run.seed} with other settings ({pair}): "
                "give the records of one sweep."
            )


def _sorted(values: Sequence[str | None], wanted: Sequence[str]) -> list[str | None]:
    """In the order that ``--where`` gave, else by ``value_key``; what has no label comes first."""

    def key(value: str | None) -> tuple[object, ...]:
        if value is None:
            return (-1,)
        places = [i for i, other in enumerate(wanted) if same_value(other, value)]
        return (places[0] if places else len(wanted), *value_key(value))

    return sorted(values, key=key)


def _sorted_rows(
    keys: set[Key], rows: Sequence[str], where: Mapping[str, Sequence[str]]
) -> list[Key]:
    places = [
        {value: i for i, value in enumerate(_sorted(list(column), where.get(axis, ())))}
        for axis, column in zip(rows, (set(c) for c in zip(*keys, strict=True)), strict=True)
    ]
    return sorted(
        keys, key=lambda key: [place[label] for place, label in zip(places, key, strict=True)]
    )
