"""Alignment by reinforcement: refusing is rewarded on harmful prompts, answering on harmless ones.

The reward looks at phrases (``anchortune.data.refusing``) and nothing else. Answers to one prompt
are held against each other (GRPO, arXiv 2402.03300): where a model always refuses, or never does,
all get the same reward and nothing is learnt from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchortune.data.conversations import BadRow, SourceReport
from anchortune.data.prompts import read_prompts
from anchortune.data.refusing import has_refusal
from anchortune.errors import DataError
from anchortune.sections import GrpoSection
from anchortune.training.template import Template

_MAX_BAD_FRAC = 0.05


@dataclass(frozen=True)
class PromptData:
    """Prompts that the model answers itself.

    Attributes:
        rows: ``prompt``, as messages, and ``harmful``.
        lengths: tokens of each prompt, and of the longest answer to it.
        reports: one a kind and file.
        max_length: limit of both in tokens; longer prompts are left out, not cut.
    """

    rows: list[dict[str, Any]]
    lengths: list[int]
    reports: list[SourceReport]
    max_length: int

    def summary(self) -> dict[str, Any]:
        """For records: plain values."""
        return {
            "sources": [report.summary() for report in self.reports],
            "sequences": len(self.rows),
            "harmful": sum(row["harmful"] for row in self.rows),
            "tokens": sum(self.lengths),
            "max_length_tokens": self.max_length,
        }


def prompt_data(section: GrpoSection, template: Template, max_length: int) -> PromptData:
    """The prompts of both kinds.

    Args:
        section: of the config.
        template: the chat template.
        max_length: of a prompt and its answer together, in tokens.

    Raises:
        DataError: a file cannot be read, a prompt is of both kinds, or too many are too long.
    """
    rows: list[dict[str, Any]] = []
    lengths: list[int] = []
    reports = []
    seen: dict[str, bool] = {}
    for harmful, files in ((True, section.harmful), (False, section.harmless)):
        prompts = read_prompts(files, section.max_prompts)
        kind = "harmful" if harmful else "harmless"
        report = SourceReport(
            path=" + ".join(str(source["path"]) for source in prompts.sources),
            sha256=str(prompts.summary()["prompts_sha256"]),
            format=f"{kind} prompts",
            columns={"prompt": ", ".join(str(source["column"]) for source in prompts.sources)},
            rows=sum(int(source["rows"]) for source in prompts.sources),
            sampled=len(prompts.texts),
        )
        for number, text in enumerate(prompts.texts, start=1):
            if seen.setdefault(text, harmful) != harmful:
                raise DataError(
                    f"grpo.harmless: prompt {number} of {report.path} is in grpo.harmful too; take "
                    "it out of one of them."
                )
            asked = [{"role": "user", "content": text}]
            try:
                head = template.tokenizer(
                    template.render(asked, prompt=True), add_special_tokens=False
                )
                length = len(head["input_ids"]) + section.max_new_tokens
                if length > max_length:
                    raise BadRow(f"longer than {max_length} tokens with its answer")
            except BadRow as problem:
                report.drop(f"prompt {number}", str(problem))
                continue
            rows.append({"prompt": asked, "harmful": harmful})
            lengths.append(length)
        report.check(_MAX_BAD_FRAC)
        reports.append(report)
    return PromptData(rows, lengths, reports, max_length)


def refuses_harmful(
    completions: Sequence[Sequence[Mapping[str, str]]], harmful: Sequence[bool], **_: Any
) -> list[float | None]:
    """1 for an answer to a harmful prompt that refuses, 0 for one that does not.

    Args:
        completions: the answers, each as messages.
        harmful: whether the prompt is.

    Returns:
        None for the answers to harmless prompts.
    """
    return _rated(completions, harmful, True, has_refusal)


def answers_harmless(
    completions: Sequence[Sequence[Mapping[str, str]]], harmful: Sequence[bool], **_: Any
) -> list[float | None]:
    """1 for an answer to a harmless prompt that says something and does not refuse, else 0.

    Args:
        completions: the answers, each as messages.
        harmful: whether the prompt is.

    Returns:
        None for the answers to harmful prompts.
    """
    return _rated(completions, harmful, False, _says_something)


def _rated(
    completions: Sequence[Sequence[Mapping[str, str]]],
    harmful: Sequence[bool],
    kind: bool,
    good: Callable[[str], bool],
) -> list[float | None]:
    """1 or 0 for each answer to a prompt of this kind, None for those to the other."""
    return [
        float(good(answer[-1]["content"])) if bool(bad) is kind else None
        for answer, bad in zip(completions, harmful, strict=True)
    ]


def _says_something(answer: str) -> bool:
    return any(letter.isalnum() for letter in answer) and not has_refusal(answer)


def grpo_trainer(
    section: GrpoSection,
    data: PromptData,
    model: Any,
    tokenizer: Any,
    lora: Any,
    options: dict[str, Any],
) -> Any:
    """TRL's ``GRPOTrainer`` with the two rewards.

    Args:
        section: of the config.
        data: the prompts.
        model: the start model.
        tokenizer: with its chat template.
        lora: PEFT's config of the adapter; None where every weight is trained.
        options: keywords of ``TrainingArguments``; a batch counts answers.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from anchortune.training.loop import single_device

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    config = GRPOConfig(
        num_generations=section.group,
        max_completion_length=section.max_new_tokens,
        temperature=section.temperature,
        beta=section.beta,
        **options,
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=[refuses_harmful, answers_harmless],
        args=single_device(config),
        train_dataset=Dataset.from_list(list(data.rows)),
        processing_class=tokenizer,
        peft_config=lora,
    )


def reward_metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a run's log says of its rewards, for the record; None where it says nothing.

    Args:
        lines: of ``log.jsonl``.

    Returns:
        By kind of prompt the mean reward over the first and the last tenth of the lines, and the
        share of prompts whose answers all got the same reward, so that none was learnt from.
    """
    found = [line for line in lines if line.get("reward") is not None]
    if not found:
        return None
    names = {
        "refuses_harmful": "rewards/refuses_harmful/mean",
        "answers_harmless": "rewards/answers_harmless/mean",
    }
    tenth = max(1, len(found) // 10)
    parts = {"first_tenth": found[:tenth], "last_tenth": found[-tenth:]}
    told: dict[str, Any] = {
        name: {part: _mean([line.get(key) for line in some]) for part, some in parts.items()}
        for name, key in names.items()
    }
    return {**told, "groups_alike": _mean([line.get("frac_reward_zero_std") for line in found])}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
