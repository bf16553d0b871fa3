"""``anchortune drift`` and ``anchortune separate``: how trained updates lie to an anchor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anchortune.cli.complete import devices
from anchortune.cli.say import say, say_json
from anchortune.untrusted import cell, inert

if TYPE_CHECKING:
    from anchortune.landscape.directions_again import Estimates
    from anchortune.landscape.run import Run
    from anchortune.landscape.separate import Separation
    from anchortune.report.drift import Drift

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def drift(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The output folder of a train or align.")
    ],
    anchor: Annotated[
        Path | None, typer.Option(help="The anchor's file; unset: the one the run was given.")
    ] = None,
    harmful_anchor: Annotated[
        Path | None, typer.Option(help="A harmful anchor's file, to look at too.")
    ] = None,
    refusals: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Estimate the alignment direction again, on these."),
    ] = None,
    harmful: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Estimate the harmful direction again, on these pairs."),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=2, help="Use a seeded sample of this many rows of each.")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Directions of an estimate.")] = 32,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The folder to write; unset: RUN/drift.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where.", autocompletion=devices)
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, and say what it takes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a run's update lies to the anchor at every checkpoint, and how directions turn."""
    from anchortune.cli.stage import log_to_stderr
    from anchortune.errors import TrainingError
    from anchortune.files import why_not_writable

    folder = output or run / "drift"
    if not run.is_dir():
        raise TrainingError(f"{run} is no folder: give the output of anchortune train or align")
    reason = why_not_writable(folder / "drift.json")
    if reason is not None:
        raise TrainingError(f"-o {folder} cannot be written: {reason}")
    if rows is not None and refusals is None and harmful is None:
        raise TrainingError(
            "--rows is of --refusals and --harmful, and neither is given"
            "; give one of them, or leave --rows out"
        )
    log_to_stderr()

    from anchortune.anchor.anchor import Anchor
    from anchortune.landscape.drift import measure_drift, write_drift
    from anchortune.landscape.run import read_run
    from anchortune.report.drift_plots import plot_drift

    read = read_run(run)
    held = _anchor(read, anchor)
    other = None if harmful_anchor is None else Anchor.load(harmful_anchor)
    plan = _plan(read, (held, other), (refusals, harmful), rows, rank, device)
    if dry_run:
        lines = plan.lines() if plan is not None else []
        if as_json:
            places = [place.label for place in read.places]
            say_json({"run": str(run), "places": places, "notes": read.notes, "directions": lines})
        else:
            say("\n".join([*_told(read), *lines]))
        return
    names = (_name(held), None if other is None else _name(other))
    directions, facts = _estimated(plan)
    found = measure_drift(read, held, other, names=names, directions=directions)
    found = found.model_copy(update=facts)
    path = write_drift(found, folder)
    plot_drift(found, folder / "drift.png")
    if as_json:
        say_json(found.model_dump(mode="json"))
        return
    _print(found)
    say(f"{path} and drift.png beside it")


def separate(
    benign: Annotated[
        Path, typer.Argument(metavar="BENIGN", help="An adapter trained on benign rows alone.")
    ],
    harmful: Annotated[
        Path, typer.Argument(metavar="HARMFUL", help="One trained on harmful rows alone.")
    ],
    anchor: Annotated[Path, typer.Option(help="The anchor of the model that both started from.")],
    as_json: AsJson = False,
) -> None:
    """Show whether benign and harmful updates lie in one subspace: anchor shares and angles."""
    from anchortune.anchor.anchor import Anchor
    from anchortune.landscape.separate import separate as find

    found = find(_aligned(Anchor.load(anchor), anchor), benign, harmful)
    if as_json:
        say_json(found.to_json())
        return
    _print_separation(found)


def _anchor(run: Run, given: Path | None) -> Any:
    from anchortune.anchor.anchor import Anchor
    from anchortune.errors import AnchorError
    from anchortune.training.anchored import open_anchor

    if given is not None:
        return _aligned(Anchor.load(given), given)
    penalty, named = (getattr(run.config, key, None) for key in ("penalty", "anchor"))
    if named is not None:
        return open_anchor(named.path, named.revision, "anchor.revision")
    if penalty is not None:
        held = open_anchor(penalty.anchor, penalty.revision, "penalty.revision")
        if held.metadata.harmful is None:
            return held
    raise AnchorError(f"{run.path} was trained without an anchor: name one with --anchor FILE")


def _aligned(anchor: Any, place: Path) -> Any:
    """The anchor, which must be no harmful one: its figures would say the contrary."""
    from anchortune.errors import AnchorError

    if anchor.metadata.harmful is not None:
        raise AnchorError(
            f"--anchor {place} is a harmful anchor, along which safety is lost; give the one of "
            "aligned - base (drift takes this one as --harmful-anchor)."
        )
    return anchor


def _plan(
    run: Run,
    anchors: tuple[Any, Any],
    data: tuple[str | None, str | None],
    rows: int | None,
    rank: int,
    device: str,
) -> Estimates | None:
    from anchortune.config import DataSection, MachineSection
    from anchortune.config_io import validate
    from anchortune.landscape.directions_again import Asked, plan_directions

    machine = validate({"device": device}, MachineSection, "drift")
    asked = []
    if data[0] is not None:
        asked.append(Asked("aligned", DataSection(path=data[0], max_rows=rows), anchors[0]))
    if data[1] is not None:
        asked.append(Asked("harmful", DataSection(path=data[1], max_rows=rows), anchors[1]))
    if not asked:
        return None
    return plan_directions(run, anchors[0], asked, rank=rank, machine=machine)


def _estimated(plan: Estimates | None) -> tuple[list[Any], dict[str, Any]]:
    if plan is None:
        return [], {}
    import time

    from anchortune.landscape.directions_again import directions_again
    from anchortune.progress import Progress

    started = time.perf_counter()
    with Progress("directions", len(plan.run.places) + 1) as tell:
        found = directions_again(plan, lambda done, _: tell(done))
    facts = {
        "platform": {"device": plan.numbers.device.type, "dtype": plan.numbers.compute_name},
        "timings": {"directions_s": time.perf_counter() - started},
    }
    return found, facts


def _name(anchor: Any) -> str:
    metadata = anchor.metadata
    if metadata.harmful is not None:
        return f"{metadata.harmful.method} on {metadata.harmful.pairs} pairs"
    return f"{metadata.aligned.id} - {metadata.base.id}"


def _told(run: Run) -> list[str]:
    places = ", ".join(place.label for place in run.places)
    return [f"run     {run.path}: {places}", *(f"note    {note}" for note in run.notes)]


def _print(found: Drift) -> None:
    from rich.table import Table

    console = _console()
    table = Table(title=cell(f"{found.run} ({found.method}) against {found.anchor}"))
    headings = ["", "‖U‖²", "forwards", "backwards", "chance", "inside", "chance", "off"]
    if found.harmful is not None:
        headings += ["along harm", "against", "in harm", "chance"]
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for place in found.places:
        shares, harm = place.whole.anchor, place.whole.harmful
        cells = [
            cell(place.label), f"{shares.energy:.3g}", _small(shares.forwards),
            _small(shares.backwards), f"{shares.chance_along:.1e}", f"{shares.inside:.1%}",
            f"{shares.chance_inside:.1%}", f"{shares.off:.1%}",
        ]  # fmt: skip
        if harm is not None:
            cells += [_small(harm.forwards), _small(harm.backwards), f"{harm.inside:.1%}",
                      f"{harm.chance_inside:.1%}"]  # fmt: skip
        table.add_row(*cells)
    console.print(table)
    console.print(
        "Shares of the update's energy: along the anchor's direction, with it and against it, "
        "inside its output subspaces, off them; each beside chance. By layer: drift.json.",
        highlight=False,
    )
    for direction in found.directions:
        _print_turns(console, direction)
    for note in found.notes:
        console.print(inert(f"note: {note}"), markup=False, highlight=False)


def _print_turns(console: Any, direction: Any) -> None:
    from rich.table import Table

    what = "alignment" if direction.name == "aligned" else "harmful"
    table = Table(
        title=cell(f"The {what} direction again, by {direction.rows} rows of {direction.data}")
    )
    for heading in ("", "cosine with step 0", "angle", "random", "in step 0's", "chance",
                    "cosine with anchor"):  # fmt: skip
        table.add_column(heading, justify="right" if heading else "left")
    start = direction.start_cosine
    table.add_row("step 0", "1", "", "", "", "", "" if start is None else f"{start:+.3f}")
    for turn in direction.turns:
        table.add_row(
            cell(turn.label), f"{turn.cosine:+.3f}", f"{turn.angle_mean:.1f}°",
            f"{turn.random_mean:.1f}°", f"{turn.inside:.1%}", f"{turn.chance_inside:.1%}",
            "" if turn.anchor_cosine is None else f"{turn.anchor_cosine:+.3f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"Chance of a |cosine|: {direction.chance:.1e}. Two halves of the rows, both at step 0: "
        f"{direction.noise:+.3f}; the rows alone make estimates differ by that much.",
        highlight=False,
    )


def _print_separation(found: Separation) -> None:
    from rich.table import Table

    from anchortune.cli.anchor_tables import shared_prefix

    console = _console()
    prefix = shared_prefix([one.module for one in found.modules])
    table = Table(title=cell(f"{found.names[1]} and {found.names[2]} beside {found.names[0]}"))
    for heading in ("module", "benign", "harmful", "k/d", "∠ benign", "∠ harmful", "random",
                    "cosine", "∠ both", "random"):  # fmt: skip
        right = heading != "module"
        shown = heading if right or not prefix else cell(f"module ({prefix}…)")
        table.add_column(shown, justify="right" if right else "left", no_wrap=True)
    for one in found.modules:
        table.add_row(
            cell(one.module[len(prefix) :]), f"{one.benign.left.share:.1%}",
            f"{one.harmful.left.share:.1%}",
            f"{one.benign.left.chance:.1%}", f"{one.benign.left.angle_mean:.1f}°",
            f"{one.harmful.left.angle_mean:.1f}°", f"{one.benign.left.random_mean:.1f}°",
            f"{one.between.cosine:+.2e}", f"{one.between.left.angle_mean:.1f}°",
            f"{one.between.left.random_mean:.1f}°",
        )  # fmt: skip
    console.print(table)
    console.print(
        "benign, harmful: share of either update's energy inside the anchor's output subspace, "
        "beside chance (k/d). ∠: mean principal angle of output subspaces, of either to the "
        "anchor's and of both to each other, beside random ones. cosine: of both updates.",
        highlight=False,
    )
    console.print(inert(found.reading()), markup=False, highlight=False)
    if found.left_out:
        console.print(
            f"left out: {len(found.left_out)} modules that only one of the two moves",
            highlight=False,
        )


def _small(share: float) -> str:
    """A share that is often far below a per cent."""
    return "0" if share == 0 else f"{share:.1%}" if share >= 0.01 else f"{share:.1e}"


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 122))
