"""A training stage checked in full before any work: files, rows, modules, anchor, cost."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anchortune.config import AlignConfig, DataSection, ModelSection, PenaltySection, TrainConfig
from anchortune.data.screened import Screened, ScreenedSource
from anchortune.errors import DataError, TrainingError
from anchortune.models.load import (
    Numbers,
    identity,
    load_skeleton,
    load_tokenizer,
    pick_numbers,
)
from anchortune.training.anchored import (
    UNVERIFIED,
    check_fit,
    check_start,
    load_anchor,
    told_settings,
)
from anchortune.training.batches import (
    TokenisedData,
    preferences,
    read_answers,
    tokenise,
)
from anchortune.training.chain import Chain, check_chain_fit, mix, plan_chain, plan_edit
from anchortune.training.cost import Data, check_disk, cost_of, steps_of
from anchortune.training.estimate import Estimate
from anchortune.training.folder import RunFolder, State
from anchortune.training.grpo import prompt_data
from anchortune.training.health import of_data
from anchortune.training.lora import add_lora, freeze_other_layers
from anchortune.training.probe import Probe, plan_probe
from anchortune.training.refresh import Refresh, check_refresh, plan_refresh
from anchortune.training.refusal_direction import RefusalDirection, plan_activations
from anchortune.training.template import Template
from anchortune.training.trackers import check_trackers

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor

_MAX_LENGTH = 2048


@dataclass
class Plan:
    """A stage that has been checked and can be run.

    Attributes:
        kind: ``train`` or ``align``.
        config: resolved.
        numbers: device and dtypes.
        template: the tokenizer and its chat template.
        data: what is trained on.
        eval_data: what is only measured; None without.
        model: identity of the start model.
        anchor: the loaded anchor; None without a penalty.
        anchor_facts: its identity, for the record.
        parameters: (trained, all).
        estimate: time, memory and disk.
        folder: the run's folder.
        state: what the folder held.
        timings: seconds spent so far, by stage.
        notes: what the user should know.
        screened: what a judge found in the data; None where nobody looked.
        chain: the defences besides the penalty, and the model that training starts from.
        probe: watches the model's safety; None where nobody does.
        refresh: makes the penalty's anchor again; None where it stays.
        activations: watches the refusal direction; None where nobody does.
    """

    kind: str
    config: TrainConfig | AlignConfig
    numbers: Numbers
    template: Template
    data: Data
    eval_data: Data | None
    model: dict[str, Any]
    anchor: Anchor | None
    anchor_facts: dict[str, Any] | None
    parameters: tuple[int, int]
    estimate: Estimate
    folder: RunFolder
    state: State
    timings: dict[str, float]
    chain: Chain
    notes: list[str] = field(default_factory=list)
    screened: Screened | None = None
    probe: Probe | None = None
    refresh: Refresh | None = None
    activations: RefusalDirection | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return steps_of(self.config, self.data)

    @property
    def start(self) -> ModelSection:
        """The model that training starts from."""
        return self.chain.start

    @property
    def penalty(self) -> PenaltySection | None:
        """The penalty's settings, if there is one."""
        return self.config.penalty if isinstance(self.config, TrainConfig) else None

    def inputs(self) -> dict[str, Any]:
        """What the run is made from, with hashes."""
        found: dict[str, Any] = {"model": self.model, "data": self.data.summary()}
        if self.eval_data is not None:
            found["eval_data"] = self.eval_data.summary()
        if self.anchor_facts is not None:
            found["anchor"] = self.anchor_facts
        if self.chain.facts:
            found["defence"] = self.chain.facts
        if self.screened is not None:
            found["screen"] = self.screened.summary()
        if self.probe is not None:
            found["probe"] = self.probe.source
        if self.activations is not None:
            found["activations"] = self.activations.source
        if self.refresh is not None:
            found["anchor_refresh"] = self.refresh.summary()
        return found

    def lines(self) -> list[str]:
        """For people: what would be done."""
        training, data = self.config.training, self.data.summary()
        trained, total = self.parameters
        merged = f" + {self.start.adapter}" if self.start.adapter else ""
        counts = f"{data['sequences']} sequences, {data['tokens']} tokens"
        if isinstance(self.data, TokenisedData):
            counts += f", {data['learnt_tokens']} learnt, {data['truncated']} cut"
        return [
            f"model   {self.model['path']}{merged}: {total / 1e6:.1f} M parameters, sha256 "
            f"{self.model['sha256'][:12]}",
            *(f"data    {report.line()}" for report in self.data.reports),
            *(f"screen  {source.line()}" for source in _sources(self.screened)),
            f"        {counts} at {self.data.max_length}",
            *self._added_lines(),
            f"chat    template: {self.template.describe()}",
            f"trains  {trained} parameters, {self.steps} steps of {training.batch_size} rows, "
            f"{self.numbers.compute_name} on {self.numbers.device.type}",
            *self._penalty_lines(),
            *self.chain.lines(),
            *([f"probe   {self.probe.line()}"] if self.probe is not None else []),
            *([f"states  {self.activations.line()}"] if self.activations is not None else []),
            *self.estimate.lines(),
            f"output  {self.folder.path} ({self.state.value})",
            *(f"note    {note}" for note in self.notes),
        ]

    def _added_lines(self) -> list[str]:
        if not isinstance(self.data, TokenisedData) or not self.data.added:
            return []
        told = ", ".join(f"{count} by {name}" for name, count in self.data.added.items())
        return [f"        rows added: {told}"]

    def _penalty_lines(self) -> list[str]:
        penalty = self.penalty
        if penalty is None:
            return []
        told = [f"penalty {penalty.anchor}: {told_settings(penalty)}"]
        return told + ([] if self.refresh is None else [f"        {self.refresh.line(self.steps)}"])

    def summary(self) -> dict[str, Any]:
        """The plan as plain values."""
        trained, total = self.parameters
        return {
            "kind": self.kind,
            "config": self.config.model_dump(mode="json"),
            "inputs": self.inputs(),
            "steps": self.steps,
            "trained_parameters": trained,
            "parameters": total,
            "device": self.numbers.device.type,
            "dtype": self.numbers.compute_name,
            "estimate": {
                "seconds": self.estimate.seconds,
                "memory_bytes": self.estimate.memory_bytes,
                "disk_bytes": self.estimate.disk_bytes,
            },
            "output": {"path": str(self.folder.path), "state": self.state.value},
            "defence": [dict(defence) for defence in self.chain.defences],
            "notes": self.notes,
        }


def plan_stage(
    config: TrainConfig | AlignConfig, *, timed: bool = False, screened: Screened | None = None
) -> Plan:
    """Everything that can be checked without training, checked.

    Args:
        config: of the stage.
        timed: estimate the time as well, which takes some seconds.
        screened: what ``anchortune.evaluation.screen.screen_for_training`` found, for a config
            with a ``screen`` section; with ``action: drop`` its harmful rows are left out.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    kind = "train" if isinstance(config, TrainConfig) else "align"
    started = time.perf_counter()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError(
            f"anchortune {kind} runs in one process; for several, call attach(trainer, anchor) in "
            "a script of your own under torchrun."
        )
    if isinstance(config, TrainConfig) and config.screen is not None and screened is None:
        raise TrainingError(
            "the config has a screen section: pass what "
            "anchortune.evaluation.screen.screen_for_training(config) returns as screened."
        )
    numbers = pick_numbers(config.machine, config.lora)
    chain = plan_chain(config)
    template = _template(config, chain)
    skeleton = load_skeleton(chain.start)
    plan_edit(chain, skeleton)
    max_length = _max_length(config, skeleton)
    omitted = screened.omitted() if screened is not None else None
    if isinstance(config, TrainConfig) and chain.defences:
        rows = read_answers(config.data, template, max_length, config.seed, omitted)
        data: Data = mix(chain, config, rows, template, max_length)
    else:
        data = _read(config, config.data, template, max_length, omitted)
    eval_data = None
    if config.eval_data:
        eval_data = _read(config, config.eval_data, template, max_length)
        _disjoint([*data.rows, *chain.given], eval_data)
    model = chain.facts.get("base") or identity(chain.start)
    folder = RunFolder(config.output, _identity(config, model, data, eval_data))
    anchor, facts = load_anchor(config, chain.anchors.aligned)
    folder.identity["anchor"] = None if facts is None else facts["sha256"]
    if chain.facts:
        folder.identity["defence_sha256"] = chain.hashes()
    if screened is not None:
        folder.identity["screened"] = screened.identity()
    probe = plan_probe(config, template, [*data.rows, *chain.given], max_length)
    if probe is not None:
        folder.identity["probe_sha256"] = [one["sha256"] for one in probe.source["sources"]]
    refresh = plan_refresh(config, template, max_length, numbers, steps_of(config, data))
    if refresh is not None:
        folder.identity["anchor_refresh_sha256"] = refresh.report.sha256
    trained_rows = [*data.rows, *chain.given]
    activations = plan_activations(config, template, trained_rows, max_length)
    if activations is not None:
        folder.identity["activations_sha256"] = activations.prompts_sha256
    state = folder.state()
    if state is not State.COMPLETE:
        check_trackers(config.machine.report_to)
    total = sum(parameter.numel() for parameter in skeleton.parameters())
    notes = [finding.told for finding in of_data(data.summary(), screened)]
    if chain.start.adapter is not None and config.lora is not None:
        notes.append(
            f"the new adapter belongs on {chain.start.path} with {chain.start.adapter} merged in"
        )
    if isinstance(config, AlignConfig) and config.grpo is not None:
        notes.append("every step generates its answers first; the time above leaves that out")
    if config.lora is not None:
        skeleton = add_lora(skeleton, config.lora, config.seed, chain.layers)
    elif chain.layers is not None:
        freeze_other_layers(skeleton, chain.layers)
    notes += check_chain_fit(chain, skeleton)
    if anchor is not None and facts is not None and isinstance(config, TrainConfig):
        notes += check_fit(anchor, skeleton, config.penalty or PenaltySection(anchor=""))
        if refresh is not None:
            check_refresh(refresh, anchor, skeleton, config.penalty)
        facts["start"] = check_start(anchor, config.penalty, config.model)
        if facts["start"] == UNVERIFIED:
            notes.append("the anchor's parents could not be compared with the start model")
    if chain.system_prompt is not None:
        notes.append("the model needs a system prompt at inference; the record will hold it")
        notes += ["the probe asks without the system prompt"] if probe is not None else []
    trained = sum(p.numel() for p in skeleton.parameters() if p.requires_grad)
    cost = cost_of(config, numbers, skeleton, trained, data, timed, bool(chain.having("task_loss")))
    check_disk(folder, cost)
    timings = {"plan_s": time.perf_counter() - started}
    return Plan(
        kind, config, numbers, template, data, eval_data, model, anchor, facts, (trained, total),
        cost, folder, state, timings, chain, notes, screened, probe,
        refresh, activations,
    )  # fmt: skip


def _template(config: TrainConfig | AlignConfig, chain: Chain) -> Template:
    """The start model's tokenizer; of a base that speaks no chat, the aligned model's instead."""
    tokenizer = load_tokenizer(chain.start)
    if chain.start is config.model or tokenizer.chat_template:
        return Template(tokenizer)
    aligned = load_tokenizer(config.model)
    rows = int(load_skeleton(chain.start).get_input_embeddings().weight.shape[0])
    if len(aligned) > rows:
        raise TrainingError(
            f"base {chain.start.path} has no chat template, and the {len(aligned)} tokens of "
            f"{config.model.path} are more than the {rows} that it embeds; give its tokenizer a "
            "chat template."
        )
    return Template(aligned)


def _sources(screened: Screened | None) -> list[ScreenedSource]:
    return screened.sources if screened is not None else []


def _max_length(config: TrainConfig | AlignConfig, skeleton: Any) -> int:
    limit = getattr(skeleton.config.get_text_config(), "max_position_embeddings", None)
    asked = config.training.max_length_tokens
    if asked is None:
        return min(_MAX_LENGTH, limit or _MAX_LENGTH)
    if limit is not None and asked > limit:
        raise TrainingError(
            f"training.max_length_tokens is {asked}, but the model reads at most {limit}; lower it."
        )
    return asked


def _read(
    config: TrainConfig | AlignConfig,
    sections: list[DataSection],
    template: Template,
    max_length: int,
    omitted: list[frozenset[str]] | None = None,
) -> Data:
    if isinstance(config, AlignConfig) and config.method == "dpo":
        return preferences(sections, template, max_length, config.seed)
    if isinstance(config, AlignConfig) and config.grpo is not None:
        return prompt_data(config.grpo, template, max_length)
    return tokenise(sections, template, max_length, config.seed, omitted)


def _disjoint(trained: Sequence[Any], eval_data: Data) -> None:
    def key(row: Any) -> str:
        return repr(row) if isinstance(row, dict) else repr(row.input_ids)

    seen = {key(row) for row in trained}
    shared = sum(key(row) in seen for row in eval_data.rows)
    if shared:
        raise DataError(
            f"{shared} of {len(eval_data.rows)} rows of eval_data are trained on; take them out of "
            "data or of eval_data."
        )


def _identity(
    config: TrainConfig | AlignConfig, model: dict[str, Any], data: Data, eval_data: Data | None
) -> dict[str, Any]:
    sources = [report.sha256 for report in data.reports]
    checks = [report.sha256 for report in eval_data.reports] if eval_data is not None else []
    return {
        **config.science(),
        "sha256": {
            "model": model["sha256"],
            "config": model.get("config_sha256"),
            "adapter": model.get("adapter"),
            "data": sources,
            "eval_data": checks,
        },
    }
