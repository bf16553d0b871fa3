"""Which modules are meant, and which tensor of one checkpoint belongs to which of the other."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from anchortune.checkpoints.checkpoint import Checkpoint, StoredTensor
from anchortune.errors import CheckpointError, PairError

Targets = Sequence[str] | str
ALL_LINEAR = "all-linear"
_HEADS = {"lm_head", "embed_out", "output", "score", "classifier", "v_head"}
_EMBEDDINGS = {"wte", "wpe", "shared", "tok_embeddings"}
_FUSED_OF = {
    **dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "query", "key", "value", "wq", "wk", "wv"),
        ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "W_pack", "qkv", "in_proj"),
    ),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), ("gate_up_proj",)),
}
_PACKED = (".qweight", ".weight_packed", ".weight.absmax", ".weight.quant_state", ".scales")
_PREFIXES = (
    *("", "model.", "base_model.model.", "language_model.", "transformer.", "gpt_neox."),
    *("model.language_model.", "language_model.model.", "base_model.model.model."),
)
_INTEGERS = {"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
_EXPERT = re.compile(r"(^|\.)experts(\.|$)")
_NUMBER = re.compile(r"[0-9]{1,18}")


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which layer 2 comes before layer 10."""
    parts = name.split(".")
    return [(int(part), "") if _NUMBER.fullmatch(part) else (-1, part) for part in parts]


def parse_targets(targets: Targets) -> Targets:
    """``targets`` after checking: a regular expression, ``all-linear``, or a list of names.

    Raises:
        CheckpointError: nothing in it, or a regular expression that does not compile.
    """
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise CheckpointError(
                f"target_modules {targets!r} is no regular expression: {error}"
            ) from error
        return targets
    names = [name.strip() for name in targets]
    if not names or not all(names):
        raise CheckpointError("target_modules names no module: give some, such as q_proj,v_proj")
    return names


def matches(module: str, targets: Targets) -> bool:
    """Whether PEFT would adapt ``module``.

    A list holds full names or dotted endings; a string is a regular expression for the whole name.
    """
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith("." + target) for target in targets)


def _is_linear(module: str) -> bool:
    last = module.rsplit(".", 1)[-1]
    plain = last not in _HEADS and last not in _EMBEDDINGS
    return plain and "embed" not in last and "norm" not in last and not _EXPERT.search(module)


def _is_embedding(module: str) -> bool:
    last = module.rsplit(".", 1)[-1]
    return last in _EMBEDDINGS or ("embed" in last and last not in _HEADS)


def module_names(tensors: Iterable[str]) -> list[str]:
    """The modules that have a ``.weight``, in natural order."""
    ending = ".weight"
    return sorted((t[: -len(ending)] for t in tensors if t.endswith(ending)), key=natural)


def select(checkpoint: Checkpoint, targets: Targets) -> list[str]:
    """The modules of ``checkpoint`` that ``targets`` mean, each a 2-D weight, in natural order.

    Raises:
        CheckpointError: a target that matches nothing (saying what there is, and which fused
            tensor holds it), a tied head, an embedding, an expert, a packed or integer weight.
    """
    stored = checkpoint.tensors
    refuse_packed(checkpoint, targets)
    modules = module_names(stored)
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        chosen = [m for m in modules if _is_linear(m) and len(stored[f"{m}.weight"].shape) == 2]
        if not chosen:
            raise CheckpointError(f"{checkpoint.label} has no linear layer: {_what(modules)}")
        return chosen
    _refuse_experts(checkpoint, targets)
    chosen = [module for module in modules if matches(module, targets)]
    for target in [targets] if isinstance(targets, str) else targets:
        wanted = target if isinstance(targets, str) else [target]
        if not any(matches(module, wanted) for module in modules):
            raise _unmatched(checkpoint, target, modules, isinstance(targets, str))
    for module in chosen:
        _check(checkpoint, module, stored[f"{module}.weight"])
    return chosen


def _check(checkpoint: Checkpoint, module: str, weight: StoredTensor) -> None:
    if len(weight.shape) != 2:
        raise CheckpointError(
            f"{checkpoint.label}: {module!r} is no matrix (shape {list(weight.shape)}): "
            "leave it out of target_modules"
        )
    if _is_embedding(module):
        raise CheckpointError(
            f"{checkpoint.label}: {module!r} is an embedding, and an anchor is of linear layers: "
            "leave it out of target_modules"
        )
    tied = checkpoint.config.get("tie_word_embeddings") is True
    if tied and module.rsplit(".", 1)[-1] in _HEADS:
        raise _tied(checkpoint, module)


def _tied(checkpoint: Checkpoint, module: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.label}: {module!r} is tied to the embeddings, so it has no weight of its own "
        "to anchor: leave it out of target_modules"
    )


def refuse_packed(checkpoint: Checkpoint, targets: Targets) -> None:
    """Raises a CheckpointError where a meant weight is integer, packed in 4/8 bits, or fp8."""
    everything = isinstance(targets, str) and targets.lower() == ALL_LINEAR

    def meant(module: str) -> bool:
        return _is_linear(module) if everything else matches(module, targets)

    for name, tensor in checkpoint.tensors.items():
        ending = next((end for end in _PACKED if end in name), None)
        packed = ending is not None and meant(name[: name.index(ending)])
        weight = name.removesuffix(".weight")
        is_weight = name != weight and meant(weight)
        if packed or (is_weight and tensor.dtype in _INTEGERS):
            method = checkpoint.config.get("quantization_config") or {}
            kind = method.get("quant_method", "") if isinstance(method, dict) else ""
            raise CheckpointError(
                f"{checkpoint.label}: {name!r} is an integer or packed 4/8-bit weight"
                f"{f' ({kind})' if kind else ''}, whose rounding would pass for the direction: "
                "use the unquantised checkpoint"
            )
        if is_weight and tensor.dtype.startswith("F8"):
            raise CheckpointError(
                f"{checkpoint.label}: {name!r} is stored in fp8 ({tensor.dtype}), whose rounding "
                "would pass for the direction: use the bf16 checkpoint"
            )


def _refuse_experts(checkpoint: Checkpoint, targets: Targets) -> None:
    for name, tensor in checkpoint.tensors.items():
        module = name.removesuffix(".weight")
        if matches(module, targets) and (len(tensor.shape) == 3 or _EXPERT.search(module)):
            raise CheckpointError(
                f"{checkpoint.label}: {module!r} is a mixture-of-experts tensor "
                f"(shape {list(tensor.shape)}), which transformers keeps as one 3-D parameter and "
                "an anchor cannot cover: target the attention only"
            )


def _unmatched(
    checkpoint: Checkpoint, target: str, modules: Sequence[str], is_pattern: bool
) -> CheckpointError:
    last = {module.rsplit(".", 1)[-1] for module in modules}
    if target in last:
        return CheckpointError(
            f"target_modules {target!r} is a string, thus a regular expression for whole names as "
            f"in PEFT, and matches none in {checkpoint.label}: write [{target!r}]"
        )
    if target.rsplit(".", 1)[-1] in _HEADS and checkpoint.config.get("tie_word_embeddings", True):
        return _tied(checkpoint, target)
    for fused in _FUSED_OF.get(target.rsplit(".", 1)[-1], ()):
        if fused in last:
            return CheckpointError(
                f"{checkpoint.label} has no {target!r}: it is a part of the fused {fused!r} there, "
                f"so use {fused!r} in target_modules"
            )
    kind = "the pattern" if is_pattern else "target module"
    return CheckpointError(f"{checkpoint.label}: {kind} {target!r} matches none. {_what(modules)}")


def _what(modules: Sequence[str]) -> str:
    """What a checkpoint has to offer: the endings of its modules, each once."""
    last = list(dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules))
    return f"It has {', '.join(last[:20])}{', …' if len(last) > 20 else ''}"


def pair_names(
    aligned: Sequence[str], base: Sequence[str], labels: tuple[str, str]
) -> dict[str, str]:
    """For each selected module of ``aligned`` its counterpart in ``base``: by name, never by place.

    Where the names differ by a known prefix alone (``model.``, ``language_model.``, …) on a whole
    side, and only one such change of prefix pairs every module, that one is used.

    Raises:
        PairError: no complete pairing, naming the modules that are left over.
    """
    if set(aligned) == set(base):
        return {name: name for name in aligned}
    found: list[dict[str, str]] = []
    for old in _PREFIXES:
        if not all(name.startswith(old) for name in aligned):
            continue
        for new in _PREFIXES:
            mapping = {name: new + name[len(old) :] for name in aligned}
            if set(mapping.values()) == set(base) and mapping not in found:
                found.append(mapping)
    if len(found) == 1:
        return found[0]
    _refuse_fused(aligned, base, labels)
    _refuse_fused(base, aligned, labels[::-1])
    for mine, other, (here, there) in ((aligned, base, labels), (base, aligned, labels[::-1])):
        missing = sorted(set(mine) - set(other), key=natural)
        if missing:
            raise PairError(
                f"{len(missing)} of the {len(mine)} modules chosen in {here} have no counterpart "
                f"in {there}, such as {missing[0]!r}: they are not one model's, or "
                "target_modules must be narrowed"
            )
    raise PairError(
        f"the modules of {labels[0]} and {labels[1]} cannot be paired by name"
        ": give two checkpoints of one architecture"
    )


def _refuse_fused(mine: Collection[str], other: Collection[str], labels: tuple[str, str]) -> None:
    theirs = set(other)
    for module in mine:
        stem, _, last = module.rpartition(".")
        for fused in _FUSED_OF.get(last, ()):
            if f"{stem}.{fused}" in theirs:
                raise PairError(
                    f"{labels[0]} has {module!r} apart where {labels[1]} has it fused in "
                    f"'{stem}.{fused}': convert one of them to the other's layout"
                )


def refuse_fused_mismatch(aligned: Checkpoint, base: Checkpoint, chosen: Sequence[str]) -> None:
    """Raises a PairError where one side holds a chosen module apart and the other fused."""
    everything = module_names(base.tensors)
    _refuse_fused(chosen, everything, (aligned.label, base.label))
    _refuse_fused(everything, chosen, (base.label, aligned.label))
