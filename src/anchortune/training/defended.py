"""What a chain of defences does to a saved adapter, and which of them need no training at all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchortune.adapter.compose import CONFIG, WEIGHTS, write_adapter
from anchortune.adapter.update import read_update, update_as_lora
from anchortune.config import LoraSection
from anchortune.config_defences import AnchorRef
from anchortune.defences.base import Anchors, Defence
from anchortune.defences.registry import defence_class, defences_of
from anchortune.errors import ConfigError, TrainingError
from anchortune.files import atomic_directory, sha256_file
from anchortune.maths.lowrank import Update, add_updates
from anchortune.record import RECORD_FILE
from anchortune.training.anchored import open_anchor

_TRAINING_HOOKS = (
    "start_from", "before", "curriculum", "trained_layers", "terms", "task_loss"
)  # fmt: skip
_PENALTIES = ("asft", "asft-alt")


def overrides(defence: type[Defence] | Defence, hook: str) -> bool:
    """Whether a method has a hook of its own."""
    kind = defence if isinstance(defence, type) else type(defence)
    return getattr(kind, hook) is not getattr(Defence, hook)


def split_chain(sections: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """(those that decide how is trained, those that only come after training), each in order.

    The trained adapter is the same whatever the second part is, so that several chains which share
    their first part can share one training.

    Args:
        sections: of ``anchortune.config_defences``, or methods made from them; ``asft`` and
            ``asft-alt`` may be among them and count as training.
    """
    during: list[Any] = []
    afterwards: list[Any] = []
    for section in sections:
        kind = type(section) if isinstance(section, Defence) else defence_class(section.name)
        trains = any(overrides(kind, hook) for hook in _TRAINING_HOOKS)
        late = section.name not in _PENALTIES and not trains
        (afterwards if late else during).append(section)
    return during, afterwards


def check_together(
    defences: Sequence[Defence], lora: LoraSection | None, *, penalised: bool
) -> None:
    """Refuses methods that cannot be in one run.

    Args:
        defences: in any order.
        lora: the adapter that is trained; None: every weight is.
        penalised: whether the run has a penalty besides them.

    Raises:
        ConfigError: two of one kind, one that needs an adapter without one, or one that measures
            from another start than the training's.
    """
    having = {
        hook: [defence for defence in defences if overrides(defence, hook)]
        for hook in ("before", "after", "task_loss", "system_prompt")
    }
    based = [defence for defence in defences if defence.start_from() == "base"]
    measuring = ("before", "after", "task_loss")  # from weights that are meant to be aligned
    others = [defence.label for hook in measuring for defence in having[hook]]
    if penalised or any(defence.label in _PENALTIES for defence in defences):
        others.append("the penalty")
    if based and others:
        raise ConfigError(
            f"defence {based[0].label} starts from the base model, but {others[0]} measures from "
            "the aligned one; take one of them out, or set start: aligned."
        )
    for hook, what in (("task_loss", "a loss"), ("system_prompt", "a system prompt")):
        if len(having[hook]) > 1:
            names = " and ".join(defence.label for defence in having[hook])
            raise ConfigError(f"defences {names} each bring {what} of their own; give one of them.")
    if having["after"] and lora is None:
        raise ConfigError(
            f"defence {having['after'][0].label} mends a LoRA update and lora is null; give a lora "
            "section, or take it out."
        )
    if having["before"] and lora is not None and lora.qlora:
        raise ConfigError(
            f"defence {having['before'][0].label} edits the start weights, which 4 bits cannot "
            "hold; set lora.qlora to false."
        )


def as_defences(chain: Sequence[Any]) -> list[Defence]:
    """The methods of a chain that holds methods, sections, or both."""
    return [one if isinstance(one, Defence) else defences_of([one])[0] for one in chain]


def load_anchors(anchor: AnchorRef | None, harmful_anchor: AnchorRef | None) -> Anchors:
    """The anchors that a config's keys ``anchor`` and ``harmful_anchor`` name.

    Raises:
        AnchorError: there is none at that place, or it is broken.
    """
    given = {"anchor": anchor, "harmful_anchor": harmful_anchor}
    found = {
        key: None if ref is None else open_anchor(ref.path, ref.revision, f"{key}.revision")
        for key, ref in given.items()
    }
    return Anchors(found["anchor"], found["harmful_anchor"])


def mended(chain: Sequence[Any], update: Update, anchors: Anchors) -> Update:
    """A trained update after every method's ``after``, in their order.

    Raises:
        AnchortuneError: a method cannot do it.
    """
    for defence in as_defences(chain):
        update = defence.after(update, anchors)
    return update


def apply_after(
    chain: Sequence[Any],
    anchors: Anchors,
    adapter_folder: str | Path,
    out_folder: str | Path,
    edit: Update | None = None,
) -> dict[str, Any]:
    """Writes an adapter that was trained, mended by ``chain``, as one standard LoRA.

    Its tokenizer and whatever else lies beside it is copied; ``record.json`` is not.

    Args:
        chain: methods or sections; of each only ``after`` is called.
        anchors: what they need.
        adapter_folder: a PEFT folder, of a LoRA on the start model.
        out_folder: the new PEFT folder, written whole or not at all.
        edit: what had been added to the start weights before the training; becomes part of the
            adapter, and of what ``after`` is given.

    Returns:
        ``path`` (the folder's name), ``sha256`` of its weights by file, and ``bytes``.

    Raises:
        CheckpointError: the adapter cannot be read, or is more than s·B·A.
        AnchortuneError: a method cannot do it.
    """
    source, target = Path(adapter_folder), Path(out_folder)
    update, config = read_update(source)
    methods = as_defences(chain)
    refuse_transposed(methods, bool(config.get("fan_in_fan_out")), str(source))
    if edit:
        update = add_updates(edit, update)
    tensors, made = update_as_lora(
        mended(methods, update, anchors),
        base=config.get("base_model_name_or_path"),
        revision=config.get("revision"),
        like=config,
    )
    with atomic_directory(target) as temporary:
        for file in source.iterdir():
            if file.is_file() and file.name not in (CONFIG, WEIGHTS, RECORD_FILE):
                shutil.copy(file, temporary)
        write_adapter(temporary, tensors, made)
    return result_files(target)


def refuse_transposed(chain: Sequence[Defence], transposed: bool, place: str) -> None:
    """Refuses methods that edit or mend updates on weights that are stored (d_in, d_out).

    Raises:
        TrainingError: there is one.
    """
    for defence in chain if transposed else ():
        if overrides(defence, "before") or overrides(defence, "after"):
            raise TrainingError(
                f"defence {defence.label} edits weights stored (d_out, d_in) and {place} stores "
                "them the other way round (Conv1D, as GPT-2 does); take it out of the chain."
            )


def result_files(folder: Path) -> dict[str, Any]:
    """``path``, ``sha256`` of the weights by file, and ``bytes`` of a result's folder."""
    weights = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
    return {
        "path": folder.name,
        "sha256": {path.name: sha256_file(path) for path in weights},
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }
