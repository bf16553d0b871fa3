"""What an anchor costs, beside reading the same tensors once and beside the dense operators.

``python benchmarks/anchor.py`` makes a pair of checkpoints of Llama-2-7B's shape in bf16 (shards of
safetensors, 13.5 GB a side by size; all but q and v are holes in sparse files), whose difference
has planted singular values, so that the right answer is known. Three arms take turns in one
process, all from the page cache: the q and v tensors of both sides are read and nothing is done
with them; ``Anchor.from_checkpoints`` at its defaults (rank 32); and, for a few modules, the dense
``C`` of the published formulation. Peak memory is that of a process of its own that builds the
anchor, all of it counted. Writes ``benchmarks/results/anchor.json``; ``--shape llama-2-70b
--layers 2`` projects the whole from some layers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from dense import dense_operator
from torch import Tensor

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.build import DEFAULT_RANK
from anchortune.checkpoints.index import folder_tensors
from anchortune.checkpoints.tensor_file import TensorInfo, read_tensor
from anchortune.files import write_json
from anchortune.maths.lanczos import there_and_back
from anchortune.record import now, platform_facts, versions

ROOT = Path(__file__).parents[1]
SHARD_BYTES = 5 * 10**9
PLANTED = 64
"""Planted triplets, σ = LARGEST · i^-0.5; below them lies only what bf16 rounds."""
LARGEST = 0.46
SAFE = 16
"""Leading planted directions that are checked one by one: the gap to those left out is wide."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model of the Llama family; ``kv`` is the width of k and v."""

    hidden: int
    kv: int
    mlp: int
    layers: int
    vocab: int = 32000

    def tensors(self, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in the order in which they are stored."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for i in range(layers):
            stem = f"model.layers.{i}"
            for name, rows in (("q", self.hidden), ("k", self.kv), ("v", self.kv)):
                yield f"{stem}.self_attn.{name}_proj.weight", (rows, self.hidden)
            yield f"{stem}.self_attn.o_proj.weight", (self.hidden, self.hidden)
            for name in ("gate", "up"):
                yield f"{stem}.mlp.{name}_proj.weight", (self.mlp, self.hidden)
            yield f"{stem}.mlp.down_proj.weight", (self.hidden, self.mlp)
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{stem}.{name}.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocab, self.hidden)


SHAPES = {
    "llama-2-7b": Shape(4096, 4096, 11008, 32),
    "llama-2-70b": Shape(8192, 1024, 28672, 80),
    "tiny": Shape(640, 576, 1024, 2, 1000),
}


def is_target(name: str) -> bool:
    """Whether the anchor is built of this tensor."""
    return name.endswith(("q_proj.weight", "v_proj.weight"))


def planted(name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """U, σ, V of the difference that is planted in one tensor."""
    generator = torch.Generator().manual_seed(seed_of(name))
    sides = [torch.randn(size, PLANTED, generator=generator) for size in shape]
    left, right = (torch.linalg.qr(side)[0] for side in sides)
    return left, LARGEST * torch.arange(1, PLANTED + 1).float() ** -0.5, right


def seed_of(name: str) -> int:
    """A number that the name alone decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def write_pair(folder: Path, shape: Shape, layers: int) -> tuple[Path, Path]:
    """The two checkpoints (aligned, base)."""
    sides = folder / "aligned", folder / "base"
    for side in sides:
        _write_empty(side, shape, layers)
    places = [folder_tensors(side) for side in sides]
    for name, size in shape.tensors(layers):
        if not is_target(name):
            continue
        left, sigma, right = planted(name, size)
        generator = torch.Generator().manual_seed(seed_of(name) + 1)
        base = torch.randn(size, generator=generator).mul_(0.02).bfloat16()
        aligned = torch.addmm(base.float(), left * sigma, right.T).bfloat16()
        for info, value in zip((p[name] for p in places), (aligned, base), strict=True):
            with info.file.open("r+b") as stream:
                stream.seek(info.begin)
                value.view(torch.uint8).numpy().tofile(stream)
    return sides


def _write_empty(folder: Path, shape: Shape, layers: int) -> None:
    """Shards whose headers are true and whose tensors are holes."""
    folder.mkdir(parents=True)
    shards: list[dict[str, Any]] = [{}]
    size = 0
    for name, dims in shape.tensors(layers):
        count = 2 * math.prod(dims)
        if size and size + count > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = {
            "dtype": "BF16",
            "shape": list(dims),
            "data_offsets": [size, size + count],
        }
        size += count
    weight_map = {}
    for number, header in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        end = max(entry["data_offsets"][1] for entry in header.values())
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + end)
        weight_map |= dict.fromkeys(header, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')


def targets(sides: tuple[Path, Path]) -> list[TensorInfo]:
    """Every tensor that the anchor needs, both sides of a module after each other."""
    both = [folder_tensors(side) for side in sides]
    return [side[name] for name in both[0] if is_target(name) for side in both]


def read_fresh(infos: list[TensorInfo]) -> None:
    """Each tensor into memory of its own, as a loader does."""
    for info in infos:
        read_tensor(info, hashed=False)


def read_again(infos: list[TensorInfo]) -> None:
    """Each tensor into the same memory: the least that a copy out of the page cache takes."""
    memory = np.empty(max(info.end - info.begin for info in infos), dtype=np.uint8).data
    for info in infos:
        with info.file.open("rb", buffering=0) as stream:
            stream.seek(info.begin)
            done, size = 0, info.end - info.begin
            while done < size:
                done += stream.readinto(memory[done:size])


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(wall seconds, processor seconds, result)."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - processor, result


def dense_seconds(infos: list[TensorInfo], modules: int) -> float:
    """Wall time of the dense ``C`` of all modules, by that of the first ``modules`` of them."""
    some = infos[: 2 * modules]
    spent = 0.0
    for aligned, base in zip(some[::2], some[1::2], strict=True):
        sides = [read_tensor(info, hashed=False).value for info in (aligned, base)]
        spent += timed(lambda sides=sides: dense_operator(*sides))[0]
    sizes = [math.prod(i.shape) * i.shape[0] for i in infos]  # d_out² · d_in multiplications
    return spent * sum(sizes) / sum(sizes[: 2 * modules])


def memory_of_a_build(sides: tuple[Path, Path]) -> dict[str, int]:
    """Bytes of a process that builds the anchor: its peak, mapped files included, and its start."""
    command = [sys.executable, __file__, "--build-only", *map(str, sides)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(result.stdout.splitlines()[-1])
    return found


def build_only(aligned: str, base: str) -> None:
    """Builds, and prints the peak of resident memory before and after."""
    before = _peak()
    anchor = Anchor.from_checkpoints(aligned, base)
    held = sum(
        t.numel() * t.element_size()
        for f in anchor.modules.values()
        for t in (f.left, f.sigma, f.right)
    )
    print(json.dumps({"before": before, "peak": _peak(), "factors": held}))


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise SystemExit("the peak of memory is read from /proc/self/status, which Linux has")


def errors(anchor: Anchor) -> dict[str, float]:
    """How far the anchor is from the planted answer, the worst module of all."""
    caught, sigma, outside, bounds, kept = [], [], [], [], []
    for name, factors in anchor.modules.items():
        left, true, _ = planted(f"{name}.weight", factors.shape)
        rank = factors.rank
        caught.append(float(factors.sigma.square().sum() / true[:rank].square().sum()))
        sigma.append(float(((factors.sigma[:SAFE] - true[:SAFE]).abs() / true[:SAFE]).max()))
        lost = left[:, :SAFE] - factors.left @ (factors.left.T @ left[:, :SAFE])
        outside.append(float(torch.linalg.matrix_norm(lost, ord=2)))
        bounds.append(factors.tail / float(true[rank]))
        kept.append(anchor.metadata.modules[name].kept_energy_frac)
    return {
        "caught_over_best_least": min(caught),
        f"sigma_error_frac_of_leading_{SAFE}": max(sigma),
        f"sine_of_largest_angle_of_leading_{SAFE}": max(outside),
        "tail_bound_over_next_sigma_least": min(bounds),
        "kept_energy_frac_least": min(kept),
    }


def roofline(infos: list[TensorInfo], read_s: float) -> dict[str, float]:
    """What this machine does in a second on one core, and the least that the work takes with it.

    The least is what the tensors cost to read once, to hash once, and to multiply: there, back and
    there again with 48 columns, which is what rank 32 takes on this pair.
    """
    size = sum(info.end - info.begin for info in infos)
    elements = sum(math.prod(info.shape) for info in infos) / 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = np.zeros(32 << 20, dtype=np.uint8)
    hashing = min(timed(lambda: hashlib.sha256(data.data))[1] for _ in range(3))
    delta, block = torch.randn(2048, 4096), torch.randn(4096, 48)
    product = min(timed(lambda: there_and_back(delta, block))[1] for _ in range(5))
    torch.set_num_threads(threads)
    hash_rate, flop_rate = data.size / hashing, 4 * delta.numel() * 48 / product
    flops = 3 * 2 * 48 * elements
    least = read_s + size / hash_rate + flops / flop_rate
    return {
        "read_gb_s": size / read_s / 1e9,
        "sha256_gb_s": hash_rate / 1e9,
        "product_gflop_s": flop_rate / 1e9,
        "gflop": flops / 1e9,
        "least_core_s": least,
    }


def measure(sides: tuple[Path, Path], args: argparse.Namespace) -> dict[str, Any]:
    """All arms in turn, ``args.rounds`` times."""
    infos = targets(sides)
    read_fresh(infos)  # from here on all is in the page cache
    timed(lambda: Anchor.from_checkpoints(*sides))  # and what is made once is made
    walls: dict[str, list[float]] = {}
    cores: dict[str, list[float]] = {}
    arms: dict[str, Callable[[], Any]] = {
        "read": lambda: read_fresh(infos),
        "read_into_one_buffer": lambda: read_again(infos),
        "anchor": lambda: Anchor.from_checkpoints(*sides),
    }
    for _ in range(args.rounds):
        for name, work in arms.items():
            wall, processor, result = timed(work)
            walls.setdefault(name, []).append(wall)
            cores.setdefault(name, []).append(processor)
        anchor = result
    over = [a / b for a, b in zip(walls["anchor"], walls["read"], strict=True)]
    least = [a / b for a, b in zip(walls["anchor"], walls["read_into_one_buffer"], strict=True)]
    dense_s = dense_seconds(infos, args.dense_modules)
    memory = memory_of_a_build(sides)
    return {
        "ratios": {
            "anchor_over_read": median(over),
            "anchor_over_read_low": min(over),
            "anchor_over_read_high": max(over),
            "anchor_over_read_into_one_buffer": median(least),
            "anchor_processor_over_read_processor": median(cores["anchor"]) / median(cores["read"]),
            "anchor_over_dense_operators": median(walls["anchor"]) / dense_s,
            "peak_over_1_5_gb": memory["peak"] / 1.5e9,
            "factors_over_dense_operators_bytes": memory["factors"]
            / sum(4 * info.shape[0] ** 2 for info in infos[::2]),
        },
        "wall_s": walls | {"dense_operators": dense_s},
        "processor_s": cores,
        "memory_bytes": memory,
        "errors": errors(anchor),
        "roofline": roofline(infos, median(cores["read_into_one_buffer"])),
        "tensor_bytes": sum(info.end - info.begin for info in infos),
        "modules": len(infos) // 2,
    }


def report(found: dict[str, Any], shape: Shape, layers: int) -> None:
    """The table on the terminal."""
    ratios, walls, memory = found["ratios"], found["wall_s"], found["memory_bytes"]
    print(f"{found['modules']} modules, {found['tensor_bytes'] / 1e9:.2f} GB of bf16 to read")
    for name, values in walls.items():
        seconds = median(values) if isinstance(values, list) else values
        print(f"{name:28}{seconds:8.2f} s")
    for name, value in ratios.items():
        print(f"ratio {name:36}{value:8.3f}")
    print(f"peak memory {memory['peak'] / 1e9:.2f} GB, {memory['before'] / 1e9:.2f} of it imports")
    for name, value in found["errors"].items():
        print(f"{name:42}{value:10.5f}")
    for name, value in found["roofline"].items():
        print(f"{name:42}{value:10.2f}")
    if layers < shape.layers:
        times = shape.layers / layers
        peak = memory["peak"] + (times - 1) * memory["factors"]
        found["projected"] = {
            "layers": shape.layers,
            "anchor_s": median(walls["anchor"]) * times,
            "read_s": median(walls["read"]) * times,
            "peak_bytes": peak,
        }
        print(
            f"all {shape.layers} layers, by projection: {median(walls['anchor']) * times:.0f} s "
            f"(reading {median(walls['read']) * times:.0f} s), peak {peak / 1e9:.2f} GB"
        )


def main() -> None:
    """Makes the pair, measures, and deletes the pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-2-7b")
    parser.add_argument("--layers", type=int, default=None, help="fewer than the shape has")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dense-modules", type=int, default=2)
    parser.add_argument("--work", type=Path, default=None, help="where the pair is made")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, once")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--build-only", nargs=2, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build_only is not None:
        build_only(*args.build_only)
        return
    if args.smoke:
        args.shape, args.rounds, args.dense_modules = "tiny", 1, 1
    shape = SHAPES[args.shape]
    layers = min(args.layers or shape.layers, shape.layers)
    loads = [os.getloadavg()[0]]
    folder = Path(tempfile.mkdtemp(prefix="anchor-pair-", dir=args.work))
    try:
        found = measure(write_pair(folder, shape, layers), args)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    loads.append(os.getloadavg()[0])
    report(found, shape, layers)
    found |= {
        "created": now(),
        "shape": {"name": args.shape, "layers": layers, "rank": DEFAULT_RANK},
        "load_average": loads,
        "versions": versions(),
        "platform": platform_facts(),
    }
    name = "anchor" if args.shape == "llama-2-7b" else f"anchor-{args.shape}"
    out = args.out or (None if args.smoke else ROOT / "benchmarks" / "results" / f"{name}.json")
    if out is not None:
        write_json(out, found)
        print(f"written to {out}")


if __name__ == "__main__":
    main()
