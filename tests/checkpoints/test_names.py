"""Targets as PEFT matches them; pairing by name, with prefixes and fused weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchortune.checkpoints.checkpoint import Checkpoint, StoredTensor
from anchortune.checkpoints.names import (
    matches,
    natural,
    pair_names,
    parse_targets,
    refuse_fused_mismatch,
    select,
)
from anchortune.checkpoints.tensor_file import RawTensor
from anchortune.errors import CheckpointError, PairError

LABELS = ("A", "B")


@dataclass
class Named(Checkpoint):
    """A checkpoint of names and shapes alone."""

    label: str = "A"
    path: Path = Path("A")
    stored: dict[str, StoredTensor] = field(default_factory=dict)

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        return self.stored

    def read(self, name: str) -> RawTensor:
        raise NotImplementedError


def named(*names: str, label: str = "A", **config: object) -> Named:
    """Names, each 2-D bf16 unless written ``name:dtype:1x2x3``."""
    stored = {}
    for text in names:
        name, dtype, shape = ([*text.split(":"), "BF16", "4x4"])[:3] if ":" in text else (
            text, "BF16", "4x4")  # fmt: skip
        stored[name] = StoredTensor(name, dtype, tuple(int(n) for n in shape.split("x")))
    return Named(label=label, stored=stored, config=dict(config))


def layers(*parts: str, prefix: str = "model.layers", n: int = 2) -> list[str]:
    return [f"{prefix}.{i}.{part}.weight" for i in range(n) for part in parts]


NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "lm_head", "q_proj",
         "model.layers.1.self_attn.my_q_proj", "visual.blocks.0.attn.q_proj"]  # fmt: skip
TARGETS = [["q_proj"], ["self_attn.q_proj", "up_proj"], r".*\.q_proj", "q_proj", r".*layers\.0.*",
           ["lm_head"], ["model.layers.0.mlp.up_proj"], ["proj"]]  # fmt: skip


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_targets_match_as_in_peft(targets: list[str] | str) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=targets)
    for name in NAMES:
        assert matches(name, targets) == bool(check_target_module_exists(config, name)), name


def test_layers_sort_by_number() -> None:
    assert sorted(["l.10.q", "l.2.q", "head", "l.2.k"], key=natural) == [
        "head",
        "l.2.k",
        "l.2.q",
        "l.10.q",
    ]


def test_all_linear_leaves_out_heads_embeddings_norms_and_experts() -> None:
    checkpoint = named(
        "model.embed_tokens.weight",
        "transformer.wte.weight",
        "lm_head.weight",
        "model.norm.weight:BF16:4",
        "model.layers.0.q_norm.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.0.mlp.experts.gate_up_proj:BF16:2x4x4",
        *layers("self_attn.q_proj", "mlp.down_proj", n=1),
    )
    assert select(checkpoint, "all-linear") == [
        "model.layers.0.mlp.down_proj",
        "model.layers.0.self_attn.q_proj",
    ]


REFUSED = [
    (layers("self_attn.q_proj"), ["x_proj"], "'x_proj' matches none. It has q_proj"),
    (layers("self_attn.q_proj"), ["q_proj", "up_proj"], "'up_proj' matches none"),
    (layers("self_attn.q_proj"), "q_proj", r"regular expression .*: write \['q_proj'\]"),
    (layers("self_attn.q_proj"), ".*z", r"the pattern '\.\*z' matches none"),
    (layers("self_attn.qkv_proj"), ["q_proj"], "fused 'qkv_proj' there, so use 'qkv_proj'"),
    (layers("attn.c_attn"), ["v_proj"], "fused 'c_attn'"),
    (layers("att.query_key_value"), ["query"], "fused 'query_key_value'"),
    (layers("mlp.gate_up_proj"), ["up_proj"], "fused 'gate_up_proj'"),
    (layers("self_attn.q_proj"), ["lm_head"], "'lm_head' is tied to the embeddings"),
    (["model.embed_tokens.weight"], ["embed_tokens"], "is an embedding"),
    (["model.norm.weight:BF16:4"], ["norm"], r"'model.norm' is no matrix \(shape \[4\]\)"),
    (
        ["model.layers.0.mlp.experts.gate_up_proj:BF16:2x4x4"],
        ["experts.gate_up_proj"],
        r"mixture-of-experts tensor \(shape \[2, 4, 4\]\)",
    ),
    (["m.0.mlp.experts.3.up_proj.weight"], ["up_proj"], "mixture-of-experts"),
    (["m.0.q_proj.qweight:I32:4x4", "m.0.q_proj.scales:F16:4x4"], ["q_proj"], "packed 4/8-bit"),
    (["m.0.q_proj.weight:U8:4x4"], ["q_proj"], "packed 4/8-bit"),
    (["m.0.q_proj.weight:I8:4x4"], "all-linear", "packed 4/8-bit"),
    (["m.0.q_proj.weight:U8:8x1", "m.0.q_proj.weight.absmax:F32:4"], ["q_proj"], "packed"),
    (["m.0.q_proj.weight_packed:I32:4x4"], ["q_proj"], "packed"),
    (["m.0.q_proj.weight:F8_E4M3:4x4"], ["q_proj"], r"stored in fp8 \(F8_E4M3\)"),
    (["m.0.q_proj.weight"], [], "names no module"),
    (["m.0.q_proj.weight"], ["q_proj", ""], "names no module"),
    (["m.0.q_proj.weight"], "(", "is no regular expression"),
]


@pytest.mark.parametrize(("names", "targets", "text"), REFUSED, ids=[case[2] for case in REFUSED])
def test_refused_targets_are_named(names: list[str], targets: list[str] | str, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        select(named(*names), parse_targets(targets))


def test_other_weights_may_be_packed() -> None:
    checkpoint = named("m.0.up_proj.qweight:I32:4x4", "m.0.q_proj.weight")
    assert select(checkpoint, ["q_proj"]) == ["m.0.q_proj"]


def test_a_quantised_weight_names_its_method() -> None:
    checkpoint = named("m.0.q.qweight:I32:4x4", quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match=r"packed 4/8-bit weight \(gptq\)"):
        select(checkpoint, ["q"])


def test_a_stored_head_that_is_tied_is_refused_and_an_untied_one_is_not() -> None:
    with pytest.raises(CheckpointError, match="tied"):
        select(named("lm_head.weight", tie_word_embeddings=True), ["lm_head"])
    assert select(named("lm_head.weight", tie_word_embeddings=False), ["lm_head"]) == ["lm_head"]


def modules(*parts: str, prefix: str, n: int = 2) -> list[str]:
    return [name.removesuffix(".weight") for name in layers(*parts, prefix=prefix, n=n)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("model.layers", "layers"),
        ("base_model.model.model.layers", "model.layers"),
        ("language_model.model.layers", "model.layers"),
        ("model.language_model.layers", "language_model.model.layers"),
        ("h", "transformer.h"),
    ],
)
def test_prefixes_pair_both_ways(one: str, other: str) -> None:
    mine, theirs = modules("q", "v", prefix=one), modules("q", "v", prefix=other)
    assert pair_names(mine, theirs, LABELS) == dict(zip(mine, theirs, strict=True))
    assert pair_names(theirs, mine, LABELS) == dict(zip(theirs, mine, strict=True))


@given(st.permutations(modules("q", "k", "v", prefix="model.layers", n=3)))
def test_order_never_matters(shuffled: list[str]) -> None:
    names = modules("q", "k", "v", prefix="model.layers", n=3)
    assert pair_names(names, shuffled, LABELS) == {name: name for name in names}


def test_incomplete_pairs_name_what_is_left_over() -> None:
    mine, theirs = modules("q", prefix="model.layers", n=3), modules("q", prefix="model.layers")
    with pytest.raises(PairError, match=r"1 of the 3 modules chosen in A .* 'model.layers.2.q'"):
        pair_names(mine, theirs, LABELS)
    with pytest.raises(PairError, match=r"1 of the 3 modules chosen in B"):
        pair_names(theirs, mine, LABELS)


def test_fused_against_apart_names_the_fused_tensor() -> None:
    apart = named(*layers("self_attn.q_proj", "self_attn.v_proj"), label="A")
    fused = named(*layers("self_attn.qkv_proj"), label="B")
    with pytest.raises(PairError, match=r"B has it fused in 'model.layers.0.self_attn.qkv_proj'"):
        refuse_fused_mismatch(apart, fused, select(apart, ["q_proj"]))
    with pytest.raises(PairError, match=r"A has it fused in 'model.layers.0.self_attn.qkv_proj'"):
        refuse_fused_mismatch(
            named(*layers("self_attn.qkv_proj"), label="A"),
            named(*layers("self_attn.q_proj"), label="B"),
            modules("self_attn.qkv_proj", prefix="model.layers"),
        )
