"""Strict config of ``anchortune eval``: which models, asked what, judged by whom."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from anchortune.config import Count, Section, Share, shorthand
from anchortune.config import JudgeName as JudgeName
from anchortune.config import JudgeSection as JudgeSection
from anchortune.config import ServerSection as ServerSection

Match = Literal["exact", "regex", "number", "choice"]


def _text_keys(value: Any) -> Any:
    """Lets YAML's ``{0: negative}`` stand for ``{"0": negative}``."""
    if not isinstance(value, dict):
        return value
    return {str(key) if isinstance(key, int) else key: word for key, word in value.items()}


def _many(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class CandidateSection(Section):
    """A model to measure: one that runs here, one behind a server, or answers made elsewhere."""

    path: str | None = Field(None, description="A folder, a `.gguf` file or a Hub id.")
    revision: str | None = Field(None, description="The Hub revision of `path`.")
    adapter: Annotated[list[str], BeforeValidator(_many)] = Field(
        default_factory=list,
        description="Adapters (folders or Hub ids) merged into the weights one after the other.",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Off unless asked for."
    )
    server: ServerSection | None = Field(None, description="Ask a server instead.")
    outputs: str | None = Field(
        None, description="A file of answers made elsewhere (prompt, answer), instead."
    )
    system: str | None = Field(None, description="A system prompt put before every prompt.")
    arm: str | None = Field(
        None, description="Models of one arm are seeds of one method and are summed up together."
    )
    run: str | None = Field(
        None, description="The folder of the run that made it, for its curves in the report."
    )

    @model_validator(mode="after")
    def _one_source(self) -> CandidateSection:
        given = [key for key in ("path", "server", "outputs") if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"give one of path, server and outputs, not {found}")
        if self.adapter and self.path is None:
            raise ValueError(
                "adapter is merged into path; a server or a file has no weights here; drop adapter"
            )
        return self


class PromptSetSection(Section):
    """Malicious prompts, by the name of a known set or from a file."""

    name: str | None = Field(
        None, description="`beavertails`, `advbench`, `harmbench`, `strongreject`, `jailbreakbench`"
    )
    path: str | None = Field(
        None, description="A JSON, JSONL, CSV or Parquet file, or a Hub dataset, instead."
    )
    label: str | None = Field(None, description="What the report calls it; unset: its name.")
    split: str | None = Field(
        None, description="The split of a Hub dataset; unset: the named set's, else `train`."
    )
    revision: str | None = Field(None, description="The revision of a Hub dataset.")
    subset: str | None = Field(None, description="The config name of a Hub dataset.")
    column: str | None = Field(None, description="The column of prompts; unset finds it.")
    category: str | None = Field(None, description="The column to report by.")
    wrapper: Literal["dra", "artprompt"] | None = Field(
        None, description="A jailbreak put round every prompt."
    )
    max_items: Count | None = Field(None, description="A seeded sample of this many.")
    max_new_tokens: Count | None = Field(None, description="Beats `generation.max_new_tokens`.")
    benign: bool = Field(
        False, description="Prompts that ought to be answered: refusals of them are counted."
    )

    @model_validator(mode="after")
    def _one_source(self) -> PromptSetSection:
        if (self.name is None) == (self.path is None):
            raise ValueError("give either name or path")
        return self


class TaskSection(Section):
    """A task with right answers, by name or as a file of one's own."""

    name: str | None = Field(
        None, description="`sst2`, `agnews`, `gsm8k`, `hatexplain`, `alpaca` or `xstest`."
    )
    path: str | None = Field(
        None, description="A file or Hub dataset: of one's own, or in place of the named task's."
    )
    label: str | None = Field(None, description="What the report calls it; unset: its name.")
    preset: Literal["default", "paper"] = Field(
        "default", description="`paper`: the authors' prompts and matching."
    )
    split: str | None = Field(
        None, description="The split of a Hub dataset; unset: the named task's, else `test`."
    )
    revision: str | None = Field(None, description="The revision of a Hub dataset.")
    subset: str | None = Field(None, description="The config name of a Hub dataset.")
    prompt: str | None = Field(
        None, description="The prompt, with `{column}` where a column's text goes."
    )
    target: str | None = Field(None, description="The column of right answers.")
    category: str | None = Field(None, description="The column to report by.")
    match: Match | None = Field(None, description="How an answer is held against the target.")
    choices: Annotated[dict[str, str] | None, BeforeValidator(_text_keys)] = Field(
        None, description="For `choice`: target value -> the word an answer must use."
    )
    pattern: str | None = Field(
        None, description="For `regex`: its first group is the answer that is compared."
    )
    system: str | None = Field(None, description="A system prompt.")
    max_items: Count | None = Field(None, description="A seeded sample of this many.")
    max_new_tokens: Count | None = Field(None, description="Unset takes the task's own.")
    judge: ServerSection | None = Field(None, description="For `alpaca`: the pairwise judge.")

    @model_validator(mode="after")
    def _a_source(self) -> TaskSection:
        if self.name is None and self.path is None:
            raise ValueError("give name, path, or both")
        return self


class GenerationSection(Section):
    """How answers are made."""

    max_new_tokens: Count = Field(512, description="The longest answer to a malicious prompt.")
    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="When sampling.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="When sampling.")


class EvalMachine(Section):
    """How this machine runs it; no part of the result's identity."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to compute.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="`auto` asks the hardware."
    )
    batch_size: Count | None = Field(None, description="Prompts at a time; unset finds one.")


class AskSection(Section):
    """What models are asked, and who judges their answers."""

    harm: Annotated[
        list[Annotated[PromptSetSection, shorthand("name")]], BeforeValidator(_many)
    ] = Field(default_factory=list, description="Malicious prompts, and benign ones.")
    judges: Annotated[list[Annotated[JudgeSection, shorthand("name")]], BeforeValidator(_many)] = (
        Field(default_factory=list, description="Always named; `refusal` alone gives no harm.")
    )
    tasks: Annotated[list[Annotated[TaskSection, shorthand("name")]], BeforeValidator(_many)] = (
        Field(default_factory=list, description="Tasks with right answers.")
    )
    part: Literal["report", "selection", "all"] = Field(
        "report", description="Which part of every set is asked; `selection` to choose settings."
    )
    selection_frac: Share = Field(0.5, description="The share of a set that selects.")
    generation: GenerationSection = Field(default_factory=GenerationSection)
    keep: Literal["text", "hash", "purge"] = Field(
        "text", description="What stays of the answers once they are judged."
    )
    bootstrap: Count = Field(2000, description="Resamples of an interval of differences.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Of samples and bootstrap.")
    machine: EvalMachine = Field(default_factory=EvalMachine)

    @model_validator(mode="after")
    def _something_to_do(self) -> AskSection:
        if not self.harm and not self.tasks:
            raise ValueError("nothing to ask: give harm, tasks, or both")
        if any(not section.benign for section in self.harm) and not self.judges:
            raise ValueError("harm needs a judge: name one in judges, e.g. [builtin, refusal]")
        return self


class EvalConfig(AskSection):
    """The config of ``anchortune eval``."""

    models: Annotated[dict[str, CandidateSection], Field(min_length=1)] = Field(
        description="By name; the first is the one the others are compared with."
    )
    output: str = Field(description="The folder; an evaluation cut short there is resumed.")

    def science(self) -> dict[str, Any]:
        """What decides the result: the config without ``machine`` and ``output``."""
        return self.model_dump(mode="json", exclude={"machine", "output"})
