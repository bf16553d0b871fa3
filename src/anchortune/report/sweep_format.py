"""A sweep's table in Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

from anchortune.report.sweep_load import without_paths
from anchortune.report.sweep_notes import claim_sentence, notes_of
from anchortune.report.sweep_table import Cell, Column, Table, arrow, measure_title
from anchortune.report.words import markdown_cell, points, points_span, shown, span

Format = Literal["markdown", "latex", "csv", "json"]
Interval = Literal["span", "half"]
MISSING = "missing"
FAILED = "failed"


def render(table: Table, form: Format, interval: Interval = "span") -> str:
    """The table as text that ends with a line break.

    Args:
        table: of ``build``.
        form: ``csv`` is one line a figure, fractions, without notes; the others hold them.
        interval: ``span`` writes ``4.0 (2.2–7.2)``, ``half`` writes ``4.0 ± 2.5``, half the width
            of an interval that is not symmetric.
    """
    if form == "markdown":
        return _markdown(table, interval)
    if form == "latex":
        return _latex(table, interval)
    if form == "csv":
        return _csv(table)
    return json.dumps(_to_json(table), indent=2, ensure_ascii=False) + "\n"


def _figure(cell: Cell, interval: Interval) -> tuple[str, str]:
    """A cell's rate and what follows it."""
    if cell.average is not None:
        return _rate(cell.average), ""
    if cell.estimate is None:
        return (FAILED if cell.failed else MISSING), ""
    found = cell.estimate
    if interval == "half":
        return _rate(found.value), f"± {100 * found.half:.1f}"
    return _rate(found.value), f"({span(found.low, found.high)})"


def _rate(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _gap(cell: Cell) -> str:
    if cell.gap is None:
        return ""
    star = "*" if cell.gap.shown else ""
    return f"{points(cell.gap.value)}{star} ({points_span(cell.gap.low, cell.gap.high)})"


def _heads(table: Table) -> list[str]:
    heads = []
    for column in table.columns:
        heads.append(f"{column.title} {arrow(column.spec)}")
        if _has_gap(table, column):
            heads.append(f"− {table.options.reference}")
    return heads


def _has_gap(table: Table, column: Column) -> bool:
    return table.options.reference is not None and not column.average


# Markdown


def _markdown(table: Table, interval: Interval) -> str:
    heads = [*table.grid.rows, *_heads(table)]
    aligned = [":---"] * len(table.grid.rows) + ["---:"] * (len(heads) - len(table.grid.rows))
    lines = [[markdown_cell(head) for head in heads], aligned]
    for key, cells in zip(table.grid.row_keys, table.cells, strict=True):
        line = [markdown_cell(label or "–") for label in key]
        for column, cell in zip(table.columns, cells, strict=True):
            value, rest = _figure(cell, interval)
            value = f"**{value}**" if cell.best else value
            mark = "†" if cell.dirty and cell.estimate is not None else ""
            line.append(f"{value} {rest}".strip() + mark)
            if _has_gap(table, column):
                line.append(_gap(cell).replace("*", "\\*"))
        lines.append(line)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if table.claims:
        text += "\n" + "".join(
            f"- {markdown_cell(claim_sentence(claim))}\n" for claim in table.claims
        )
    notes = "\n\n".join(markdown_cell(note) for note in notes_of(table))
    return f"{text}\n{notes}\n\nMade by `{table.options.command.replace('`', '')}`.\n"


# LaTeX

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "−": "$-$", "–": "--", "±": r"$\pm$", "†": r"\dag{}",
    "λ": r"$\lambda$", "<": r"\textless{}", ">": r"\textgreater{}", "…": r"\dots{}",
    '"': "''", "|": r"\textbar{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in " ".join(shown(text).split()))


def _latex(table: Table, interval: Interval) -> str:
    labels = len(table.grid.rows)
    widths = [2 if _has_gap(table, column) else 1 for column in table.columns]
    lines = [
        "% Needs \\usepackage{booktabs}.",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{_tex(' '.join(notes_of(table)[: 1 + len(table.specs)]))}}}",
        f"\\begin{{tabular}}{{{'l' * labels}{'r' * sum(widths)}}}",
        "\\toprule",
        *_latex_spans(table, labels, widths),
        " & ".join(_tex(head) for head in [*table.grid.rows, *_latex_heads(table)]) + r" \\",
        "\\midrule",
    ]
    for key, cells in zip(table.grid.row_keys, table.cells, strict=True):
        line = [_tex(label or "–") for label in key]
        for column, cell in zip(table.columns, cells, strict=True):
            value, rest = map(_tex, _figure(cell, interval))
            value = f"\\textbf{{{value}}}" if cell.best else value
            mark = _tex("†") if cell.dirty and cell.estimate is not None else ""
            line.append(value + (f" {{\\scriptsize {rest}}}" if rest else "") + mark)
            if _has_gap(table, column):
                line.append(_tex(_gap(cell)))
        text = " & ".join(line)
        # Else the end of the row before would take these for its own option.
        lines.append(("{}" if text[:1] in {"[", "*"} else "") + text + r" \\")
    under = [*(claim_sentence(claim) for claim in table.claims), *notes_of(table)]
    del under[len(table.claims) : len(table.claims) + 1 + len(table.specs)]
    under.append(f"Made by: {table.options.command}.")
    lines += ["\\bottomrule", "\\end{tabular}", "", "\\smallskip", "{\\footnotesize"]
    lines += [_tex(note) + r"\par" for note in under]
    return "\n".join([*lines, "}", "\\end{table}"]) + "\n"


def _latex_spans(table: Table, labels: int, widths: Sequence[int]) -> list[str]:
    """The line above the heads that names the columns' values, each over its measures."""
    if table.grid.column is None:
        return []
    parts, rules, at = [""] * labels, [], labels
    keys = list(dict.fromkeys(column.key for column in table.columns))
    for key in keys:
        width = sum(w for w, c in zip(widths, table.columns, strict=True) if c.key == key)
        parts.append(f"\\multicolumn{{{width}}}{{c}}{{{_tex(key or '–')}}}")
        rules.append(f"\\cmidrule(lr){{{at + 1}-{at + width}}}")
        at += width
    return [" & ".join(parts) + r" \\", " ".join(rules)]


def _latex_heads(table: Table) -> list[str]:
    heads = []
    for column in table.columns:
        heads.append(f"{measure_title(column.spec)} {arrow(column.spec)}")
        if _has_gap(table, column):
            heads.append(f"− {table.options.reference}")
    return heads


# CSV and JSON


_FORMULA = {"=", "+", "-", "@", "\t"}


def figures(table: Table) -> Iterator[dict[str, Any]]:
    """Every figure of the table as one flat row; rates are fractions.

    An axis that is called as a figure is, such as ``value``, has the key ``axis_value``.
    """
    for key, cells in zip(table.grid.row_keys, table.cells, strict=True):
        for column, cell in zip(table.columns, cells, strict=True):
            if column.average:
                continue
            found, gap = cell.estimate, cell.gap
            labels = dict(zip(table.grid.rows, key, strict=True))
            if table.grid.column:
                labels[table.grid.column] = column.key
            told = {
                "measure": column.spec.measure,
                "set": "+".join(found.sets) if found else column.spec.set,
                "judge": "+".join(found.judges) if found else column.spec.judge,
                "indicative": column.spec.indicative,
                "state": "complete" if found else FAILED if cell.failed else MISSING,
                "value": found.value if found else None,
                "lo": found.low if found else None,
                "hi": found.high if found else None,
                "prompts": found.n if found else 0,
                "seeds": " ".join(map(str, found.seeds)) if found else "",
                "unscored": found.unscored if found else 0,
                "failed": cell.failed,
                "dirty": cell.dirty,
                "best": cell.best,
                "reference": table.options.reference,
                "difference": gap.value if gap else None,
                "difference_lo": gap.low if gap else None,
                "difference_hi": gap.high if gap else None,
                "p_value": gap.p if gap else None,
                "p_holm": gap.p_holm if gap else None,
            }
            apart = {f"axis_{name}" if name in told else name: at for name, at in labels.items()}
            yield apart | told


def _csv(table: Table) -> str:
    rows = list(figures(table))
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _plain(value: Any) -> Any:
    """Six figures of a float; true and false in small letters; nothing for None.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{shown(value)}" if value.lstrip()[:1] in _FORMULA else shown(value)
    return f"{value:.6g}" if isinstance(value, float) else value


def _to_json(table: Table) -> dict[str, Any]:
    return {
        "rows": list(table.grid.rows),
        "columns": table.grid.column,
        "fixed": table.grid.fixed,
        "figures": list(figures(table)),
        "non_inferiority": [asdict(claim) for claim in table.claims],
        "failed": [
            {"labels": run.labels, "seed": run.seed, "error": without_paths(run.error or "")}
            for run in table.grid.failed
        ],
        "notes": notes_of(table),
        "command": table.options.command,
    }
