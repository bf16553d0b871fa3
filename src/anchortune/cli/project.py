"""``anchortune project`` and ``anchortune extrapolate``: after and before training, without any."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anchortune.cli.say import say, say_json
from anchortune.errors import ConfigError

if TYPE_CHECKING:
    from anchortune.defences.base import Defence
    from anchortune.jobs.project import Figures

Method = Literal["safe-lora", "subspace", "csulora", "resta"]
AsJson = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]
AnchorFile = Annotated[
    str, typer.Option(metavar="FILE", help="The anchor of aligned - base: a file or Hub id.")
]
OtherStart = Annotated[
    bool, typer.Option("--allow-other-start", help="Go on though the anchor is of another model.")
]
_PARTS = {"aligned": "aligned", "one_sided": "one-sided", "outside": "outside"}


def project(
    adapter: Annotated[str, typer.Argument(help="A LoRA adapter: a folder or Hub id.")],
    method: Annotated[Method, typer.Option(help="How it is mended.")],
    anchor: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The anchor of aligned - base: a file or Hub id."),
    ] = None,
    harmful_anchor: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of harmful - aligned, for resta with vector=harmful."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The new folder (default: ADAPTER-METHOD)."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method, e.g. rank=8."),
    ] = None,
    allow_other_start: OtherStart = False,
    as_json: AsJson = False,
) -> None:
    """Mend a saved adapter against an anchor, in seconds; a new standard adapter is written."""
    chosen = make_method(method, overrides or [])
    options = {
        "anchor": ("--anchor", anchor),
        "harmful_anchor": ("--harmful-anchor", harmful_anchor),
    }
    for key, (option, given) in options.items():
        if key in chosen.needed() and given is None:
            raise ConfigError(f"--method {method} needs {option} FILE with these settings.")
    for key, (option, given) in options.items():
        if key not in chosen.needed() and given is not None:
            raise ConfigError(
                f"--method {method} reads no {option} with these settings; leave it out."
            )
    from anchortune.cli.stage import log_to_stderr
    from anchortune.jobs import project as job
    from anchortune.jobs.origin import OpenAnchor

    log_to_stderr()
    folder = output or _default_output(adapter, method)
    job.refuse_existing(folder)
    record, figures = job.project(
        adapter,
        chosen,
        folder,
        anchor=None if anchor is None else OpenAnchor.at(anchor),
        harmful=None if harmful_anchor is None else OpenAnchor.at(harmful_anchor, harmful=True),
        allow_other_start=allow_other_start,
    )
    if as_json:
        _print_json(record)
        return
    say(f"{folder}: {adapter} mended by {method}, {record.timings['total_s']:.1f} s")
    _print_figures(figures)


def extrapolate(
    anchor: AnchorFile,
    model: Annotated[str, typer.Option(help="The aligned model: a folder or Hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The new folder.")],
    rank: Annotated[
        str, typer.Option(metavar="N|full", help="Directions of dW; full: all the anchor's.")
    ] = "6",
    alpha: Annotated[float, typer.Option(help="How far, in units of dW.")] = 1.25,
    adapter: Annotated[
        str | None, typer.Option(help="The alignment adapter, where the aligned model has one.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model's Hub id.")
    ] = None,
    allow_other_start: OtherStart = False,
    as_json: AsJson = False,
) -> None:
    """Write LoX's move of the aligned model along its anchor as a standard adapter on it."""
    from anchortune.cli.anchor import parse_rank
    from anchortune.cli.stage import log_to_stderr
    from anchortune.config import ModelSection
    from anchortune.config_io import validate
    from anchortune.defences.lox import Lox
    from anchortune.jobs import project as job
    from anchortune.jobs.origin import OpenAnchor

    log_to_stderr()
    limit = parse_rank(rank)
    tree = {"rank": None if limit == "full" else limit, "alpha": alpha}
    lox = validate(tree, Lox, "extrapolate")
    job.refuse_existing(output)
    record = job.extrapolate(
        ModelSection(path=model, revision=revision, adapter=adapter),
        lox,
        OpenAnchor.at(anchor),
        output,
        allow_other_start=allow_other_start,
    )
    if as_json:
        _print_json(record)
        return
    metrics = record.metrics
    say(
        f"{output}: {metrics['modules']} modules moved by {alpha:g} · dW at rank "
        f"{metrics['rank_max']} or less, norm {metrics['norm']:.4g}"
    )


def make_method(name: Method, overrides: list[str]) -> Defence:
    """A method with the settings that ``--set`` gives.

    ``subspace`` is Safe LoRA that projects every module onto the anchor's left subspace.

    Raises:
        ConfigError: a setting that the method has not, or a wrong value.
    """
    from anchortune.config_io import assign, validate
    from anchortune.defences.registry import defence_class

    tree: dict[str, Any] = {}
    for item in overrides:
        assign(tree, item)
    if name == "subspace":
        other = sorted(set(tree) - {"rank"})
        if other:
            raise ConfigError(f"--method subspace: unknown key '{other[0]}'; known here: rank.")
        tree |= {"operator": "subspace", "threshold": 1.0}
    if "name" in tree:
        raise ConfigError("--set name: leave it out; the method is chosen with --method.")
    kind = defence_class("safe-lora" if name == "subspace" else name)
    return validate(tree, kind, f"--method {name}")


def _default_output(adapter: str, method: str) -> Path:
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        return Path(f"{adapter.rsplit('/', 1)[-1]}-{method}")
    if folder.name in ("", ".."):
        folder = folder.resolve()
    return folder.with_name(f"{folder.name}-{method}")


def _print_json(record: Any) -> None:

    say_json(record.model_dump(mode="json"))


def _print_figures(figures: Figures) -> None:
    from rich.console import Console
    from rich.table import Table

    change = "" if figures.change_frac is None else f", by {figures.change_frac:.1%} of its norm"
    say(f"{figures.changed} of {figures.total} modules changed{change}")
    before = sum(figures.energy_before.values())
    table = Table("part of the update", box=None, pad_edge=False)
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    for key, name in _PARTS.items():
        values = (figures.energy_before[key], figures.energy_after[key])
        table.add_row(name, *(_share(value, before) for value in values))
    after = sum(figures.energy_after.values())
    table.add_row("together", _share(before, before), _share(after, before))
    console = Console()
    console.print(table, highlight=False)
    console.print(
        "Shares of the update's energy ‖U‖² before, by where it lies against the anchor.",
        highlight=False,
        soft_wrap=True,
    )


def _share(value: float, whole: float) -> str:
    return f"{value / whole:.2%}" if whole else "–"
