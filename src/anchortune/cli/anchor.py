"""``anchortune anchor``: build, inspect and share an anchor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anchortune.cli.anchor_tables import print_comparison, print_report
from anchortune.cli.complete import devices
from anchortune.cli.groups import Group
from anchortune.cli.say import say, say_json
from anchortune.cli.train import AsJson, HowRead, data_section
from anchortune.errors import AnchorError
from anchortune.files import why_not_writable

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor

app = typer.Typer(
    help="Build an anchor, from two checkpoints or harmful data; look into it, share it.",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,  # as in app.py
)

AnchorFile = Annotated[Path, typer.Argument(metavar="FILE", help="An anchor file.")]


@app.command()
def build(
    aligned: Annotated[
        str,
        typer.Option(help="The safe model: folder, Hub id, .gguf, or LoRA adapter on the base."),
    ],
    base: Annotated[str, typer.Option(help="What it was aligned from: folder, Hub id or .gguf.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    target_modules: Annotated[
        str,
        typer.Option(
            help="Names by comma, all-linear, or a regular expression for whole module names."
        ),
    ] = "q_proj,v_proj",
    rank: Annotated[
        str | None,
        typer.Option(metavar="N|full", help="Singular triplets to keep (default 32)."),
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="Share of ‖dW‖² to keep, as 0.9; instead of a rank.")
    ] = None,
    aligned_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the aligned Hub id.")
    ] = None,
    base_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the base Hub id.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda", help="Where the arithmetic is done.", autocompletion=devices
        ),
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Build an anchor: the low-rank factors of aligned - base, streamed by name."""
    from anchortune.cli.stage import log_to_stderr

    _refuse_unwritable("-o", output)
    limit = parse_rank(rank)
    targets = parse_target_modules(target_modules)
    log_to_stderr()

    from anchortune.anchor.anchor import Anchor
    from anchortune.lock import locked
    from anchortune.progress import Progress

    with locked(output), Progress("anchor") as tell:
        anchor = Anchor.from_checkpoints(
            aligned,
            base,
            target_modules=targets,
            rank=limit,
            energy=energy,
            aligned_revision=aligned_revision,
            base_revision=base_revision,
            device=device,
            progress=lambda done, total, module: tell(done, total=total, note=module),
        )
        anchor.save(output)
    _print_built(anchor, output, as_json)


@app.command()
def harmful(
    model: Annotated[str, typer.Option(help="The aligned model: folder, Hub id or .gguf.")],
    data: Annotated[
        str, typer.Option(help="Harmful requests with harmful answers: a file or a Hub id.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    adapter: Annotated[
        str | None, typer.Option(help="A LoRA adapter that aligns the model (folder or Hub id).")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model's Hub id.")
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Use a seeded sample of this many pairs.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample and of the fine-tune.")] = 0,
    method: Annotated[
        str, typer.Option(metavar="tune|gradient", help="A fine-tune, or one gradient pass.")
    ] = "tune",
    target_modules: Annotated[
        str,
        typer.Option(
            help="Names by comma, all-linear, or a regular expression for whole module names."
        ),
    ] = "q_proj,v_proj",
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="LoRA's r of tune (default 8); triplets of gradient (32)."),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Of tune: passes over the pairs (default 10).")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of tune (default 2e-4).")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Of tune: pairs in a step (default 8).")
    ] = None,
    strip_cue: Annotated[
        str | None, typer.Option(help="Remove this from the end of every prompt.")
    ] = None,
    how_read: HowRead = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where.", autocompletion=devices)
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Make a harmful anchor: where harmful pairs pull the aligned model (AsFT-Alt needs one)."""
    from anchortune.cli.stage import log_to_stderr
    from anchortune.config import MachineSection, ModelSection
    from anchortune.config_io import validate
    from anchortune.jobs.harmful_config import HarmfulSettings

    _refuse_unwritable("-o", output)
    source = data_section(data, how_read)
    tree = {
        "data": source if strip_cue is None else source.model_copy(update={"strip_cue": strip_cue}),
        "pairs": pairs,
        "seed": seed,
        "method": method,
        "target_modules": parse_target_modules(target_modules),
        "rank": rank,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
    }
    settings = validate(tree, HarmfulSettings, "anchor harmful")
    machine = validate({"device": device}, MachineSection, "anchor harmful")
    start = ModelSection(path=model, revision=revision, adapter=adapter)
    log_to_stderr()

    from anchortune.jobs.harmful_anchor import make_harmful, plan_harmful

    plan = plan_harmful(start, settings, output, machine=machine)
    for line in plan.lines():
        say(line, err=True)
    anchor = make_harmful(plan)
    _print_built(anchor, output, as_json)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="An anchor file.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same model.")],
    plot: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="Draw it too: .png, .svg or .pdf.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two anchors: cosine, subspace angles and shared energy, each beside chance."""
    if plot is not None:
        _refuse_unwritable("--plot", plot)
    from anchortune.anchor.anchor import Anchor
    from anchortune.anchor.compare import compare_anchors, plot_comparison

    found = compare_anchors(Anchor.load(a), Anchor.load(b))
    _show(found, print_comparison, plot_comparison, plot, as_json)


@app.command()
def inspect(
    file: AnchorFile,
    plot: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="Draw it too: .png, .svg or .pdf.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show each module's figures, what each operator would punish, and warnings."""
    if plot is not None:
        _refuse_unwritable("--plot", plot)
    from anchortune.anchor.anchor import Anchor
    from anchortune.anchor.inspect import inspect_anchor, plot_anchor

    report = inspect_anchor(Anchor.load(file))
    _show(report, print_report, plot_anchor, plot, as_json)


def _show(
    found: Any,
    tell: Callable[[Any], None],
    draw: Callable[[Any, Path], None],
    plot: Path | None,
    as_json: bool,
) -> None:
    """Figures to stdout, as a table or as JSON, and drawn where that was asked for."""
    if plot is not None:
        draw(found, plot)
    if as_json:
        say_json(found.to_json())
        return
    tell(found)
    if plot is not None:
        say(f"picture: {plot}", err=True)


@app.command()
def push(
    file: AnchorFile,
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="org/name on the Hub.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Who may see a new repository.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Share an anchor on the Hub with a card that names both parents (token: `hf auth login`)."""
    from anchortune.anchor.anchor import Anchor

    anchor = Anchor.load(file)
    url = anchor.push_to_hub(repo_id, private=private)
    if as_json:
        say_json({"repo_id": repo_id, "commit": url, "sha256": anchor.sha256})
    else:
        say(url)


def parse_rank(value: str | None) -> int | Literal["full"] | None:
    """The rank that ``--rank`` means.

    Raises:
        AnchorError: neither a number nor ``full``.
    """
    if value is None or value == "full":
        return None if value is None else "full"
    if not value.isdecimal() or int(value) < 1:
        raise AnchorError(
            f"--rank {value} is neither a number above 0 nor 'full'; give one of them"
        )
    return int(value)


def parse_target_modules(value: str) -> list[str] | str:
    """``--target-modules``: ``all-linear``, a regular expression, or a list by comma."""
    if value == "all-linear" or any(sign in value for sign in "*^$[(\\|+?"):
        return value
    return [name.strip() for name in value.split(",")]


def _refuse_unwritable(option: str, path: Path) -> None:
    reason = why_not_writable(path)
    if reason is not None:
        raise AnchorError(f"{option} {path} cannot be written: {reason}")


def _print_built(anchor: Anchor, output: Path, as_json: bool) -> None:
    infos = anchor.metadata.modules.values()
    result = {
        "file": str(output),
        "sha256": anchor.sha256,
        "bytes": output.stat().st_size,
        "modules": len(anchor),
        "rank_max": max(info.rank for info in infos),
        "norm_max": max(info.norm for info in infos),
        "norm_min": min(info.norm for info in infos),
        "kept_energy_frac_min": min(info.kept_energy_frac for info in infos),
        "gram_error_bound_max": max(info.gram_error_bound for info in infos),
        "direction_cosine_min": min(info.direction_cosine for info in infos),
        "aligned": anchor.metadata.aligned.model_dump(),
        "base": anchor.metadata.base.model_dump(),
        "notes": anchor.metadata.notes,
    }
    if anchor.metadata.harmful is not None:
        result["harmful"] = anchor.metadata.harmful.model_dump(mode="json")
    if as_json:
        say_json(result)
        return
    say(f"{output}: {anchor!r}, {output.stat().st_size / 1e6:.1f} MB")
    say(
        f"‖dW‖ {result['norm_min']:.3g} to {result['norm_max']:.3g}; at least "
        f"{result['kept_energy_frac_min']:.1%} of ‖dW‖² kept. Truncation changes ‖(I - C)X‖ of "
        f"gram by at most {result['gram_error_bound_max']:.2g}·‖X‖; the kept direction has cosine "
        f"{result['direction_cosine_min']:.3f} or more with the whole one."
    )
    say(f"next: anchortune anchor inspect {output}")
