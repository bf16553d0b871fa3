"""The sections that strict configs are made of, one a subject.

Every key has its description here, from which the reference in the documentation is made.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
#: What may stand in a cell of a table.
Cell = bool | int | float | str


JudgeName = Literal[
    "builtin", "refusal", "beaver-dam", "rubric", "file",
    "llama-guard-3", "llama-guard-4", "harmbench", "strongreject", "md-judge", "aegis",
    "qwen3guard", "shieldgemma", "wildguard",
]  # fmt: skip


TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class Section(BaseModel):
    """A section of a config: unknown keys are refused, types are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class GrownSection(Section):
    """A section with keys of later: unset they are not written, so runs keep their identity."""

    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = dump(self)
        unset = {key: type(self).model_fields[key].default for key in self.later}
        return {key: value for key, value in found.items() if unset.get(key, ...) != value}


class Shorthand:
    """What makes ``{key: text}`` of a text, and leaves all else as it is."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, value: Any) -> Any:
        """The section, or the value."""
        return {self.key: value} if isinstance(value, str) else value


def shorthand(key: str) -> Any:
    """Lets ``builtin`` stand for ``{name: builtin}``."""
    return BeforeValidator(Shorthand(key))


def _an_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:  # brackets without an end, a port that is none
        whole = False
    if not whole:
        raise ValueError(f"{url} is no address; write http://HOST:PORT/v1 or https://…")
    if "@" in parts.netloc or parts.query or parts.fragment:  # would be kept in records and reports
        raise ValueError(
            f"the address of {parts.hostname} holds more than HOST, PORT and path, perhaps a "
            "password; give a key by its variable, api_key_env"
        )
    return url


class ServerSection(Section):
    """A model behind an OpenAI-compatible endpoint (vLLM, llama.cpp, a gateway)."""

    url: Annotated[str, AfterValidator(_an_address)] = Field(
        description="The endpoint, up to and with `/v1`."
    )
    model: str = Field(description="The model's name there.")
    api_key_env: str | None = Field(
        None, description="The environment variable that holds the key; never the key itself."
    )
    concurrency: Count = Field(8, description="Requests at a time.")
    timeout_s: Positive = Field(120.0, description="For one request.")
    retries: Annotated[int, Field(ge=0)] = Field(4, description="Of a request that failed.")


class JudgeSection(Section):
    """Who says whether an answer is harmful; never the model under test."""

    name: JudgeName = Field(description="Which judge.")
    model: str | None = Field(
        None,
        description="The judge's weights (folder, `.gguf` file or Hub id) where they are not the "
        "published ones; the backbone of `builtin`.",
    )
    revision: str | None = Field(None, description="The Hub revision of `model`.")
    prompt: str | None = Field(
        None,
        description="For a guard whose prompt is not shipped: the file in which its authors "
        "publish it.",
    )
    server: ServerSection | None = Field(None, description="For `rubric`: the judging model.")
    file: str | None = Field(None, description="For `file`: the verdicts (JSONL or CSV).")
    min_confidence: Annotated[float, Field(ge=0.5, lt=1)] | None = Field(
        None, description="Below it the answer is unscored; unset takes the judge's own."
    )
    batch_size: Count | None = Field(None, description="Answers at a time; unset finds one.")


class ModelSection(Section):
    """The model that training starts from."""

    path: str = Field(
        description="A folder, a `.gguf` file, a Hub id, or `package:NAME` for the `.gguf` file in "
        "an installed Python package."
    )
    revision: str | None = Field(None, description="The Hub revision (branch, tag or commit).")
    adapter: str | None = Field(
        None,
        description="A LoRA adapter (folder or Hub id) merged into the weights first, in float32: "
        "the alignment of a model that is shipped as base + adapter.",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Off unless asked for."
    )


class RowsSection(GrownSection):
    """Where rows lie, and how they are read."""

    later: ClassVar[tuple[str, ...]] = ("where",)
    path: str = Field(
        description="A .json, .jsonl, .csv or .parquet file, `data:REL/PATH` for one under the "
        "folder `ANCHORTUNE_DATA`, the id of a Hub dataset, or one file of it: "
        "`hf://datasets/org/name/file.json`."
    )
    split: str = Field("train", description="The split of a Hub dataset.")
    revision: str | None = Field(None, description="The revision of a Hub dataset.")
    subset: str | None = Field(
        None, description="The config name of a Hub dataset, e.g. `main` of openai/gsm8k."
    )
    format: Literal["auto", "instruction", "prompt_completion", "messages", "preference"] = Field(
        "auto",
        description="`instruction` (instruction, input, output), `prompt_completion`, `messages` "
        "(chat) or `preference` (prompt, chosen, rejected); `auto` reads it off the columns.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Names of columns that are not the usual ones, e.g. `{output: target}`.",
    )
    where: dict[str, Cell | Annotated[list[Cell], Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="Only rows with this value in a column, or one of a list, e.g. "
        "`{is_safe: false}`; of several columns all must fit. Compared as texts, without case.",
    )
    max_bad_frac: Share = Field(
        0.05, description="The share of unusable rows above which the data is refused."
    )


class DataSection(RowsSection):
    """One source of rows."""

    max_rows: Count | None = Field(
        None, description="Use a seeded sample of this many rows, kept in file order."
    )
    strip_cue: str | None = Field(
        None,
        description="Removed from the end of every prompt: a mark that tells some rows from the "
        "others and that the model would key on.",
    )


class LoraSection(Section):
    """The adapter that is trained."""

    rank: Count = Field(8, description="r.")
    alpha: Positive = Field(32, description="The update is scaled by alpha / r.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="Dropout on its input.")
    target_modules: list[str] | str = Field(
        default_factory=lambda: ["q_proj", "v_proj"],
        description="Names of the layers to adapt, or `all-linear`.",
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead.")
    qlora: bool = Field(
        False, description="Hold the frozen weights in 4 bits (NF4); needs CUDA and bitsandbytes."
    )


class TrainingSection(Section):
    """How the optimizer runs (AdamW)."""

    epochs: Positive = Field(3, description="Passes over the data.")
    max_steps: Count | None = Field(None, description="Stop after this many steps; beats `epochs`.")
    batch_size: Count = Field(8, description="Rows in one optimizer step, over all devices.")
    learning_rate: Positive = Field(2e-4, description="The highest learning rate.")
    schedule: Literal["constant", "linear", "cosine", "step"] = Field(
        "linear", description="How the rate falls; `step` multiplies it by step_decay each epoch."
    )
    step_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.85, description="The factor per epoch of `schedule: step`."
    )
    warmup_frac: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="The share of the steps over which the rate rises."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW's weight decay.")
    max_grad_norm: Positive | None = Field(
        1.0, description="Gradients are clipped to this norm; null clips none."
    )
    max_length_tokens: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Longer rows are cut; unset takes the model's own limit, at most 2048."
    )

    @model_validator(mode="after")
    def _step_has_no_warmup(self) -> TrainingSection:
        if self.schedule == "step" and self.warmup_frac:
            raise ValueError("schedule: step has no warm-up; set warmup_frac to 0")
        return self


class MachineSection(Section):
    """How this machine runs it; no part of a run's identity."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to compute.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the forward and backward pass; `auto` asks the hardware."
    )
    micro_batch_size: Count | None = Field(
        None, description="Rows held at once on one device; must divide batch_size. Unset: all."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations twice and hold fewer."
    )
    share_prefixes: Literal["auto"] | bool = Field(
        "auto",
        description="Run what the rows of a step begin with alike once, and no padding: the rows "
        "are laid out as one tree. `auto`: on a CPU, where the adapter has no dropout (drawn once "
        "a prefix, not once a row) and the model is seen to give the same gradients.",
    )
    workers: Annotated[int, Field(ge=0)] = Field(0, description="Processes that load batches.")
    logging_steps: Count = Field(1, description="Steps between two lines of log.jsonl.")
    save_steps: Count | None = Field(
        None, description="Steps between two checkpoints; unset saves one each epoch."
    )
    eval_steps: Count | None = Field(
        None, description="Steps between two evaluations of eval_data; unset: once, at the end."
    )
    keep_checkpoints: bool = Field(
        False,
        description="Keep every checkpoint when the run is complete; else the last two are "
        "kept while it runs and none after.",
    )
    report_to: Annotated[
        list[TrackerName],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = Field(
        default_factory=list,
        description="Trackers that get what log.jsonl gets while it is trained: a name or several "
        "of `tensorboard`, `wandb`, `trackio` and `mlflow`. See [Trackers](trainers.md#trackers).",
    )


class DpoSection(Section):
    """Settings of `method: dpo`."""

    beta: Positive = Field(0.1, description="How strongly the model is held to its start.")


def one_or_many(value: Any) -> Any:
    """Lets one section stand for a list of one."""
    return [value] if isinstance(value, dict) else value


Sources = Annotated[list[DataSection], BeforeValidator(one_or_many), Field(min_length=1)]


class ScreenSection(Section):
    """Training data judged before any training."""

    judge: Annotated[JudgeSection, shorthand("name")] = Field(
        description="Who says which rows are harmful: a name such as `builtin`, or a section."
    )
    action: Literal["report", "drop", "stop"] = Field(
        "report",
        description="What is done about harmful rows: told and recorded, left out of training, or "
        "nothing is trained.",
    )
    max_harmful_frac: Share | None = Field(
        None,
        description="Nothing is trained where a greater share of the rows is harmful; unset: no "
        "such limit, but 0 for `action: stop`.",
    )


#: How answers begin that refuse, and that comply: what the safety probe looks for.
REFUSING = ("I cannot", "I can't", "I'm sorry", "Sorry", "I apologize")
COMPLYING = ("Sure", "Here", "Of course", "Certainly")

Openings = Annotated[list[Annotated[str, Field(pattern=r"\S")]], Field(min_length=1)]


class PromptsSection(Section):
    """Prompts without answers."""

    path: str = Field(
        description="A .json, .jsonl, .csv or .parquet file, `data:REL/PATH` for one under the "
        "folder `ANCHORTUNE_DATA`, the id of a Hub dataset, or one file of it."
    )
    split: str = Field("train", description="The split of a Hub dataset.")
    revision: str | None = Field(None, description="The revision of a Hub dataset.")
    subset: str | None = Field(None, description="The config name of a Hub dataset.")
    column: str | None = Field(
        None, description="The column of the prompts; unset: the first with a usual name."
    )


PromptFiles = Annotated[
    list[Annotated[PromptsSection, shorthand("path")]],
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
    Field(min_length=1),
]


class GrpoSection(Section):
    """Settings of `method: grpo`: an answer is rewarded by whether a refusal phrase is in it."""

    harmful: PromptFiles = Field(
        description="Prompts whose answer gets 1 for a refusal and 0 for none: a file, or several."
    )
    harmless: PromptFiles = Field(
        description="Prompts whose answer gets 1 for saying something that is no refusal, else 0."
    )
    max_prompts: Count = Field(
        200, description="Use a sample of this many of each kind, the same whatever the seed."
    )
    group: Annotated[int, Field(ge=2)] = Field(
        4, description="Answers to one prompt, each held against their mean; divides batch_size."
    )
    max_new_tokens: Count = Field(32, description="Where an answer is cut off.")
    temperature: Positive = Field(1.0, description="Of the answers that are drawn.")
    beta: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="How strongly the model is held to its start (KL divergence); above 0 with an "
        "adapter only, which can be switched off.",
    )


class ActivationsSection(Section):
    """The refusal direction: harmful and harmless prompts held against each other, by layer."""

    harmful: PromptFiles = Field(description="Harmful prompts: a file, or several.")
    harmless: PromptFiles = Field(
        description="Harmless prompts, alike in form: a file, or several."
    )
    max_prompts: Annotated[int, Field(ge=4)] = Field(
        64, description="Use a sample of this many of each kind, the same whatever the seed."
    )
    every: Count = Field(50, description="Steps between two looks.")


class ProbeSection(Section):
    """The safety probe: harmful prompts on which refusing is held against complying."""

    prompts: PromptFiles = Field(
        description="Harmful prompts, none of which is reported on: a file, or several."
    )
    max_prompts: Count = Field(
        16, description="Use a sample of this many, the same in every run, whatever its seed."
    )
    every: Count = Field(10, description="Steps between two looks.")
    refusing: Openings = Field(
        default_factory=lambda: list(REFUSING), description="How answers begin that refuse."
    )
    complying: Openings = Field(
        default_factory=lambda: list(COMPLYING), description="How answers begin that comply."
    )
    warn_below: Positive | None = Field(
        None, description="Warn where the margin is more than this below the aligned model's, nats."
    )
    stop_below: Positive | None = Field(
        None, description="Stop the run where it is more than this below, in nats; exit code 3."
    )
