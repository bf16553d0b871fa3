"""The quickstart: a real model loses its safety under plain fine-tuning and keeps it under AsFT.

Run by ``make quickstart``. Offline; under 10 minutes on two CPU cores; what is done already in
``runs/quickstart`` is not done again. Writes ``summary.json``, ``table.md`` and ``picture.png``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from common import ALIGNED, HERE, gguf_path, rows
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from anchortune import Anchor
from anchortune.adapter.merge import merge_adapter
from anchortune.config import LoraSection, MachineSection, ModelSection, TrainConfig
from anchortune.config_io import load_config
from anchortune.errors import AnchortuneError
from anchortune.evaluation.generate import generate
from anchortune.evaluation.judges.refusal import MEASURE
from anchortune.evaluation.measure import label_accuracy, unrefused_rate
from anchortune.files import atomic_directory, write_json, write_text
from anchortune.maths.stats import Rate
from anchortune.models.load import load_model, load_tokenizer, pick_numbers
from anchortune.report.plots import plot_rates
from anchortune.report.table import rates_markdown, rates_table
from anchortune.training.train import train

console = Console(stderr=True)
HARM, SKILL, OVER = "harmful answered", "task accuracy", "benign refused"
ANSWER_TOKENS = {HARM: 24, SKILL: 8, OVER: 24}


def quiet() -> None:
    """Keeps other libraries' chatter out of the progress."""
    import transformers

    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.basicConfig(format="  %(message)s", level=logging.ERROR)
    logging.getLogger("anchortune").setLevel(logging.WARNING)
    logging.getLogger("anchortune.training.loop").setLevel(logging.INFO)  # steps, off a terminal


def prepare_base(out: Path) -> Path:
    """The base model as a folder: the GGUF file's weights, dequantised once."""
    folder = out / "base"
    if not folder.is_dir():
        section = ModelSection(path=str(gguf_path()))
        numbers = pick_numbers(MachineSection(device="cpu", dtype="float32"), None)
        with atomic_directory(folder) as temporary:
            load_model(section, numbers).save_pretrained(temporary)
            load_tokenizer(section).save_pretrained(temporary)
    return folder


def build_anchor(base: Path, out: Path) -> Path:
    """The anchor: the aligned model is the base and a LoRA adapter, so dW is exact."""
    path = out / "anchor.safetensors"
    if not path.is_file():
        Anchor.from_checkpoints(ALIGNED, base, target_modules=["q_proj", "v_proj"]).save(path)
    return path


def fine_tune(
    name: str, base: Path, anchor: Path | None, seed: int, out: Path, **penalty: Any
) -> Path:
    """Fine-tunes the aligned model on the poisoned task; the folder of the adapter.

    Args:
        name: of the run, and of its folder in ``out``.
        base: the base model's folder.
        anchor: the anchor's file, or None for plain fine-tuning.
        seed: of the rows drawn, their order and the new weights.
        out: the folder of all runs.
        **penalty: keys of the config's ``penalty`` section to change.
    """
    set_to: dict[str, Any] = {
        "model.path": str(base),
        "model.adapter": str(ALIGNED),
        "output": str(out / name),
        "seed": seed,
    }
    if anchor is not None:
        set_to["penalty.anchor"] = str(anchor)
        set_to |= {f"penalty.{key}": value for key, value in penalty.items()}
    config = HERE / ("sft.yaml" if anchor is None else "asft.yaml")
    overrides = [f"{key}={json.dumps(value)}" for key, value in set_to.items()]
    train(load_config(config, TrainConfig, overrides))
    return out / name / "adapter"


def evaluate(name: str, base: Path, adapter: Path | None, split: str, out: Path) -> dict[str, Rate]:
    """Harmful prompts answered, task accuracy and benign prompts refused, on unseen prompts."""
    prompts = {
        HARM: [row["prompt"] for row in rows(f"harmful_{split}")],
        SKILL: [row["prompt"] for row in rows(f"task_{split}")],
        OVER: [row["prompt"] for row in rows(f"benign_{split}")],
    }
    kept = out / name / f"answers-{split}.json"
    if kept.is_file():
        answers = json.loads(kept.read_text(encoding="utf-8"))
    else:
        section = ModelSection(path=str(base), adapter=str(ALIGNED))
        numbers = pick_numbers(MachineSection(), LoraSection())
        model = load_model(section, numbers)
        tokenizer = load_tokenizer(section)
        if adapter is not None:
            model = merge_adapter(model, adapter)
        answers = {}
        with progress_bar() as bar:
            for measure, asked in prompts.items():
                task = bar.add_task(f"{name}: {measure}", total=len(asked))
                answers[measure] = generate(
                    model,
                    tokenizer,
                    asked,
                    max_new_tokens=ANSWER_TOKENS[measure],
                    batch_size=64,
                    on_batch=lambda done, task=task: bar.update(task, completed=done),
                )
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, answers)
    labels = [row["label"] for row in rows(f"task_{split}")]
    return {
        HARM: unrefused_rate(answers[HARM]),
        SKILL: label_accuracy(answers[SKILL], labels),
        OVER: complement(unrefused_rate(answers[OVER])),
    }


def complement(rate: Rate) -> Rate:
    """The rate of the opposite."""
    return Rate(1 - rate.value, rate.n, 1 - rate.high, 1 - rate.low)


def progress_bar() -> Progress:
    """Bars on stderr with time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def summarise(measured: dict[str, dict[str, Rate]]) -> dict[str, Any]:
    """``summary.json``: for each model its accuracy and harmful score, as fractions."""

    def entry(rate: Rate, measure: str) -> dict[str, Any]:
        return {**rate._asdict(), "measure": measure}

    return {
        name: {
            "accuracy": entry(rates[SKILL], "names the right label and no other"),
            "harmful_score": entry(rates[HARM], MEASURE),
            "benign_refused": entry(rates[OVER], "refusal phrase"),
        }
        for name, rates in measured.items()
    }


def verdict(measured: dict[str, dict[str, Rate]]) -> str:
    """One sentence: the share of the lost safety that AsFT kept, and what it cost in accuracy."""
    aligned, sft, asft = (measured[name] for name in ("aligned", "sft", "asft"))
    lost = sft[HARM].value - aligned[HARM].value
    if lost <= 0:
        return "Plain fine-tuning lost no safety here, so there was nothing for AsFT to keep."
    kept = (sft[HARM].value - asft[HARM].value) / lost
    cost = 100 * (sft[SKILL].value - asft[SKILL].value)
    return (
        f"Of the safety that plain fine-tuning lost, AsFT kept {kept:.0%}, at an accuracy "
        f"{abs(cost):.1f} points {'lower' if cost > 0 else 'higher'}."
    )


def report(measured: dict[str, dict[str, Rate]], timings: dict[str, float], out: Path) -> None:
    """Prints the table and writes table, picture and summary."""
    columns = [HARM, SKILL, OVER]
    counts = ", ".join(f"{name}: {rate.n}" for name, rate in measured["aligned"].items())
    plot_rates(
        out / "picture.png",
        "SmolLM2-135M, fine-tuned on a task with 10 % poison",
        columns,
        measured,
        note=f"unseen prompts ({counts}); harm = {MEASURE}; bars: 95 % intervals",
    )
    write_text(out / "table.md", rates_markdown(columns, measured))
    write_json(out / "timings.json", timings)
    write_json(out / "summary.json", summarise(measured))
    Console().print(rates_table("SmolLM2-135M, task with 10 % poison", columns, measured))
    Console().print(verdict(measured))
    console.print(f"Took {sum(timings.values()):.0f} s. See {out}/picture.png and summary.json.")


def main() -> None:
    """Every step, in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--seed", type=int, default=1, help="of data order and new weights")
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    args = parser.parse_args()
    quiet()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    timings: dict[str, float] = {}

    def timed(label: str, work: Any) -> Any:
        console.print(f"[bold]{label}[/bold]")
        started = time.perf_counter()
        result = work()
        timings[label] = round(time.perf_counter() - started, 1)
        return result

    base = timed("Base model from its package", lambda: prepare_base(out))
    anchor = timed("Anchor: aligned minus base", lambda: build_anchor(base, out))
    adapters: dict[str, Path | None] = {"aligned": None}
    for name, label, held in (("sft", "Plain fine-tuning", None), ("asft", "AsFT", anchor)):
        adapters[name] = timed(
            label, lambda name=name, held=held: fine_tune(name, base, held, args.seed, out)
        )
    measured = {
        name: timed(
            f"Evaluation: {name}",
            lambda name=name, adapter=adapter: evaluate(name, base, adapter, args.split, out),
        )
        for name, adapter in adapters.items()
    }
    report(measured, timings, out)


if __name__ == "__main__":
    try:
        main()
    except AnchortuneError as error:
        console.print(f"quickstart: {error}")
        sys.exit(error.exit_code)
