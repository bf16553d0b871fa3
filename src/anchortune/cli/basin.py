"""``anchortune basin``: how far a model's weights can be moved before it is harmful."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anchortune.cli.complete import judges
from anchortune.cli.say import say, say_json

if TYPE_CHECKING:
    from anchortune.landscape.config import BasinConfig
    from anchortune.report.basin import Basin


def basin(
    config: Annotated[
        Path | None, typer.Argument(metavar="[FILE.yaml]", help="The config; flags change it.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The aligned model.")] = None,
    anchor: Annotated[str | None, typer.Option(help="An anchor's file: `aligned`.")] = None,
    harmful_anchor: Annotated[
        str | None, typer.Option(help="A harmful anchor's file: `harmful`.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=FOLDER", help="An adapter's update as a direction."),
    ] = None,
    direction: Annotated[
        list[str] | None,
        typer.Option(help="Look along this one only; again for another. NAME:inside, NAME:off."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="SET|FILE", help="Malicious prompts.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Who judges: a name, or its section.", autocompletion=judges)
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task asked at each place too; again for another.")
    ] = None,
    alpha_max: Annotated[float | None, typer.Option(help="How far out is looked.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="τ, a share.")] = None,
    draws: Annotated[int | None, typer.Option(help="Random directions.")] = None,
    scale: Annotated[str | None, typer.Option(metavar="layer|whole", help="Of d̂.")] = None,
    map_: Annotated[
        list[str] | None, typer.Option("--map", metavar="X,Y", help="Two directions at once.")
    ] = None,
    grid: Annotated[int | None, typer.Option(help="Places along each side of a map.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="The folder.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. resolution=0.05."),
    ] = None,
    redraw: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Only draw again what FOLDER/basin.json holds."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, estimate the cost, ask nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Find how far weights can be moved before the model is harmful; resumed where cut short."""
    from anchortune.cli.stage import log_to_stderr
    from anchortune.errors import ConfigError

    plain = {
        "model": model, "anchor": anchor, "harmful_anchor": harmful_anchor, "alpha_max": alpha_max,
        "tolerance": tolerance, "draws": draws, "scale": scale, "grid": grid, "output": output,
    }  # fmt: skip
    items = [f"{key}={_yaml(value)}" for key, value in plain.items() if value is not None]
    items += [f"adapters.{label}={_yaml(place)}" for label, place in map(_pair, adapter or [])]
    if direction:
        items.append(f"directions={_yaml(direction)}")
    if prompts is not None:
        items.append(f"harm={_yaml(_set(prompts))}")
    if judge is not None:
        items.append(f"judge={judge}")
    if task:
        items.append(f"tasks={_yaml(task)}")
    if map_:
        items.append(f"maps={_yaml([_plane(one) for one in map_])}")
    items += overrides or []
    if redraw is not None:
        if config is not None or items or dry_run:
            raise ConfigError("--redraw draws what is there; leave out everything else.")
        from anchortune.report.basin_page import read_basin
        from anchortune.report.basin_page import redraw as draw_again

        shown = draw_again(redraw)
        _print(read_basin(redraw), as_json, shown[-1])
        return
    log_to_stderr()
    _run(_config(config, items), dry_run=dry_run, as_json=as_json)


def _config(path: Path | None, items: list[str]) -> BasinConfig:
    from anchortune.config_io import assign, load_config, validate
    from anchortune.landscape.config import BasinConfig

    if path is not None:
        return load_config(path, BasinConfig, items)
    tree: dict[str, Any] = {}
    for item in items:
        assign(tree, item, BasinConfig)
    return validate(tree, BasinConfig, "the flags")


def _run(config: BasinConfig, *, dry_run: bool, as_json: bool) -> None:
    from anchortune.landscape.basin import finished, run_basin
    from anchortune.landscape.plan import plan_basin
    from anchortune.lock import locked
    from anchortune.report.basin_page import present

    plan = plan_basin(config, timed=dry_run)
    if dry_run:
        if as_json:
            say_json(plan.summary())
        else:
            say("\n".join(plan.lines()))
        return
    plan.folder.mkdir(parents=True, exist_ok=True)
    with locked(plan.folder):
        found = finished(plan)
        if found is None:
            found = run_basin(plan)
        shown = present(found, plan.folder)
    _print(found, as_json, shown[-1])


def _print(found: Basin, as_json: bool, page: Path) -> None:
    from anchortune.report.basin_table import render

    if as_json:
        say_json(found.model_dump(mode="json"))
        return
    say(render(found))
    say(str(page))


def _yaml(value: Any) -> str:
    """A value as YAML that is read back as it is, whatever characters a path has."""
    return json.dumps(value, ensure_ascii=False)


def _pair(text: str) -> tuple[str, str]:
    from anchortune.errors import ConfigError

    label, equals, place = text.partition("=")
    if not equals or not label or not place or "." in label:
        raise ConfigError(f"--adapter {text}: expected LABEL=FOLDER, without a dot in LABEL.")
    return label, place


def _set(text: str) -> dict[str, str]:
    """A known set by its name; else a file or a Hub dataset."""
    from anchortune.evaluation.prompt_sets import PROMPT_SETS

    return {"name" if text in PROMPT_SETS else "path": text}


def _plane(text: str) -> dict[str, str]:
    from anchortune.errors import ConfigError

    x, comma, y = text.partition(",")
    if not comma or not x or not y or "," in y:
        raise ConfigError(f"--map {text}: expected two directions, X,Y.")
    return {"x": x.strip(), "y": y.strip()}
