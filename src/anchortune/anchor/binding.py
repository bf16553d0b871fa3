"""Which weights of a live model an anchor speaks of: matched by layer and name, never by place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from anchortune.errors import AnchorError
from anchortune.maths.factors import Factors

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
"""Name components that wrappers (compile, FSDP, activation checkpointing, DDP) put in the way."""


@dataclass(frozen=True)
class Target:
    """One adapted module: where its update lives now, and the factors it is measured against.

    Parameters are looked up at each use, for some engines replace them after the binding.
    """

    name: str
    module: nn.Module
    adapter: str | None
    scale: float
    factors: Factors
    stored_transposed: bool = False
    start_b: Tensor | None = None
    start_a: Tensor | None = None

    @property
    def label(self) -> str:
        """The module's name, with the adapter's where it has one."""
        return self.name if self.adapter in (None, "default") else f"{self.name} ({self.adapter})"

    def parameters(self) -> tuple[nn.Parameter, nn.Parameter | None]:
        """(B, A) of a LoRA layer, or (weight, None) of a fully trained one."""
        if self.adapter is None:
            return cast(nn.Parameter, self.module.weight), None
        lora_b = cast(nn.ModuleDict, self.module.lora_B)[self.adapter]
        lora_a = cast(nn.ModuleDict, self.module.lora_A)[self.adapter]
        return cast(nn.Parameter, lora_b.weight), cast(nn.Parameter, lora_a.weight)


@dataclass(frozen=True)
class Loose:
    """A trained parameter that no penalty holds, and where it was at the binding."""

    name: str
    module: nn.Module
    attribute: str
    start: Tensor

    def moved(self) -> float:
        """The squared distance from its start."""
        now = cast(Tensor, getattr(self.module, self.attribute)).detach()
        # FSDP2 leaves its root gathered after a forward pass: what was a DTensor may be none now.
        start = _whole(self.start.to(now.device))
        return float((_whole(now).float() - start.float()).square().sum())


@dataclass
class Coverage:
    """What a binding found: its targets, and what will move without a penalty.

    Attributes:
        targets: the penalised modules.
        unpenalised: names of trained parameters that are not.
        loose: those of them that an adapter trains besides its low-rank part (``modules_to_save``,
            biases, DoRA's magnitudes), with copies of their start, so that their movement can be
            reported. Empty in full-parameter training, where it would copy the model.
        notes: sentences for the person who trains.
    """

    targets: list[Target] = field(default_factory=list)
    unpenalised: list[str] = field(default_factory=list)
    loose: list[Loose] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def clean_name(name: str) -> str:
    """A module's name as its checkpoint has it: without the prefixes of PEFT and of wrappers."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    return ".".join(parts)


def match_name(name: str, keys: Iterable[str]) -> str | None:
    """The anchor's key for a model's module: the same name, else the only one that ends alike.

    Checkpoints and classes disagree on leading components (``model.``, ``language_model.``,
    ``transformer.``), so one name may be the tail of the other, as long as just one is.

    Raises:
        AnchorError: several keys end alike.
    """
    keys = list(keys)
    if name in keys:
        return name
    alike = [
        key
        for key in keys
        if key.endswith("." + name) or name.endswith("." + key) or _same_tail(key, name)
    ]
    if len(alike) > 1:
        raise AnchorError(
            f"module {name!r} could be any of {', '.join(sorted(alike)[:4])} in the anchor; "
            "build the anchor from checkpoints of the same class as the model"
        )
    return alike[0] if alike else None


def _same_tail(key: str, name: str) -> bool:
    """Whether two names agree from the first component that is a number (the layer) onwards."""

    def split(path: str) -> tuple[str, list[str]]:
        parts = path.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        # The component before the number ("layers", "h") tells stacks of layers apart.
        return ("", []) if at is None or at == 0 else (parts[at - 1], parts[at:])

    key_stack, key_tail = split(key)
    name_stack, name_tail = split(name)
    return bool(key_tail) and key_stack == name_stack and key_tail == name_tail


def renewed(target: Target, modules: Mapping[str, Factors]) -> Target:
    """A bound module beside other factors; where its update is measured from stays.

    Args:
        target: bound.
        modules: by name, in the shape of the model's weight.

    Raises:
        AnchorError: it is missing, of another shape, or nothing.
    """
    if target.name not in modules:
        raise AnchorError(
            f"{target.name} is bound to an anchor and not in the one that replaces it"
            ": build that with the same target_modules"
        )
    factors = modules[target.name]
    if factors.shape != target.factors.shape:
        _check_shape(target.name, target.factors.shape, factors)
    if not factors.rank or factors.norm < 1e-30:
        raise AnchorError(f"the new anchor is nothing in {target.name}: it has no direction there")
    return replace(target, factors=factors)


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _check_shape(name: str, found: tuple[int, int], factors: Factors) -> None:
    if found != factors.shape:
        raise AnchorError(
            f"module {name!r} is {found[0]} × {found[1]} in the model but "
            f"{factors.shape[0]} × {factors.shape[1]} in the anchor: they are not of one family"
            "; build it from checkpoints of the model's own"
        )


def _lora_target(
    name: str, layer: nn.Module, adapter: str, factors: Factors, notes: list[str]
) -> Target:
    lora_b = cast(nn.ModuleDict, layer.lora_B)[adapter]
    lora_a = cast(nn.ModuleDict, layer.lora_A)[adapter]
    b, a = cast(Tensor, lora_b.weight), cast(Tensor, lora_a.weight)
    if b.dim() != 2 or a.dim() != 2:
        raise AnchorError(
            f"module {name!r} is a convolution under LoRA: leave it out of the targets"
        )
    base = cast(nn.Module, layer.get_base_layer())  # type: ignore[operator]
    transposed = _is_conv1d(base)
    shape = (b.shape[0], a.shape[1])
    _check_shape(name, (shape[1], shape[0]) if transposed else shape, factors)
    if adapter in cast(Mapping[str, object], getattr(layer, "lora_magnitude_vector", {})):
        notes.append(f"{name}: DoRA; s·B·A is penalised, its magnitude vector is not")
    scale = float(cast(Mapping[str, float], layer.scaling)[adapter])
    start: tuple[Tensor | None, Tensor | None] = (None, None)
    if _away_from_zero(b) and _away_from_zero(a):
        # PiSSA, OLoRA and a resumed adapter start away from 0: the update is s(BA − B₀A₀).
        start = (b.detach().clone(), a.detach().clone())
    return Target(name, layer, adapter, scale, factors, transposed, *start)


def _away_from_zero(weight: Tensor) -> bool:
    # Of a DTensor (FSDP2) a process may hold nothing, and all have to agree.
    return bool(_whole(weight.detach().ne(0).sum()))


def _whole(tensor: Tensor) -> Tensor:
    """A DTensor put together, for which all processes have to ask; any other as it is."""
    return cast("DTensor", tensor).full_tensor() if type(tensor).__name__ == "DTensor" else tensor


def _refuse_variants(name: str, layer: nn.Module, adapter: str) -> None:
    if adapter in cast(Mapping[str, object], getattr(layer, "lora_embedding_A", {})):
        raise AnchorError(
            f"module {name!r} is an embedding under LoRA, which AsFT does not cover: "
            "take it out of target_modules"
        )
    if type(layer).__name__ == "ParamWrapper":
        raise AnchorError(
            f"module {name!r} is adapted through target_parameters (stacked experts), which AsFT "
            "does not cover: use target_modules"
        )
    variant = cast(Mapping[str, object], getattr(layer, "lora_variant", {})).get(adapter)
    if variant is not None and "dora" not in type(variant).__name__.lower():
        raise AnchorError(
            f"module {name!r} uses the LoRA variant {type(variant).__name__}, whose update is not "
            "s·B·A: use plain LoRA, rsLoRA or DoRA"
        )


def _lora_layers(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """(name, layer, adapter) of every active adapter of which A or B is trained, each by itself."""
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError:  # pragma: no cover - peft is a dependency
        return []
    found = []
    for raw, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        name = clean_name(raw)
        for adapter in module.active_adapters:
            embedded = adapter in module.lora_embedding_A
            if adapter not in module.lora_A and not embedded:
                continue
            _refuse_variants(name, module, adapter)
            factors = (module.lora_A[adapter], module.lora_B[adapter])
            if any(p.requires_grad for factor in factors for p in factor.parameters()):
                found.append((name, cast(nn.Module, module), adapter))
    return found


def _full_layers(
    model: nn.Module, modules: Mapping[str, Factors]
) -> list[tuple[str, nn.Module, str]]:
    """(name, module, key) of the fully trained matrices that the anchor knows."""
    found = []
    for raw, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() == 2 and weight.requires_grad:
            name = clean_name(raw)
            key = match_name(name, modules)
            if key is not None:
                found.append((name, module, key))
    return found


def _names(names: Iterable[str], most: int = 4) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def cover(model: nn.Module, modules: Mapping[str, Factors]) -> Coverage:
    """Every trained matrix of ``model`` beside the anchor's factors for it.

    Args:
        model: a PEFT model with LoRA layers, or a plain model whose weights are trained.
        modules: the anchor's factors by module name.

    Raises:
        AnchorError: nothing is trained; an adapted module is missing from the anchor; shapes
            differ; ``‖dW‖`` is nothing; or a layer is of a kind that AsFT does not cover.
    """
    coverage = Coverage()
    lora = _lora_layers(model)
    missing = []
    for name, layer, adapter in lora:
        key = match_name(name, modules)
        if key is None:
            missing.append(name)
        else:
            target = _lora_target(name, layer, adapter, modules[key], coverage.notes)
            coverage.targets.append(target)
    if missing:
        raise AnchorError(
            f"{len(missing)} of {len(lora)} adapted modules are not in the anchor "
            f"({_names(missing)}): build it with target_modules that cover the adapter's"
        )
    if not lora:
        coverage.targets.extend(_full_targets(model, modules))
    if not coverage.targets:
        raise AnchorError(
            "the model has no trained LoRA layer and no trained matrix that the anchor knows "
            f"(it knows {_names(modules)}): wrap it with peft.get_peft_model, or unfreeze it, first"
        )
    dead = [t.name for t in coverage.targets if not t.factors.rank or t.factors.norm < 1e-8]
    if dead:
        raise AnchorError(
            f"‖dW‖ is nothing in {_names(dead)}: aligned and base are identical there, so there is "
            "no direction to anchor to: leave them out"
        )
    covered = {id(p) for t in coverage.targets for p in t.parameters() if p is not None}
    for path, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in covered:
                covered.add(id(parameter))  # a tied parameter is named once
                name = clean_name(f"{path}.{attribute}")
                coverage.unpenalised.append(name)
                if lora:
                    start = parameter.detach().to("cpu", copy=True)
                    coverage.loose.append(Loose(name, module, attribute, start))
    return coverage


def _full_targets(model: nn.Module, modules: Mapping[str, Factors]) -> list[Target]:
    layers = _full_layers(model, modules)
    unmatched = set(modules) - {key for _, _, key in layers}
    if layers and unmatched:
        raise AnchorError(
            f"{len(unmatched)} of {len(modules)} modules of the anchor are not trained in the "
            f"model ({_names(sorted(unmatched))}): unfreeze them, or build a narrower anchor"
        )
    targets = []
    for name, module, key in layers:
        weight = cast(Tensor, module.weight).detach()
        if not weight.is_floating_point():
            raise AnchorError(
                f"module {name!r} is quantised ({weight.dtype}) and cannot be trained"
                ": load it unquantised, or freeze it"
            )
        _check_shape(name, (weight.shape[0], weight.shape[1]), modules[key])
        transposed = _is_conv1d(module)
        targets.append(
            Target(name, module, None, 1.0, modules[key], transposed, start_b=weight.clone())
        )
    return targets
