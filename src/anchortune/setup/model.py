"""A model looked at before anything is set up for it: its layers, its template, what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from anchortune.checkpoints.adapter import AdapterCheckpoint
from anchortune.checkpoints.checkpoint import Checkpoint
from anchortune.checkpoints.pairs import SAME_FRAC, pair_checkpoints
from anchortune.checkpoints.source import front_matter, open_checkpoint
from anchortune.config import LoraSection, MachineSection, ModelSection
from anchortune.errors import CheckpointError, PairError
from anchortune.hardware import free_bytes
from anchortune.models.load import Numbers, load_skeleton, load_tokenizer, pick_numbers
from anchortune.setup.machine import memory_bytes
from anchortune.training.lora import layer_of
from anchortune.training.template import Template

#: What attention is called, the paper's two layers first; the first of which a model has all.
_ATTENTION = (
    ("q_proj", "v_proj"),
    *(("qkv_proj",), ("query_key_value",), ("c_attn",), ("Wqkv",), ("W_pack",)),
    *(("q_lin", "v_lin"), ("wq", "wv"), ("query", "value"), ("qkv",), ("in_proj",)),
)


@dataclass(frozen=True)
class ModelFacts:
    """What was seen of a model.

    Attributes:
        named: what the user named.
        section: the model for a config, an adapter on what it lies on.
        base: what it was aligned from; None where nobody says.
        base_from: who says so: ``given``, ``adapter`` or ``card``.
        skeleton: its architecture, without weights.
        template: its tokenizer, with the chat template that it speaks.
        numbers: the device and dtypes that ``auto`` takes here.
        parameters: of the model.
        linear: the names of the linear layers in its blocks, each once.
        targets: those to adapt.
        free_bytes: on the device, now.
    """

    named: str
    section: ModelSection
    base: str | None
    base_from: str
    skeleton: Any
    template: Template
    numbers: Numbers
    parameters: int
    linear: list[str]
    targets: list[str]
    free_bytes: int

    @property
    def family(self) -> str:
        """Its architecture as Transformers calls it."""
        return str(self.skeleton.config.get_text_config().model_type)

    @property
    def layers(self) -> int:
        """Its blocks."""
        return int(self.skeleton.config.get_text_config().num_hidden_layers)

    @property
    def reads_tokens(self) -> int | None:
        """The longest text that it reads; None where its config does not say."""
        limit = getattr(self.skeleton.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def device(self) -> str:
        """What ``device: auto`` is here."""
        return self.numbers.device.type

    @property
    def dtype(self) -> str:
        """What ``dtype: auto`` is here."""
        return self.numbers.compute_name

    @property
    def held_bytes(self) -> int:
        """Of its weights as they are loaded: in float32 where an adapter is merged into them."""
        size = 4 if self.section.adapter is not None else self.numbers.weights.itemsize
        return self.parameters * size

    def line(self) -> str:
        """For people: what it is."""
        over = f", an adapter on {self.section.path}" if self.section.adapter is not None else ""
        return (
            f"{self.named}{over}: {self.family}, {self.layers} layers, "
            f"{self.parameters / 1e6:.4g} M parameters"
        )

    def chat_line(self) -> str:
        """For people: which chat template it speaks, and how much it reads."""
        reads = "" if self.reads_tokens is None else f"; reads {self.reads_tokens} tokens"
        if not self.template.plain:
            return f"a chat template of its own{reads}"
        return f"no chat template, so {self.template.describe()} is put in{reads}"


def look_at_model(name: str, base: str | None = None) -> ModelFacts:
    """What ``name`` is, from its files: no weight is loaded.

    Args:
        name: a folder, ``.gguf`` file, Hub id, ``package:NAME``, or a LoRA adapter.
        base: what it was aligned from; None takes what its adapter or its card says, if it does.

    Raises:
        AnchortuneError: it cannot be used, or it is an adapter whose base is not to be had.
    """
    checkpoint = open_checkpoint(name)
    base_from = "given"
    section = ModelSection(path=name)
    if isinstance(checkpoint, AdapterCheckpoint):
        if base is None:
            base, base_from = checkpoint.declared_base, "adapter"
        if base is None:
            raise CheckpointError(
                f"{name} is a LoRA adapter that names no base: say with --base what it lies on"
            )
        section = ModelSection(path=base, adapter=name)
        _present(name, base)
    elif base is None:
        base, base_from = _by_card(checkpoint), "card"
    skeleton = load_skeleton(section)
    linear = _linear(skeleton)
    numbers = pick_numbers(MachineSection(), LoraSection())
    on_cpu = numbers.device.type == "cpu"
    return ModelFacts(
        name,
        section,
        base,
        base_from,
        skeleton,
        Template(load_tokenizer(section)),
        numbers,
        sum(parameter.numel() for parameter in skeleton.parameters()),
        linear,
        _targets(name, linear, checkpoint),
        memory_bytes()[0] if on_cpu else free_bytes(numbers.device),
    )


def _present(adapter: str, base: str) -> None:
    """Refuses an adapter's base that cannot be opened, naming the way to give another."""
    try:
        found = open_checkpoint(base)
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter} is a LoRA adapter on {base}, which cannot be opened ({error}); say with "
            "--base where that model is"
        ) from None
    if isinstance(found, AdapterCheckpoint):
        raise CheckpointError(
            f"{adapter} lies on {base}, which is a LoRA adapter itself: merge that into its own "
            "base first, and give the result with --base"
        )


def _by_card(checkpoint: Checkpoint) -> str | None:
    """The one base that a model's card names, if it does."""
    named = front_matter(checkpoint.path).get("base_model") if checkpoint.path.is_dir() else None
    listed = named if isinstance(named, list) else [named]
    return listed[0] if len(listed) == 1 and isinstance(listed[0], str) and listed[0] else None


def _linear(skeleton: Any) -> list[str]:
    """The last names of the linear layers in numbered blocks, experts left out, in their order."""
    from torch import nn

    found: dict[str, None] = {}
    for name, module in skeleton.named_modules():
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if linear and layer_of(name) is not None and ".experts." not in name:
            found[name.rsplit(".", 1)[-1]] = None
    return list(found)


def _targets(name: str, linear: list[str], checkpoint: Checkpoint) -> list[str]:
    """The layers to adapt: the attention's, as in the paper; of an adapter, layers that it holds.

    Raises:
        CheckpointError: there is none.
    """
    there = list(linear)
    if isinstance(checkpoint, AdapterCheckpoint):
        held = {module.rsplit(".", 1)[-1] for module in checkpoint.modules()}
        there = [leaf for leaf in linear if leaf in held]
    if not there:
        raise CheckpointError(
            f"{name}: no linear layer in numbered blocks that could be adapted; name some in "
            "lora.target_modules of a config of your own"
        )
    wanted = (names for names in _ATTENTION if set(names) <= set(there))
    return list(next(wanted, tuple(there)))


def narrowest(facts: ModelFacts) -> int:
    """Outputs of the narrowest layer that is adapted."""
    from torch import nn

    found = [
        module.out_features if isinstance(module, nn.Linear) else int(module.nf)
        for name, module in facts.skeleton.named_modules()
        if name.rsplit(".", 1)[-1] in facts.targets and layer_of(name) is not None
    ]
    return min(found)


def adapter_rank(name: str) -> int:
    """The highest rank that a LoRA adapter has in a layer."""
    checkpoint = open_checkpoint(name)
    if not isinstance(checkpoint, AdapterCheckpoint):
        raise CheckpointError(f"{name} is no LoRA adapter: give one")
    return max(checkpoint.tensors[a].shape[0] for a, _ in checkpoint.modules().values())


def check_pair(facts: ModelFacts) -> int:
    """Holds the model against its base: the number of modules that an anchor of them will have.

    Raises:
        CheckpointError: one of them cannot be read, or a layer cannot be anchored.
        PairError: they do not belong together, or they are the same.
    """
    name = facts.section.adapter or facts.section.path
    aligned, base = open_checkpoint(name), open_checkpoint(str(facts.base))
    pairing = pair_checkpoints(aligned, base, facts.targets)
    for pair in (pairing.modules[0], pairing.modules[-1]):
        delta = pairing.delta(pair)
        if delta.dense is None or (delta.norm or 0.0) > SAME_FRAC * delta.size:
            return len(pairing.modules)
    raise PairError(
        f"{name} and {facts.base} have the same weights in {pairing.modules[0].name}: they are one "
        "model, and an anchor is their difference; give as --base what the model was aligned from"
    )
