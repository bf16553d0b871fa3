"""The tables of ``anchortune anchor inspect`` and ``compare`` on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anchortune.untrusted import cell, inert

if TYPE_CHECKING:
    from anchortune.anchor.compare import Comparison
    from anchortune.anchor.inspect import AnchorReport, ModuleReport
_FIGURES = ("‖dW‖", "stable rank", "rank", "kept", "c min", "c max")
_WIDE = 122


def print_comparison(found: Comparison) -> None:
    """A row for each module, what its columns are, and how to read them."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, _WIDE))
    prefix = shared_prefix([module.module for module in found.modules])
    console.print(f"A  {inert(found.a)}\nB  {inert(found.b)}", markup=False, highlight=False)
    table = Table()
    table.add_column(cell(f"module ({prefix}…)" if prefix else "module"), overflow="fold")
    headings = ("ranks", "cosine", "chance", "angle", "random", "mean", "random", "B in A", "k/d")
    for heading in headings:
        table.add_column(heading, justify="right")
    for module in found.modules:
        left = module.left
        table.add_row(
            cell(module.module[len(prefix) :]),
            f"{module.ranks[0]}, {module.ranks[1]}",
            f"{module.cosine:+.1e}",
            f"{module.chance:.1e}",
            f"{left.angle_min:.1f}°",
            f"{left.random_min:.1f}°",
            f"{left.angle_mean:.1f}°",
            f"{left.random_mean:.1f}°",
            f"{left.share:.1%}",
            f"{left.chance:.1%}",
        )
    console.print(table)
    console.print(
        "angle: the smallest principal angle of the output subspaces, mean: the mean of them, each "
        "beside random subspaces of the same dimensions (16 draws). B in A: share of B's energy "
        "inside A's output subspace, beside chance.",
        highlight=False,
    )
    console.print(
        f"all modules as one: cosine {found.cosine:+.2e}, chance {found.chance:.2e}",
        highlight=False,
    )
    console.print(inert(found.reading()), markup=False, highlight=False)
    for name, missing in (("A", found.only_b), ("B", found.only_a)):
        if missing:
            console.print(
                f"[yellow]not compared:[/] {len(missing)} modules that {name} does not cover "
                f"({cell(missing[0])}{', …' if len(missing) > 1 else ''})",
                highlight=False,
            )


def print_report(report: AnchorReport) -> None:
    """One table where there is room (or no terminal), two narrow ones elsewhere; then warnings."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, _WIDE))
    prefix = shared_prefix([module.module for module in report.modules])
    operators = tuple(report.modules[0].selectivity)
    headings = (*_FIGURES, *operators)
    rows = [(module.module[len(prefix) :], *_row(module)) for module in report.modules]
    split = len(_FIGURES)
    parts = [slice(0, None)] if console.width >= _WIDE else [slice(0, split), slice(split, None)]
    console.print(inert(f"Anchor {report.aligned} - {report.base}"), markup=False, highlight=False)
    for part in parts:
        table = Table()
        table.add_column(cell(f"module ({prefix}…)" if prefix else "module"), overflow="fold")
        for heading in headings[part]:
            table.add_column(heading, justify="right")
        for name, *cells in rows:
            table.add_row(cell(name), *cells[part])
        console.print(table)
    console.print(
        "c: eigenvalues of gram. The last columns are each operator's selectivity: what a random "
        "update of unit size costs over what one along dW costs. 1 is no better than norm decay; "
        "∞ means that along is free.",
        highlight=False,
    )
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {cell(warning)}", highlight=False, soft_wrap=True)


def shared_prefix(names: list[str]) -> str:
    """The leading name parts that all ``names`` share, up to the first number."""
    first = names[0].split(".")
    end = next((i for i, part in enumerate(first) if part.isdigit()), 0)
    prefix = "".join(f"{part}." for part in first[:end])
    return prefix if all(name.startswith(prefix) for name in names) else ""


def _row(module: ModuleReport) -> tuple[str, ...]:
    ratios = ["∞" if s.ratio is None else f"{s.ratio:.2f}" for s in module.selectivity.values()]
    return (
        f"{module.norm:.3g}",
        f"{module.stable_rank:.1f}",
        str(module.rank),
        f"{module.kept_energy_frac:.1%}",
        f"{module.eigenvalue_min:.2g}",
        f"{module.eigenvalue_max:.2g}",
        *ratios,
    )
