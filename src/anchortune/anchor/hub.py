"""An anchor on the Hub: one safetensors file, and a card that names both parents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from anchortune.anchor.format import AnchorMetadata, Identity, serialise
from anchortune.checkpoints.source import network_errors
from anchortune.errors import AnchorError
from anchortune.untrusted import markdown_cell

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor

FILE_NAME = "anchor.safetensors"
"""What the anchor is called in a repository."""


def card(anchor: Anchor, repo_id: str) -> str:
    """The README.md of a shared anchor: parents, licences, settings, and how to use it."""
    metadata = anchor.metadata
    shapes = sorted({" × ".join(map(str, info.shape)) for info in metadata.modules.values()})
    kept = [info.kept_energy_frac for info in metadata.modules.values()]
    ranks = [info.rank for info in metadata.modules.values()]
    hub_parents = [p.id for p in (metadata.aligned, metadata.base) if p.revision is not None]
    front = ["---", "library_name: anchortune", "tags:", "- anchortune", "- asft", "- safety"]
    if hub_parents:
        front += ["base_model:", *[f"- {_name(name)}" for name in dict.fromkeys(hub_parents)]]
    energy = "" if metadata.settings.energy is None else f", energy {metadata.settings.energy}"
    return "\n".join(
        [
            *front,
            "---",
            "",
            "# " + markdown_cell(f"Anchor: {metadata.aligned.id} - {metadata.base.id}"),
            "",
            _what(metadata),
            "",
            "| | harmful | aligned |" if metadata.harmful else "| | aligned | base |",
            "|---|---|---|",
            *[
                f"| {title} | {_cell(metadata.aligned, key)} | {_cell(metadata.base, key)} |"
                for title, key in (
                    ("model", "id"),
                    ("kind", "kind"),
                    ("revision", "revision"),
                    ("SHA-256 of the tensors read", "sha256"),
                    ("licence", "licence"),
                )
            ],
            "",
            "The factors are derived from both models' weights: their licences apply to this file.",
            "",
            f"* modules: {len(anchor)} ({_targets(metadata.settings.target_modules)}), "
            f"shapes {', '.join(shapes)}",
            f"* rank {min(ranks)} to {max(ranks)} (asked: {metadata.settings.rank}{energy}), "
            f"keeping {min(kept):.1%} to {max(kept):.1%} of ‖dW‖²",
            f"* file format {metadata.format_version}, made by {metadata.created_by}, "
            f"SHA-256 `{anchor.sha256}`",
            *[f"* note: {markdown_cell(note)}" for note in metadata.notes],
            "",
            "```python",
            "from anchortune import Anchor, attach",
            "",
            f'anchor = Anchor.from_pretrained("{repo_id}")',
            'attach(trainer, anchor, side="along")'
            if metadata.harmful
            else "attach(trainer, anchor)",
            "```",
            "",
        ]
    )


def _what(metadata: AnchorMetadata) -> str:
    paper = "([AsFT](https://arxiv.org/abs/2506.08473))"
    harmful = metadata.harmful
    if harmful is None:
        return (
            "The low-rank factors of the difference between an aligned language model and the "
            f"model it was aligned from, for fine-tuning that keeps the alignment {paper}."
        )
    how = "a short fine-tune" if harmful.method == "tune" else "one gradient pass"
    return (
        f"The low-rank factors of a harmful direction: where {how} on {harmful.pairs} harmful "
        "pairs moves an aligned language model. For fine-tuning that keeps off that direction "
        f"{paper}. Added to the aligned model it would undo its alignment."
    )


def _name(name: str) -> str:
    """A name in YAML's front matter: as it is where it is plain, else in quotes."""
    return name if re.fullmatch(r"[\w./-]+", name) else json.dumps(name)


def _cell(parent: Identity, key: str) -> str:
    value = getattr(parent, key)
    return "not stated" if value is None else markdown_cell(str(value))


def _targets(targets: list[str] | str) -> str:
    text = markdown_cell(targets if isinstance(targets, str) else ", ".join(targets))
    return re.sub(r"(?<=\w)\\_(?=\w)", "_", text)  # which within a word is no markup


def push(
    anchor: Anchor,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    endpoint: str | None = None,
) -> str:
    """Creates the repository if need be and commits file and card; returns the commit's address.

    Raises:
        AnchorError: the Hub refused, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=endpoint, token=token)
    files = {
        FILE_NAME: serialise(anchor.modules, anchor.metadata),
        "README.md": card(anchor, repo_id).encode(),
    }
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()
    ]
    # ValueError: a bad repository name, card or upload, in the client's own words.
    failures: tuple[type[Exception], ...] = (HfHubHTTPError, ValueError, *network_errors())
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(
            repo_id, operations=operations, commit_message=f"Anchor {anchor.sha256[:12]}"
        )
    except failures as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AnchorError(f"{repo_id} could not be pushed to the Hub: {first}") from error
    return str(commit.commit_url)


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> Path:
    """The local path of a shared anchor's file; a folder that holds one is taken as it is.

    Raises:
        AnchorError: no such repository, revision or file, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if Path(repo_id).is_dir():
        return Path(repo_id) / FILE_NAME
    failures: tuple[type[Exception], ...] = (HfHubHTTPError, HFValidationError, *network_errors())
    try:
        path = hf_hub_download(
            repo_id, FILE_NAME, revision=revision, token=token, endpoint=endpoint
        )
    except RevisionNotFoundError as error:
        raise AnchorError(
            f"{repo_id} has no revision {revision!r} on the Hub: choose another, or leave it out"
        ) from error
    except RepositoryNotFoundError as error:
        raise AnchorError(
            f"{repo_id} is no repository that this token may read"
            ": check its name, or log in (`hf auth login`)"
        ) from error
    except LocalEntryNotFoundError as error:
        raise AnchorError(
            f"{repo_id} is not in the local cache and the Hub cannot be reached (offline?)"
            ": give a local file, or fetch it where there is a network"
        ) from error
    except EntryNotFoundError as error:
        raise AnchorError(
            f"{repo_id} holds no {FILE_NAME}: it is no anchor, so name another repository"
        ) from error
    except failures as error:
        raise AnchorError(f"{repo_id} could not be fetched from the Hub: {error}") from error
    return Path(path)
