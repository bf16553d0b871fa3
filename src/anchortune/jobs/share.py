"""A trained adapter, or model, on the Hub: its files, its card, and the name of its base.

Uploaded is what somebody needs to load it. What stays here: ``record.json``, which names this
machine's paths, checkpoints, logs and data.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anchortune.checkpoints.source import network_errors
from anchortune.errors import JobError
from anchortune.files import is_temporary, parse_json
from anchortune.report.card import CARD_FILE, CardOptions, card
from anchortune.report.card_source import ADAPTER_CONFIG, HUB_ID, Made, as_a_run_writes_it
from anchortune.untrusted import stays_inside

#: By suffix, what loading needs; the rest of a folder stays here.
_WANTED = (".safetensors", ".jinja", ".model")
_TEXTS = ("merges.txt", "vocab.txt")
_JSON = re.compile(
    r"(adapter_config|config|generation_config|tokenizer|tokenizer_config|special_tokens_map"
    r"|added_tokens|vocab|chat_template|preprocessor_config|.*\.safetensors\.index)\.json"
)
_NOWHERE = (
    "which is nowhere on the Hub as far as is known, so nobody else could load it; give --base-id "
    "ORG/NAME, the same weights there."
)
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


class Stopped(JobError):
    """The gate did not let an adapter through, so it is not shared."""

    exit_code = 3


@dataclass(frozen=True)
class Upload:
    """What would be uploaded.

    Attributes:
        repo_id: ``org/name``.
        made: what the files are.
        files: name in the repository -> a file, or its content.
        base_id: the base's Hub id, which card and config name.
    """

    repo_id: str
    made: Made
    files: dict[str, Path | bytes]
    base_id: str | None

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(
            len(file) if isinstance(file, bytes) else file.stat().st_size
            for file in self.files.values()
        )

    def lines(self) -> list[str]:
        """For people: what would go where."""
        names = ", ".join(self.files)
        on = "" if self.made.part == "model" else f", on {self.base_id or 'a merged base'}"
        return [
            f"{self.made.folder} -> {self.repo_id}{on}",
            f"{len(self.files)} files, {self.bytes / 1e6:.1f} MB: {names}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "repo_id": self.repo_id,
            "folder": str(self.made.folder),
            "part": self.made.part,
            "base_model": self.base_id,
            "decision": None if self.made.gate is None else self.made.gate["decision"],
            "bytes": self.bytes,
            "files": list(self.files),
        }


def plan_upload(
    made: Made, repo_id: str, options: CardOptions | None = None, *, allow_stopped: bool = False
) -> Upload:
    """Everything that can be checked without the Hub, checked; nothing is sent.

    Args:
        made: what to share.
        repo_id: ``org/name``.
        options: for the card; its name is ``repo_id``.
        allow_stopped: share what the gate stopped; the card says so at its head.

    Raises:
        Stopped: the gate did not let it through.
        JobError: ``repo_id`` is no name on the Hub, the base that the adapter needs is nowhere
            that somebody else could load it from, or a file leads out of the folder.
        DataError: a record, or the adapter's config, is not what a run writes.
    """
    _check_names(repo_id, (options or CardOptions()).base_id)
    if made.stopped and not allow_stopped:
        said = (made.gate or {}).get("sentence", "")
        raise Stopped(
            f"{made.folder} was not let through by the gate ({said}) and is not shared; "
            "--allow-stopped shares it with a card that says so."
        )
    options = replace(options or CardOptions(), name=repo_id)
    base_id = options.base_id or (made.base.hub_id if made.base is not None else None)
    _check_base(made, base_id)
    files: dict[str, Path | bytes] = {}
    for file in sorted(made.folder.iterdir()):
        if not file.is_file() or is_temporary(file.name) or not _is_wanted(file.name):
            continue
        if not stays_inside(file, made.folder):
            raise JobError(
                f"{file} leads out of its folder, so it is not uploaded; put the file itself there."
            )
        files[file.name] = file
    if ADAPTER_CONFIG in files:
        with as_a_run_writes_it(made.folder):
            files[ADAPTER_CONFIG] = _config(made, base_id)
    files[CARD_FILE] = card(made, options).encode("utf-8", errors="replace")
    return Upload(repo_id, made, files, base_id)


def check_push(repo_id: str, model: str | None, base_id: str | None) -> None:
    """What can be said of a push before there is anything to push, so that no training is lost.

    Args:
        repo_id: ``org/name``.
        model: what an adapter is trained on; None where a whole model is trained.
        base_id: where that lies on the Hub, if the user said so.

    Raises:
        JobError: ``repo_id`` is no name on the Hub, or nobody else could load the base.
    """
    _check_names(repo_id, base_id)
    if model is None or base_id is not None:
        return
    if Path(model).expanduser().exists() or not HUB_ID.fullmatch(model):
        raise JobError(f"the adapter would belong on {model}, {_NOWHERE}")


def _check_names(repo_id: str, base_id: str | None) -> None:
    if not _REPO.fullmatch(repo_id):
        raise JobError(f"'{repo_id}' is no repository of the Hub; give it as org/name.")
    if base_id is not None and not _REPO.fullmatch(base_id):
        raise JobError(
            f"--base-id '{base_id}' is no model of the Hub; give it as org/name, as its page there "
            "is headed (gpt2 is openai-community/gpt2)."
        )


def _is_wanted(name: str) -> bool:
    return name.endswith(_WANTED) or name in _TEXTS or _JSON.fullmatch(name) is not None


def _check_base(made: Made, base_id: str | None) -> None:
    base = made.base
    if made.part == "model":
        return
    if base_id is None:
        named = base.path if base is not None else "a model that no record names"
        raise JobError(f"{made.folder} belongs on {named}, {_NOWHERE}")
    adapter = base.adapter if base is not None and made.part == "adapter" else None
    if adapter is not None and not adapter.get("revision"):
        raise JobError(
            f"{made.folder} belongs on {base_id} with {adapter.get('path')} merged in, which is no "
            "adapter on the Hub, so nobody else could load it; push adapter-on-base, which holds "
            "both."
        )


def _config(made: Made, base_id: str | None) -> bytes:
    """``adapter_config.json`` with the base's name on the Hub in place of a path.

    That of an adapter on a merged base names none, for PEFT would load that base without what is
    merged into it.
    """
    config = parse_json((made.folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = made.base
    merged = made.part == "adapter" and base is not None and base.adapter is not None
    kept = config.get("revision") if base is not None and base.hub_id == base_id else None
    config["base_model_name_or_path"] = None if merged else base_id
    config["revision"] = None if merged else kept
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def push(
    upload: Upload,
    *,
    private: bool = True,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> str:
    """Creates the repository if need be and commits everything at once; the commit's address.

    Args:
        upload: as planned.
        private: whether a new repository is; one that is there stays as it is.
        token: unset: the environment's ``HF_TOKEN``, or that of ``hf auth login``.
        endpoint: of another Hub.

    Raises:
        JobError: the Hub refused, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=endpoint, token=token)
    # ValueError: a bad repository name, card or upload, in the client's own words.
    failures: tuple[type[Exception], ...] = (HfHubHTTPError, ValueError, *network_errors())
    try:
        api.create_repo(upload.repo_id, private=private, exist_ok=True)
        commit = api.create_commit(
            upload.repo_id,
            operations=[
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=file)
                for name, file in upload.files.items()
            ],
            commit_message=f"{upload.made.method}, by anchortune",
        )
    except failures as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise JobError(
            f"{upload.repo_id} could not be pushed to the Hub: {first}; see that the token may "
            "write there (`hf auth login`, or HF_TOKEN), and push again."
        ) from error
    return str(commit.commit_url)
