"""What a training step costs with AsFT, beside plain LoRA and beside the published dense penalty.

``python benchmarks/step.py`` takes steps of 8 × 64 tokens on SmolLM2-135M in float32 with LoRA of
rank 8, on q and v and on all linear layers: forward, backward, clipping, AdamW. Plain steps and
AsFT steps (operator subspace, rank 32) take turns in pairs, the first of a pair by turns, on one
model; a ratio is the median over all pairs of the one's wall time over the other's, and its
interval the bootstrap's (95 %). A few pairs of plain and dense steps follow. The memory that either
penalty adds is counted by the allocator's own events: what it holds plus the peak of its
temporaries in one evaluation with gradients (``memory``; also of one layer of Llama-2-7B's shape),
or plus what a whole step's peak rises by (``peak``). On a GPU the dense operators are held on the
host. That both penalties compute one number is checked with the operator ``gram``.

Pairs are kept in ``--work`` as they are measured, and a run that was stopped goes on there.
``--only`` measures one setting again and leaves the others of the result file as they are; each
says when it was measured, and the hash of the sources that were.
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
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from dense import DensePenalty
from step_memory import held_bytes, peak_bytes
from step_models import SETTINGS, Setting, dense_penalty, make_anchor, make_model
from torch.nn.utils import clip_grad_norm_

from anchortune import anchor
from anchortune.anchor.penalty import Penalty, bind
from anchortune.files import write_json
from anchortune.maths import operators
from anchortune.record import now, platform_facts, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--shape", choices=[*SETTINGS], default="smollm2-135m")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--dense-pairs", type=int, default=5)
    names = sorted({setting.name for settings in SETTINGS.values() for setting in settings})
    parser.add_argument("--only", choices=names, help="one of the shape's settings")
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
    if options.only and options.only not in [setting.name for setting in SETTINGS[options.shape]]:
        parser.error(f"{options.shape} has no setting {options.only}")
    return options


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
        """Bytes: what each penalty holds, and its temporaries' peak alone."""
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
        }

    def peaks(self, dense: DensePenalty) -> dict[str, int]:
        """The most that a step of each kind has allocated at one time."""
        kinds: list[tuple[str, DensePenalty | None]] = [("lora", None), ("asft", None)]
        return {
            f"{kind}_step": peak_bytes(lambda kind=kind, by=by: self.step(kind, by), self.device)
            for kind, by in [*kinds, ("dense", dense)]
        }


def layer_memory(options: argparse.Namespace) -> dict[str, Any]:
    """The memory of both penalties on one layer of Llama-2-7B's shape: either grows by layers."""
    bench = Bench(argparse.Namespace(**vars(options) | {"shape": "layer"}), Setting(""))
    bench.penalty.moment()
    memory = bench.memory(dense_penalty(bench.model, bench.anchor.modules))
    return {"bytes": memory, "ratios": {"memory_ours_over_dense_7b_shape": alone_ratio(memory)}}


def alone_ratio(memory: dict[str, int]) -> float:
    """What ours holds and makes over what the dense penalty does."""
    ours = memory["asft_held"] + memory["asft_temporary"]
    return ours / (memory["dense_held"] + memory["dense_temporary"])


def risen(memory: dict[str, int], kind: str) -> int:
    """By how much a step's peak lies above plain LoRA's, with what is held."""
    return memory[f"{kind}_held"] + max(0, memory[f"{kind}_step"] - memory["lora_step"])


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
    bench.step("lora")  # where all pairs were kept, the update would be 0 in what follows
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
    memory = bench.peaks(dense) | bench.memory(dense)
    return {
        "ratios": {
            f"asft_over_lora{end}": median(wall),
            f"asft_over_lora{end}_low": low,
            f"asft_over_lora{end}_high": high,
            f"asft_over_lora{end}_processor": median(row[3] / row[1] for row in rows),
            f"penalty_alone_over_lora{end}": alone["penalty_s"] / plain_s,
            f"movement_alone_over_lora{end}": alone["movement_s"] / plain_s,
            f"dense_over_lora{end}": median(row[2] / row[0] for row in slow),
            f"memory_ours_over_dense{end}": alone_ratio(memory),
            f"peak_ours_over_dense{end}": risen(memory, "asft") / risen(memory, "dense"),
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


def earlier(path: Path, same: dict[str, Any]) -> dict[str, Any]:
    """The settings that an earlier run measured on the same machine, asked for the same."""
    if not path.is_file():
        return {}
    result = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = result["settings"]
    return found if all(result[name] == value for name, value in same.items()) else {}


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
    found = earlier(options.output, {**asked, **machine}) if options.only else {}
    for setting in SETTINGS[options.shape]:
        if options.only not in (None, setting.name):
            continue
        if setting.four_bits and importlib.util.find_spec("bitsandbytes") is None:
            print("4-bit weights are left out: bitsandbytes is not installed")
            continue
        found[setting.name] = {
            "created": now(),
            "source": source(),
            **measure(options, setting, folder),
        }
    if options.device == "cpu" and options.only is None and not options.smoke:
        found["7b_layer"] = layer_memory(options)
    ratios: dict[str, float] = {}
    for part in found.values():
        part["ratios"] = {name: round(value, 4) for name, value in part["ratios"].items()}
        ratios |= part["ratios"]
    result = {"created": now(), "ratios": ratios, **asked, "settings": found, **machine}
    write_json(options.output, result)
    print(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main()
