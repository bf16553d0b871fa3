"""The sentences under a sweep's table: n, seeds, judge, the rule of bold, and all that is amiss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from anchortune.report.runs import RunRecord
from anchortune.report.sweep_grid import row_name
from anchortune.report.sweep_load import listed, without_paths
from anchortune.report.sweep_stats import NonInferiority, Spec, seeds_of
from anchortune.report.sweep_table import Table, measure_title
from anchortune.report.words import points, points_span

LONG = {
    "harm": "harmful score",
    "refusal": "share of harmful prompts refused",
    "accuracy": "accuracy on the task",
    "over_refusal": "share of harmless prompts refused",
    "coherence": "share of coherent answers",
    "win_rate": "share of answers better than the reference's",
}


def claim_sentence(claim: NonInferiority) -> str:
    """One statement of non-inferiority in words."""
    at = f", {claim.column}" if claim.column else ""
    head = f"{claim.measure} of {claim.arm} against {claim.against}{at}"
    if claim.contrast is None:
        return f"{head}: no seed and prompt that both have."
    gap, limit = claim.contrast, f"{100 * claim.margin:g} points"
    told = {
        "shown": f"at most {limit} worse: shown",
        "refuted": f"more than {limit} worse",
        "undecided": f"whether at most {limit} worse is undecided",
    }[claim.verdict]
    seeds = f"{gap.seeds} seed{'s' if gap.seeds > 1 else ''}"
    return (
        f"{head}: {points(gap.value)} points ({points_span(gap.low, gap.high)}), "
        f"{gap.pairs} pairs of {seeds}; {told}."
    )


def notes_of(table: Table) -> list[str]:
    """The sentences under a table: what was counted, what bold means, what is missing."""
    grid = table.grid
    seeds = seeds_of(grid.groups())
    fixed = "; ".join(f"{axis} {value}" for axis, value in grid.fixed.items())
    over = (
        f"mean over seeds {', '.join(map(str, seeds))}"
        if len(seeds) > 1
        else f"seed {seeds[0]}"
        if seeds
        else "no fine-tuning"
    )
    columns = f" Columns: {grid.column}." if grid.column else ""
    notes = [f"Per cent, {over}, 95 % interval.{columns}" + (f" {fixed}." if fixed else "")]
    notes += [_counted(table, spec) for spec in table.specs]
    if any(cell.best for row in table.cells for cell in row):
        notes.append(
            "Bold: better than every other row of its column (missing cells and models before "
            "fine-tuning aside): "
            "each paired difference over the same seeds and prompts has a 95 % interval without "
            "0, and p < .05 after Holm's correction over these differences."
        )
    else:
        notes.append(
            "Nothing is bold: no row is better than every other of its column by paired "
            "differences whose 95 % intervals exclude 0, with p < .05 after Holm's correction."
        )
    if table.options.reference is not None:
        notes.append(
            f"− {table.options.reference}: paired difference in points, over the same seeds and "
            "prompts, with its 95 % interval; * p < .05 after Holm's correction over the column."
        )
    if table.options.average:
        notes.append("Average: the mean of a row's cells, without an interval.")
    return notes + _exceptions(table, seeds)


def _counted(table: Table, spec: Spec) -> str:
    sizes: dict[str, set[int]] = {}
    for column, cells in zip(table.columns, zip(*table.cells, strict=True), strict=True):
        for cell in cells:
            if column.spec == spec and cell.estimate is not None:
                name = " + ".join(cell.estimate.sets)
                if spec.judge is None and cell.estimate.judges:
                    name += f" (win rate, judge {' + '.join(cell.estimate.judges)})"
                sizes.setdefault(name, set()).add(cell.estimate.n)
    told = ", ".join(
        f"{'–'.join(map(str, dict.fromkeys((min(ns), max(ns)))))} prompts of {name}"
        for name, ns in sorted(sizes.items())
    )
    judge = f", judge {spec.judge}" if spec.judge else ""
    mark = " (indicative)" if spec.indicative else ""
    better = "less" if spec.less_is_better else "more"
    long = f"{measure_title(spec)}: {LONG[spec.measure]}, {better} is better{judge}{mark}"
    return f"{long}; n: {told}." if told else f"{long}."


def _exceptions(table: Table, seeds: Sequence[int]) -> list[str]:
    grid, notes = table.grid, []
    fewer, dirty = [], []
    shares: dict[tuple[str, str], tuple[int, int]] = {}  # of a cell: without a verdict, asked
    for row, cells in zip(grid.row_keys, table.cells, strict=True):
        for column, cell in zip(table.columns, cells, strict=True):
            name = ", ".join(filter(None, (row_name(row), column.key)))
            found = cell.estimate
            if found is None:
                continue
            trained = not grid.group(row, column.key).untrained
            # A model before fine-tuning may stand in every column: it was asked once.
            own = name if trained or len(found.sets) != 1 else row_name(row)
            shares[own, measure_title(column.spec)] = found.unscored, found.asked
            if trained and len(found.seeds) < len(seeds):
                fewer.append(f"{name}: {', '.join(map(str, found.seeds))}")
            if cell.dirty:
                dirty.append(name)
    if grid.failed:
        told = [_failure(run) for run in grid.failed]
        notes.append(f"{len(told)} of {grid.runs} runs failed: {listed(told, 20, '; ')}.")
    if fewer:
        notes.append(f"Fewer seeds: {listed(list(dict.fromkeys(fewer)), 20, '; ')}.")
    if sentence := _unscored(shares):
        notes.append(sentence)
    if dirty:
        names = listed(list(dict.fromkeys(dirty)), 20, "; ")
        notes.append(f"† Made from a working tree with uncommitted changes: {names}.")
    by_digest = {run.digest: run for group in grid.groups() for run in group.runs}
    commits = Counter(
        (run.commit or "unknown").removesuffix("-dirty")[:12] for run in by_digest.values()
    )
    if commits:
        told = [
            f"{commit} ({count} run{'s' if count > 1 else ''})"
            for commit, count in sorted(commits.items())
        ]
        notes.append(f"Code at commit {listed(told)}.")
    return notes


def _unscored(shares: Mapping[tuple[str, str], tuple[int, int]]) -> str:
    """How many answers have no verdict, and the cells where they are more than one in twenty."""
    some = sorted(
        (-none / asked, f"{cell}, {measure} {_of(none, asked)}")
        for (cell, measure), (none, asked) in shares.items()
        if none
    )
    if not some:
        return ""
    # Measures that a verdict can fail: answers held against targets would water the share down.
    judged = {measure for (_, measure), (none, _) in shares.items() if none}
    counted = [share for (_, measure), share in shares.items() if measure in judged]
    total = _of(sum(none for none, _ in counted), sum(asked for _, asked in counted))
    many = [told for share, told in some if share < -0.05]
    more = f"more than 5 %: {listed(many, 8, '; ')}" if many else f"most: {some[0][1]}"
    return f"Answers without a verdict, not counted: {total}; {more}."


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f} %)"


def _failure(run: RunRecord) -> str:
    labels = ", ".join(run.labels[axis] for axis in sorted(run.labels))
    reason = without_paths(run.error or "no reason on record").rstrip(".")
    return f"{labels}, seed {run.seed} ({reason})"
