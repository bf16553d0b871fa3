"""Every example of docs/trainers.md runs as it stands there, one after another, on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from anchortune import Anchor
from anchortune.config import PenaltySection
from anchortune.config_io import validate
from tests.tiny import tiny_llama

PAGE = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text("utf-8")
ELSEWHERE = {
    "p.full_tensor()": "sharded weights: tests/training/test_fsdp.py",
    "# needs a GPU and unsloth": "unsloth imports on a GPU only",
}
DOORS = {"sft", "dpo", "grpo", "trainer", "asft_trainer", "mixin", "accelerate", "torch", "float16"}


def blocks(language: str) -> list[str]:
    """The page's code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def kind(block: str) -> str:
    """What a block shows."""
    marks = {
        "AsftMixin": "mixin",
        "AsftTrainer(": "asft_trainer",
        "SFTTrainer(path": "sft",
        "DPOTrainer(path": "dpo",
        "GRPOTrainer(": "grpo",
        "Trainer(model": "trainer",
        "accelerator.backward": "accelerate",
        "GradScaler": "float16",
        "penalty()": "torch",
        "attach_terms": "terms",
    }
    found = [name for mark, name in marks.items() if mark in block]
    return "terms" if "terms" in found else found[0] if found else "shared"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page's examples read."""
    folder = tmp_path_factory.mktemp("page")
    for seed, name in enumerate(("base-model", "aligned-model")):
        tiny_llama(folder / name, seed, dtype=torch.float32, tokenizer=True)
    pair = (str(folder / "aligned-model"), str(folder / "base-model"))
    targets = ["q_proj", "v_proj"]
    Anchor.from_checkpoints(*pair, rank=4, target_modules=targets).save(
        folder / "anchor.safetensors"
    )
    rows = [{"prompt": f"Say {i}.", "completion": f" {i}, as you say."} for i in range(8)]
    pairs = [{"prompt": f"Say {i}.", "chosen": f" {i}.", "rejected": " No."} for i in range(8)]
    for name, lines in (("rows", rows), ("pairs", pairs)):
        text = "\n".join(json.dumps(line) for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def test_every_python_block_trains_with_the_penalty(
    scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(scene / "cache"))
    # TRL's configs ask for bfloat16 on a GPU; a CPU has it too.
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    space: dict[str, Any] = {}
    shown = set()
    for block in blocks("python"):
        if any(mark in block for mark in ELSEWHERE):
            continue
        what = kind(block)
        shown.add(what)
        space.pop("trainer", None)
        exec(compile(block, f"docs/trainers.md: {what}", "exec"), space)
        if what in ("accelerate", "torch", "float16"):
            assert space["penalty"].movement().energy > 0, what
        elif what in DOORS:
            trainer = space["trainer"]
            assert trainer._asft.fired == trainer.state.global_step > 0, what
    assert shown == DOORS | {"shared", "terms"} | ({"shared"} & shown)
    assert "tensorboard" in space["args"].report_to


def test_the_pages_accelerate_loop_adds_the_penalty_once_a_step_however_it_accumulates(
    scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one length in float32, and a λ that a factor of 2 would show."""
    from accelerate.state import AcceleratorState

    monkeypatch.chdir(scene)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(scene / "cache"))
    space, loop = accelerate_loop()

    def trained(batch: int, accumulated: int, lam: float) -> list[torch.Tensor]:
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)
        changes = {
            'mixed_precision="bf16"': 'mixed_precision="no"',
            "accumulation_steps=2": f"accumulation_steps={accumulated}",
            "batch_size=4, shuffle=True": f"batch_size={batch}, shuffle=False",
            "add_gradient_(1.0": f"add_gradient_({lam}",
        }
        text = loop
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        exec(text, space)
        return [p.detach().clone() for p in space["model"].parameters() if p.requires_grad]

    whole, parts, other = trained(4, 1, 50.0), trained(2, 2, 50.0), trained(4, 1, 25.0)
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(whole, other, strict=True))
    for one, two in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_the_pages_accelerate_loop_is_the_same_with_a_scaler(
    scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate gives a CPU no float16, so its scaler is put in where it would be on a GPU."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    class Scaled(Accelerator):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(mixed_precision="no", gradient_accumulation_steps=2)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

        def unscale_gradients(self, optimizer: Any = None) -> None:
            for held in self._optimizers:
                self.scaler.unscale_(held.optimizer)

    monkeypatch.chdir(scene)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(scene / "cache"))
    space, loop = accelerate_loop()
    space["Scaled"] = Scaled

    def trained(scaled: bool, told: bool = True) -> list[torch.Tensor]:
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)
        text = loop.replace("batch_size=4, shuffle=True", "batch_size=2, shuffle=False")
        text = text.replace('"bf16"', '"no"').replace("add_gradient_(1.0", "add_gradient_(50.0")
        if scaled:
            text = text.replace("accelerator = Accelerator(", "accelerator = Scaled(")
        if not told:
            text = text.replace("grad_scale=scale", "grad_scale=1.0")
        exec(text, space)
        assert (space["accelerator"].scaler is not None) == scaled
        return [p.detach().clone() for p in space["model"].parameters() if p.requires_grad]

    plain, scaled, untold = trained(False), trained(True), trained(True, told=False)
    for one, two in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(plain, untold, strict=True))


def accelerate_loop() -> tuple[dict[str, Any], str]:
    """(what the page's accelerate loop goes on from, on rows of one length; that loop)."""
    python = blocks("python")
    [shared] = [
        block for block in python if "anchor = Anchor.load" in block and "unsl" not in block
    ]
    [trainer] = [block for block in python if "lambda row" in block]
    [loop] = [block for block in python if kind(block) == "accelerate"]
    space: dict[str, Any] = {}
    exec(shared + trainer[: trainer.index("model =")], space)
    space["tokens"] = space["tokens"].select(range(8))
    return space, loop


def test_the_scale_of_float16_multiplies_the_penaltys_gradient(scene: Path) -> None:
    from tests.training.test_seam import adapted

    anchor = Anchor.load(scene / "anchor.safetensors")
    found = []
    for scale in (1.0, 1024.0):
        model = adapted(scene / "aligned-model")
        penalty = anchor.bind(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(len(name))
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
                parameter.grad = torch.zeros_like(parameter)
        penalty.add_gradient_(1.0, grad_scale=scale)
        found.append([p.grad / scale for p in model.parameters() if p.grad is not None])
    assert any(float(grad.abs().max()) > 0 for grad in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_sections_for_other_trainers_are_penalties_of_ours() -> None:
    sections = [yaml.safe_load(block).get("anchortune") for block in blocks("yaml")]
    given = [section for section in sections if section]
    assert len(given) == 2  # axolotl, LLaMA-Factory
    for section in given:
        assert validate(section, PenaltySection, "page").lam == 1.0


def test_a_block_that_runs_nowhere_is_named_with_its_reason() -> None:
    for mark, reason in ELSEWHERE.items():
        assert sum(mark in block for block in blocks("python")) == 1, reason
