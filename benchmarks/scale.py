"""One training on one process, two replicas (DDP) and two shards (FSDP2): equal, and how fast.

``python benchmarks/scale.py`` trains a LoRA (r = 8 on q and v) of a small random Llama with the
penalty and without it, in the same order of rows and with the same number of rows a step, on a CPU
with gloo. Losses, penalties, norms of gradients and the adapters that come out are compared with
those of one process and have to agree within ``BOUNDS``. The arms take turns, each in processes of
its own; a round's ratios come from one group of processes or from the same round. It is counted
too what each process gives to collectives: in a whole step, and for the penalty alone.

accelerate shards on GPUs only and trains with DDP on a CPU, whatever it is told. The FSDP2 arm
sets its state as it would be on GPUs: the sharding is then accelerate's own, by torch's
``fully_shard``, and that every weight is a DTensor is checked. On two processes of one small
machine neither DDP nor FSDP2 can be faster than one process with as many threads: the figures say
what the penalty adds. Writes ``benchmarks/results/scale.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from anchortune import Anchor, attach
from anchortune.files import write_json
from anchortune.record import now, platform_facts, versions

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "scale.json"
WORLD = {"one": 1, "ddp": 2, "fsdp2": 2}
BATCH, WARM = 8, 3
SETTINGS = {"operator": "subspace", "lam": 1.0}
BOUNDS = {
    "loss": 1e-4,
    "penalty": 1e-3,
    "grad_norm": 1e-3,
    "adapter_max": 2e-3,
    "adapter_mean": 2e-5,
}
"""Relative to one process, but for the adapter's weights, which move by up to 1e-3 a step."""


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Rows of random tokens of one length, so that every batching has as many labels."""

    def __init__(self, count: int, tokens: int, vocabulary: int) -> None:
        draws = torch.Generator().manual_seed(0)
        self._rows = torch.randint(0, vocabulary, (count, tokens), generator=draws)

    def __len__(self) -> int:
        """How many rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One row, all of whose tokens are learnt."""
        return {"input_ids": self._rows[index], "labels": self._rows[index].clone()}


class InOrder(Trainer):  # type: ignore[misc]
    """A trainer that takes the rows as they come, so that all arms see the same ones."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Starts."""
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stops."""
        self.steps.append(time.perf_counter() - self._started)


class Traffic(TorchDispatchMode):
    """Counts collectives and the bytes of the buffers that are given to them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Lets the operation pass, and notes it where it is a collective."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.__name__:
            found, sizes = list(args), [0]
            while found:
                each = found.pop()
                if isinstance(each, torch.Tensor):
                    sizes.append(each.numel() * each.element_size())
                elif isinstance(each, (list, tuple)):
                    found.extend(each)
            name = func.__name__.split(".")[0].strip("_")
            self.calls[name] += 1
            self.bytes[name] += max(sizes)
        return func(*args, **(kwargs or {}))

    def told(self) -> dict[str, Any]:
        """Calls and bytes by kind, and all bytes."""
        return {"calls": dict(self.calls), "bytes": sum(self.bytes.values())}


def make_models(folder: Path, width: int, layers: int) -> None:
    """An aligned and a base model, and their anchor."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "aligned")
    for parameter in model.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folder / "base")
    anchor = Anchor.from_checkpoints(
        folder / "aligned",
        folder / "base",
        target_modules=["q_proj", "v_proj"],
        rank=min(32, width // 8),
    )
    anchor.save(folder / "anchor.safetensors")


def make_trainer(arm: str, method: str, folder: Path, steps: int, tokens: int) -> Any:
    """A trainer of the arm, as a script would make it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder / "aligned", dtype=torch.float32)
    model = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    )
    args = TrainingArguments(
        str(folder / "out"),
        per_device_train_batch_size=BATCH // WORLD[arm],
        max_steps=steps + WARM,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        ddp_find_unused_parameters=False,
    )
    rows = Rows((steps + WARM) * BATCH, tokens, 512)
    trainer: Any = InOrder(model, args, train_dataset=rows)
    if arm == "fsdp2":
        state = trainer.accelerator.state
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
            cpu_ram_efficient_loading=False,
        )
        trainer.is_fsdp_enabled = True
    if method == "asft":
        attach(trainer, Anchor.load(folder / "anchor.safetensors"), **SETTINGS)
    return trainer


def watch_one_step(trainer: Any) -> Traffic:
    """Counts the second step's traffic, but for the clipping's and the optimizer's."""
    traffic = Traffic()
    whole = trainer.training_step

    def step(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step != 1:
            return whole(*args, **kwargs)
        with traffic:
            return whole(*args, **kwargs)

    trainer.training_step = step
    return traffic


def run(arm: str, method: str, folder: Path, steps: int, tokens: int) -> dict[str, Any]:
    """Trains, and says what came out of it."""
    trainer = make_trainer(arm, method, folder, steps, tokens)
    clock = Clock()
    trainer.add_callback(clock)
    traffic = watch_one_step(trainer)
    trainer.train()
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    sharded = all(isinstance(p, DTensor) for p in trainer.model.parameters())
    if sharded != (arm == "fsdp2") or trainer.args.world_size != WORLD[arm]:
        raise SystemExit(f"the arm {arm} did not train as it should: sharded is {sharded}")
    logs = [row for row in trainer.state.log_history if "loss" in row]
    found: dict[str, Any] = {
        "loss": [row["loss"] for row in logs],
        "grad_norm": [row["grad_norm"] for row in logs],
        "seconds": clock.steps[WARM:],
        "step_traffic": traffic.told(),
    }
    if method == "asft":
        found["penalty"] = [row["asft/penalty"] for row in logs]
        penalty = trainer._asft.penalty
        with Traffic() as alone:
            penalty.add_gradient_(1.0)
        found["penalty_traffic"] = alone.told()
        adapter = {
            n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().contiguous()
            for n, p in trained.items()
        }
        if trainer.is_world_process_zero():
            save_file(adapter, folder / f"{arm}.safetensors")
    return found


def work(rank: int, arm: str, folder: Path, steps: int, tokens: int, threads: int) -> None:
    """A process of an arm: both methods, one after the other, and the first once more."""
    torch.set_num_threads(max(1, threads // WORLD[arm]))
    if WORLD[arm] > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD[arm]}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ["MASTER_ADDR"] = "localhost"
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting-{arm}", rank=rank, world_size=WORLD[arm]
        )
    results: dict[str, Any] = {}
    for method in ("sft", "asft", "sft"):
        found = run(arm, method, folder, steps, tokens)
        if method in results:
            found["seconds"] += results[method]["seconds"]
        results[method] = found
    if rank == 0:
        write_json(folder / f"{arm}.json", results)
    if WORLD[arm] > 1:
        dist.destroy_process_group()


def apart(mine: list[float], theirs: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(mine, theirs, strict=True))


def differences(folder: Path, found: dict[str, Any], arm: str) -> dict[str, float]:
    """How far an arm's training lies from that of one process."""
    mine, one = found[arm]["asft"], found["one"]["asft"]
    adapters = [load_file(folder / f"{name}.safetensors") for name in (arm, "one")]
    drift = torch.cat(
        [(p - adapters[1][_bare(n)]).abs().flatten() for n, p in _named(adapters[0]).items()]
    )
    return {
        **{key: apart(mine[key], one[key]) for key in ("loss", "penalty", "grad_norm")},
        "adapter_max": float(drift.max()),
        "adapter_mean": float(drift.mean()),
    }


def _bare(name: str) -> str:
    return name.removeprefix("module.")


def _named(adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {_bare(name): tensor for name, tensor in adapter.items()}


def main() -> None:
    """Runs the arms in turns, compares, prints the ratios and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument(
        "--threads", type=int, default=2, help="of all processes of an arm together"
    )
    parser.add_argument("--smoke", action="store_true", help="small, short: whether it runs at all")
    parser.add_argument("-o", "--output", type=Path, default=OUT)
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.steps, options.tokens = 1, 2, 16
        options.width, options.layers = 32, 2
    ratios: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    found: dict[str, Any] = {}
    differ: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_models(folder, options.width, options.layers)
            given = (folder, options.steps, options.tokens, options.threads)
            for arm, world in WORLD.items():
                torch.multiprocessing.spawn(work, (arm, *given), nprocs=world)
                found[arm] = json.loads((folder / f"{arm}.json").read_text(encoding="utf-8"))
            for arm in ("ddp", "fsdp2"):
                new = differences(folder, found, arm)
                old = differ.setdefault(arm, new)
                differ[arm] = {key: max(old[key], value) for key, value in new.items()}
        middle = {
            (arm, method): median(found[arm][method]["seconds"])
            for arm in WORLD
            for method in ("sft", "asft")
        }
        for (arm, method), value in middle.items():
            seconds.setdefault(f"{arm}_{method}", []).append(value)
        for arm in WORLD:
            each = {f"asft_over_sft_{arm}": middle[arm, "asft"] / middle[arm, "sft"]}
            if arm != "one":
                each[f"{arm}_over_one_asft"] = middle[arm, "asft"] / middle["one", "asft"]
            for key, value in each.items():
                ratios.setdefault(key, []).append(value)
    traffic = {
        arm: {
            "step_sft": found[arm]["sft"]["step_traffic"],
            "step_asft": found[arm]["asft"]["step_traffic"],
            "penalty": found[arm]["asft"]["penalty_traffic"],
        }
        for arm in WORLD
    }
    shown = {key: round(median(values), 4) for key, values in ratios.items()}
    shown["penalty_bytes_over_fsdp2_step_bytes"] = round(
        traffic["fsdp2"]["penalty"]["bytes"] / traffic["fsdp2"]["step_sft"]["bytes"], 5
    )
    write_json(
        options.output,
        {
            "created": now(),
            "settings": {key: value for key, value in vars(options).items() if key != "output"},
            "ratios": shown,
            "ranges": {key: [round(min(v), 4), round(max(v), 4)] for key, v in ratios.items()},
            "step_s": {key: round(median(values), 5) for key, values in seconds.items()},
            "differences_from_one_process": differ,
            "bounds": BOUNDS,
            "traffic_of_a_process": traffic,
            "platform": platform_facts(),
            "versions": versions(),
        },
    )
    print(json.dumps(shown))
    for arm, values in differ.items():
        print(f"{arm} from one process: " + ", ".join(f"{k} {v:.2g}" for k, v in values.items()))
        outside = [key for key, value in values.items() if not value <= BOUNDS[key]]
        if outside:
            raise SystemExit(f"{arm} is not what one process gives: {', '.join(outside)}")
    print("traffic of a process: " + json.dumps(traffic))


if __name__ == "__main__":
    main()
