"""Whether an anchor belongs to the run that names it: its modules, and the weights it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anchortune.config import AlignConfig, ModelSection, PenaltySection, TrainConfig
from anchortune.data.named import local_path
from anchortune.errors import AnchorError, CheckpointError

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor
    from anchortune.anchor.binding import Target
    from anchortune.anchor.format import Identity
    from anchortune.anchor.penalty import Penalty

UNVERIFIED = "unverified"
"""The start and the anchor's parent are stored in ways that cannot be compared."""


def load_anchor(
    config: TrainConfig | AlignConfig, held: Anchor | None = None
) -> tuple[Anchor | None, dict[str, Any] | None]:
    """(the penalty's anchor, its identity for the record), or (None, None) without a penalty.

    Args:
        config: of the run.
        held: what the config's ``anchor`` names, where that was read already.

    Raises:
        AnchorError: there is none at that place, or it is broken.
    """
    if not isinstance(config, TrainConfig) or config.penalty is None:
        return None, None
    section = config.penalty
    named = config.anchor
    known = None if named is None else (named.path, named.revision)
    if held is None or known != (section.anchor, section.revision):
        held = open_anchor(section.anchor, section.revision, "penalty.revision")
    return held, anchor_facts(held, section.anchor, section.revision)


def open_anchor(place: str, revision: str | None, key: str) -> Anchor:
    """The anchor in a file or on the Hub.

    Args:
        place: a file, or a Hub id.
        revision: of the Hub id.
        key: what the config calls the revision, for the error.

    Raises:
        AnchorError: there is none at that place, or it is broken.
    """
    from anchortune.anchor.anchor import Anchor

    path = local_path(place)
    if not path.is_file() and path.suffix != ".safetensors":
        return Anchor.from_pretrained(place, revision=revision)
    if revision is not None:
        raise AnchorError(f"{place}: {key} is for a Hub id and this is a local file; leave it out.")
    return Anchor.load(path)


def anchor_facts(anchor: Anchor, place: str, revision: str | None) -> dict[str, Any]:
    """An anchor's identity for the record."""
    metadata = anchor.metadata
    return {
        "path": place,
        "revision": revision,
        "sha256": anchor.sha256,
        "modules": len(anchor),
        "aligned": metadata.aligned.model_dump(mode="json"),
        "base": metadata.base.model_dump(mode="json"),
    }


def settings(section: PenaltySection) -> dict[str, Any]:
    """The keywords of ``attach`` that a config's section resolves to."""
    from anchortune.anchor.penalty import DEFAULT_LAM, DEFAULT_OPERATOR
    from anchortune.training.schedule import DEFAULT_PROBE_TARGET

    target = DEFAULT_PROBE_TARGET if section.probe_target is None else section.probe_target
    return {
        "operator": section.operator or DEFAULT_OPERATOR,
        "lam": DEFAULT_LAM if section.lam is None else section.lam,
        "side": section.side,
        "scaled": section.scaled,
        "rank": section.rank,
        "off_budget": section.off_budget,
        "lam_inside": section.lam_inside,
        "layer_weights": section.layer_weights,
    } | ({"probe_target": target} if section.steer == "probe" else {})


def told_settings(section: PenaltySection) -> str:
    """What the penalty is, in a line for people."""
    found = settings(section)
    told = [
        f"operator {found['operator']}",
        f"side {section.side}",
        "scaled" if section.scaled else "unscaled",
        f"lam {found['lam']}",
    ]
    if section.lam_inside:
        told.append(f"lam_inside {section.lam_inside:g}")
    if section.layer_weights != "none":
        told.append(f"layer_weights {section.layer_weights}")
    return ", ".join(told)


def check_fit(anchor: Anchor, skeleton: Any, section: PenaltySection) -> list[str]:
    """Notes on how the anchor covers what will be trained.

    Args:
        anchor: the anchor.
        skeleton: the model with its adapter; the weights may be on the meta device.
        section: the penalty's settings.

    Raises:
        AnchorError: an adapted module is not in it, has another shape, or the penalty would
            vanish.
        TrainingError: λ cannot be what is asked for.
    """
    from anchortune.anchor.asked import check_inside
    from anchortune.anchor.penalty import bind
    from anchortune.training.schedule import make_schedule

    materialise_adapter(skeleton)
    asked = settings(section)
    lam, budget, target = asked.pop("lam"), asked.pop("off_budget"), asked.pop("probe_target", None)
    check_inside(asked["operator"], asked["side"], asked.pop("lam_inside"))
    penalty = bind(anchor, skeleton, **asked)
    coverage = penalty.coverage
    coverage.targets[:] = [_weightless(target) for target in coverage.targets]
    make_schedule(lam, budget, penalty, "probe" if target is not None else None, target)
    notes = list(coverage.notes)
    if anchor.metadata.harmful is not None and penalty.operator == "gram":
        notes += _weak_gram(penalty)
    if coverage.unpenalised:
        named = ", ".join(coverage.unpenalised[:6])
        notes.append(f"{len(coverage.unpenalised)} trained parameters go unpenalised: {named}")
    return notes


def _weak_gram(penalty: Penalty) -> list[str]:
    """A note where C is so small that what goes along the anchor costs next to nothing."""
    from anchortune.anchor.inspect import WEAK
    from anchortune.maths.factors import gram_eigenvalues

    largest = max(float(gram_eigenvalues(t.factors).max()) for t in penalty.coverage.targets)
    if largest >= WEAK:
        return []
    return [
        f"operator gram is next to nothing on this harmful anchor (its largest eigenvalue is "
        f"{largest:.2g}); prefer subspace or direction"
    ]


def materialise_adapter(skeleton: Any) -> None:
    """Gives an adapter on the meta device its values at the start: B is zero."""
    from torch import nn

    for name, module in skeleton.named_modules():
        is_factor = name.endswith((".lora_A", ".lora_B")) and isinstance(module, nn.ModuleDict)
        if is_factor and any(parameter.is_meta for parameter in module.parameters()):
            module.to_empty(device="cpu")
            for parameter in module.parameters():
                nn.init.zeros_(parameter)


def _weightless(target: Target) -> Target:
    """A fully trained module on the meta device beside one of its shape that holds one number.

    What λ can be depends on the anchor and on shapes, and is computed where the weights lie.
    """
    weight = target.parameters()[0]
    if target.adapter is not None or not weight.is_meta:
        return target
    from torch import nn

    module = nn.Linear(1, 1, bias=False)
    module.weight = nn.Parameter(module.weight.detach()[0, 0].expand(weight.shape))
    return replace(target, module=module, start_b=None)


def check_start(anchor: Anchor, section: PenaltySection | None, model: ModelSection) -> str:
    """Which of the anchor's parents the start model is: ``aligned``, ``base`` or ``unverified``.

    With ``side: off`` the start is the aligned model; with ``side: along`` and a harmful anchor it
    is the one that the harmful model was made from, the anchor's base.

    Args:
        anchor: the anchor.
        section: the penalty that uses it; None: one at its defaults.
        model: that is trained.

    Raises:
        AnchorError: it is the wrong one, or none that could be compared is the start, and
            ``allow_other_start`` is not set.
    """
    section = section or PenaltySection(anchor="")
    if anchor.metadata.harmful is not None and section.side == "off":
        raise AnchorError(
            f"{section.anchor} is a harmful anchor, and with side: off all but the harm would be "
            "punished; set penalty.side to along, or use the defence asft-alt."
        )
    wanted = ("aligned",) if section.side == "off" else ("aligned", "base")
    if anchor.metadata.harmful is not None:
        wanted = ("base",)
    return check_parent(
        anchor, model, wanted, section.anchor, "penalty.allow_other_start",
        section.allow_other_start,
    )  # fmt: skip


def check_parent(
    anchor: Anchor,
    model: ModelSection,
    wanted: Sequence[str],
    place: str,
    switch: str,
    allowed: bool,
) -> str:
    """Which of the anchor's parents ``model`` is: ``aligned``, ``base`` or ``unverified``.

    Args:
        anchor: the anchor.
        model: the aligned model of the run.
        wanted: which of the two it may be.
        place: of the anchor, for the error.
        switch: the key that allows another model, for the error.
        allowed: whether that is set; the answer is ``other`` then.

    Raises:
        AnchorError: it is the wrong one, or none that could be compared is ``model``, and
            ``allowed`` is not set.
    """
    metadata = anchor.metadata
    under = metadata.harmful.under if metadata.harmful is not None else None
    found = {
        "aligned": _is_start(metadata.aligned, metadata.base, anchor, model),
        # Of a harmful anchor the base is the aligned model, which may be an adapter on another.
        "base": _is_start(metadata.base, under, anchor, model),
    }
    for parent in wanted:
        if found[parent]:
            return parent
    if allowed:
        return "other"
    if found["base"] or ("aligned" not in wanted and found["aligned"]):
        held, method = ("base", "AsFT") if found["base"] else ("harmful model", "the defence")
        raise AnchorError(
            f"model.path {model.path} is the {held} that {place} was built from, but {method} "
            f"starts from the aligned model; name that one, or set {switch}."
        )
    # Every wanted parent that can be compared is certainly another: the rest proves nothing.
    if all(found[parent] is None for parent in wanted):
        return UNVERIFIED
    others = "either" if None not in found.values() else "the one that it can be compared with"
    raise AnchorError(
        f"{place} was built from {metadata.aligned.id} and {metadata.base.id}, and "
        f"model.path {model.path} holds other weights than {others}; build an anchor for "
        f"this model, or set {switch}."
    )


def _is_start(
    parent: Identity, under: Identity | None, anchor: Anchor, model: ModelSection
) -> bool | None:
    """Whether the start model is ``parent``; None where the two cannot be compared.

    Args:
        parent: from the anchor's metadata.
        under: what a parent that is an adapter lies on.
        anchor: names the tensors that were read.
        model: the start model.
    """
    if parent.sha256 is None:
        return None
    modules = list(anchor.modules)
    if parent.kind == "lora":
        if under is None:
            return None
        if model.adapter is None:  # whole weights: the merged adapter perhaps, but not its base
            return False if _is_start(under, None, anchor, model) else None
        adapter = _digest(model.adapter, None, "lora", modules)
        base = _is_start(under, None, anchor, model.model_copy(update={"adapter": None}))
        if base is False or (adapter is not None and adapter != parent.sha256):
            return False
        return None if base is None or adapter is None else True
    if model.adapter is not None:
        return None
    found = _digest(model.path, model.revision, parent.kind, modules)
    return None if found is None else found == parent.sha256


def _digest(path: str, revision: str | None, kind: str, modules: list[str]) -> str | None:
    """The content hash of a checkpoint's ``modules`` as an anchor's metadata has it.

    None where the checkpoint is of another kind, or names its modules otherwise.
    """
    from anchortune.checkpoints.adapter import AdapterCheckpoint
    from anchortune.checkpoints.source import open_checkpoint

    try:
        checkpoint = open_checkpoint(path, revision=revision)
        if checkpoint.kind != kind:
            return None
        for module in modules:
            if isinstance(checkpoint, AdapterCheckpoint):
                if module not in checkpoint.modules():
                    return None
                checkpoint.delta(module, transposed=False)  # reads A, B and s
            else:
                checkpoint.read(f"{module}.weight")
        return checkpoint.content_sha256()
    except CheckpointError:
        return None
