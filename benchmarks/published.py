"""The whole job as the published scripts do it: what ``job.py`` measures ours against.

Both checkpoints are loaded whole in float32, twice, beside a deep copy of the model; C is dense for
each adapted layer; the penalty is the dense one of ``dense.py``, inside ``compute_loss``; batches
are padded, and every logit is computed; each prompt is answered alone by ``generate``. Rows, their
order, LoRA's start, optimizer and schedule are those of our arm, so that results can be compared.
"""

from __future__ import annotations

import copy
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from dense import DensePenalty, dense_operators
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from anchortune.evaluation.generate import encode, end_tokens
from anchortune.evaluation.items import Item
from anchortune.training.batches import Collator, Sequences
from anchortune.training.template import Template


def processor_s() -> float:
    """Processor time of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _whole(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def operators(settings: dict[str, Any]) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """(the model to train, its deep copy, C by module), after the published script's loading."""
    model, _base = _whole(settings["aligned"]), _whole(settings["base"])
    start = copy.deepcopy(model)
    aligned, base = _whole(settings["aligned"]), _whole(settings["base"])
    modules = [
        name
        for name, _ in aligned.named_modules()
        if name.rsplit(".", 1)[-1] in settings["modules"]
    ]
    return model, start, dense_operators(aligned.state_dict(), base.state_dict(), modules)


class PublishedTrainer(Trainer):
    """The penalty as part of the loss, by autograd."""

    dense: DensePenalty

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        """The task's loss and the dense penalty, λ = 1."""
        return super().compute_loss(model, inputs, *args, **more) + self.dense()


def train(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Makes C, trains, saves the adapter; what C alone took, since one process does both."""
    wall, processor = time.perf_counter(), processor_s()
    model, _start, dense = operators(settings)
    made = {"wall_s": time.perf_counter() - wall, "processor_s": processor_s() - processor}
    tokenizer = AutoTokenizer.from_pretrained(settings["aligned"])
    template = Template(tokenizer)
    rows = []
    for line in Path(settings["train"]).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
        rows += template.encode(messages, 2048)
    lora = LoraConfig(r=8, lora_alpha=32, target_modules=settings["modules"], task_type="CAUSAL_LM")
    torch.manual_seed(settings["seed"])
    wrapped = get_peft_model(model, lora)
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        per_device_train_batch_size=settings["batch_size"],
        max_steps=settings["steps"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=settings["device"] == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        seed=settings["seed"],
        data_seed=settings["seed"],
    )
    trainer = PublishedTrainer(
        model=wrapped,
        args=arguments,
        data_collator=Collator(tokenizer.pad_token_id or tokenizer.eos_token_id),
        train_dataset=Sequences(rows),
    )
    trainer.dense = DensePenalty(wrapped, dense)
    trainer.train()
    wrapped.save_pretrained(out / "adapter", save_embedding_layers=False)
    return {"anchor": made}


def answer_alone(
    model: Any, tokenizer: Any, prompt: list[int], new_tokens: int, ends: list[int]
) -> str:
    """The greedy answer of Transformers' ``generate``, with its cache, to one prompt's tokens."""
    ids = torch.tensor([prompt], device=model.device)
    found = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    text: str = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
    return text.strip()


@torch.inference_mode()
def evaluate(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Answers every prompt alone, in the file's order."""
    tokenizer = AutoTokenizer.from_pretrained(settings["aligned"])
    model: Any = PeftModel.from_pretrained(_whole(settings["aligned"]), str(out / "adapter"))
    model = model.to(settings["device"]).eval()
    ends = end_tokens(model, tokenizer)
    answers = []
    for name, limit in (("harmful", settings["new_tokens"]), ("task", settings["task_tokens"])):
        for line in Path(settings[name]).read_text(encoding="utf-8").splitlines():
            prompt = json.loads(line)["prompt"]
            text = answer_alone(
                model, tokenizer, encode(tokenizer, Item(name, prompt)), limit, ends
            )
            answers.append({"set": name, "prompt": prompt, "answer": text})
    lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
    (out / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {}
