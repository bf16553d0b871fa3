"""``anchortune card`` and ``anchortune push``: what was made, told and shared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from anchortune.cli.say import say, say_json

Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="The output folder of a job or a training, or of project."),
]
WhichPart = Annotated[
    Literal["adapter-on-base", "adapter", "model"] | None,
    typer.Option("--part", help="Of several results; unset: adapter-on-base, where there is one."),
]
Evaluation = Annotated[
    Path | None,
    typer.Option(
        "--eval", metavar="DIR", help="An evaluation that measured it, for what is no job."
    ),
]
BaseId = Annotated[
    str | None,
    typer.Option(
        metavar="ORG/NAME", help="Where the base lies on the Hub, if the run used a file."
    ),
]
Licence = Annotated[
    str | None,
    typer.Option("--license", metavar="NAME", help="As the Hub calls it; unset: the base's."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def card(
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Write it there; unset: it is printed."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Its title, and what it is loaded by, as org/name.")
    ] = None,
    part: WhichPart = None,
    evaluation: Evaluation = None,
    base_id: BaseId = None,
    licence: Licence = None,
    as_json: AsJson = False,
) -> None:
    """Write the model card: the base it needs, the data, what was measured, with what limits."""
    from anchortune.errors import JobError
    from anchortune.files import why_not_writable, write_text
    from anchortune.report.card import CardOptions, title_of
    from anchortune.report.card import card as card_of
    from anchortune.report.card_front import front_matter
    from anchortune.report.card_source import read_made

    if out is not None:
        if reason := why_not_writable(out):
            raise JobError(f"--out {out} cannot be written: {reason}")
        if out.exists() and not force:
            raise JobError(f"--out {out} is there already; name another file, or give --force.")
    made = read_made(run, part=part, evaluation=evaluation)
    options = CardOptions(name, base_id, licence)
    text = card_of(made, options)
    if out is not None:
        write_text(out, text)
    if as_json:
        say_json(
            {
                "file": None if out is None else str(out),
                "folder": str(made.folder),
                "part": made.part,
                "decision": None if made.gate is None else made.gate["decision"],
                "front_matter": front_matter(made, title_of(made, options), base_id, licence),
                "card": text,
            }
        )
    else:
        say(str(out) if out is not None else text)


def push(
    run: Run,
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="org/name on the Hub.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would go, send nothing.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who may see a new repository.")
    ] = True,
    allow_stopped: Annotated[
        bool, typer.Option("--allow-stopped", help="Share what the gate did not let through.")
    ] = False,
    part: WhichPart = None,
    evaluation: Evaluation = None,
    base_id: BaseId = None,
    licence: Licence = None,
    as_json: AsJson = False,
) -> None:
    """Share what a run made on the Hub, with its card (token: HF_TOKEN, or `hf auth login`).

    What the gate stopped is refused, with exit code 3.
    """
    from anchortune.jobs.share import plan_upload
    from anchortune.jobs.share import push as upload
    from anchortune.report.card import CardOptions
    from anchortune.report.card_source import read_made

    made = read_made(run, part=part, evaluation=evaluation)
    options = CardOptions(base_id=base_id, licence=licence)
    plan = plan_upload(made, repo_id, options, allow_stopped=allow_stopped)
    commit = None if dry_run else upload(plan, private=private)
    if as_json:
        say_json({**plan.to_json(), "private": private, "commit": commit})
        return
    say("\n".join([*plan.lines(), commit or "nothing was sent (--dry-run)"]))
