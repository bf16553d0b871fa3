"""The model card of what a run made: which base it needs, how it was made, what was measured of it.

Plain Markdown with the YAML that the Hub reads in front. Of data there are counts and hashes, never
texts; of this machine, no path. The same records give the same card.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchortune._version import __version__
from anchortune.data.named import name_for_records
from anchortune.files import write_text
from anchortune.report.card_front import as_yaml, front_matter
from anchortune.report.card_measured import decided, measured
from anchortune.report.card_source import Base, Made, as_a_run_writes_it, read_made
from anchortune.report.words import markdown_text, number, shown
from anchortune.untrusted import without_secrets

CARD_FILE = "README.md"
"""What a card is called beside what it speaks of."""
_PAPER = "https://arxiv.org/abs/2506.08473"


@dataclass(frozen=True)
class CardOptions:
    """What no record says.

    Attributes:
        name: the card's title, and what the adapter is loaded by: ``org/name``, or a folder.
        base_id: where the base lies on the Hub, for a run that started from a folder or a file.
        licence: as the Hub calls it.
    """

    name: str | None = None
    base_id: str | None = None
    licence: str | None = None


def card(made: Made, options: CardOptions | None = None) -> str:
    """The whole card: front matter and body.

    Raises:
        DataError: a record is not what a run writes.
    """
    with as_a_run_writes_it(made.run):
        return _whole(made, options)


def title_of(made: Made, options: CardOptions) -> str:
    """What the card is headed, and called in the Hub's index of results."""
    return options.name or f"{made.run.resolve().name}: {made.method}"


def _whole(made: Made, options: CardOptions | None) -> str:
    options = options or CardOptions()
    title = title_of(made, options)
    front = as_yaml(front_matter(made, title, options.base_id, options.licence))
    body = "\n\n".join(
        part
        for part in (
            f"# {markdown_text(title)}",
            _lead(made),
            _base(made, options),
            _load(made, options),
            *measured(made),
            _data(made),
            _method(made),
            _anchor(made),
            _again(made),
        )
        if part
    )
    return without_secrets(f"---\n{front}---\n\n{body}\n")


def write_cards(run: Path) -> list[Path]:
    """Writes its card beside everything that a run made, unless somebody wrote one; the files.

    So a run that was killed after its record has its cards when it is asked for again.

    Raises:
        AnchortuneError: there is no complete run in the folder.
    """
    written = []
    for part in read_made(run).parts:
        made = read_made(run, part=part)
        if _is_unwritten(made.folder / CARD_FILE):
            written.append(made.folder / CARD_FILE)
            write_text(written[-1], card(made))
    return written


def _is_unwritten(file: Path) -> bool:
    """Whether nobody wrote a card: there is none, PEFT's empty form, or the note of a merge."""
    if not file.is_file():
        return True
    text = file.read_text(encoding="utf-8", errors="replace")
    return "[More Information Needed]" in text or text.startswith("# An adapter on a merged model")


def _lead(made: Made) -> str:
    what = {
        "adapter": "A LoRA adapter",
        "adapter-on-base": "A LoRA adapter",
        "model": "A language model, trained in full",
    }[made.part]
    method = markdown_text(made.method)
    paper = f" ([AsFT]({_PAPER}))" if "asft" in made.method else ""
    how = {
        "align": "trained to refuse what is harmful",
        "project": f"mended by {method} after its training, to bring its alignment back",
        "extrapolate": f"made by {method}: it moves an aligned model on, and holds no task",
    }.get(made.command, f"fine-tuned with {method}, to keep its alignment{paper}")
    if made.method == "sft":
        how = "fine-tuned without anything that keeps the alignment"
    lines = [
        f"{what}, {how}, by anchortune {__version__}.",
        decided(made),
    ]
    return "\n\n".join(line for line in lines if line)


def _base(made: Made, options: CardOptions) -> str:
    base = made.base
    if base is None:
        return (
            "## The base that it needs\n\nNo record says what this adapter was trained on: see "
            "`adapter_config.json`."
        )
    rows = [("the base", _named(base, options), base.revision, base.sha256)]
    if base.adapter is not None:
        path = name_for_records(str(base.adapter.get("path")))
        rows.append(
            ("the alignment, a LoRA adapter on it", path, base.adapter.get("revision"),
             base.adapter.get("sha256"))
        )  # fmt: skip
    table = ["| | name | commit | SHA-256 |", "|---|---|---|---|"]
    table += [f"| {what} | {_cell(name)} | {_cell(commit)} | {_code(sha)} |"
              for what, name, commit, sha in rows]  # fmt: skip
    how = (
        "SHA-256 of the weights file; of several, and of an adapter, over the SHA-256 of each, in "
        "hex and in order of name."
    )
    return "\n\n".join(["## The base that it needs", _belongs(made), "\n".join(table), how])


def _belongs(made: Made) -> str:
    base = made.base
    if base is None:
        return ""
    if made.part == "model":
        return "It needs no other weights. It was trained from:"
    if base.adapter is None:
        return (
            "It belongs on these weights and no others: on another version of them, or on the "
            "model that they were aligned from, nothing that is said below holds."
        )
    if made.part == "adapter-on-base":
        return (
            "It holds two adapters as one, the alignment's and the fine-tune's, so it belongs on "
            "the **bare** base. Do not put it on a model that has the alignment in it already."
        )
    return (
        "It holds the change alone. It belongs on the base **with the alignment's adapter "
        "merged in**: on the bare base, the alignment is missing."
    )


def _named(base: Base, options: CardOptions) -> str:
    name = options.base_id or name_for_records(base.path)
    return f"{name} ({base.file})" if base.file else name


def _load(made: Made, options: CardOptions) -> str:
    base, place = made.base, json.dumps(options.name or _place(made))
    trust = ", trust_remote_code=True" if _runs_code(made) else ""
    code = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if made.part == "model":
        code += ["", f"model = AutoModelForCausalLM.from_pretrained({place}{trust})"]
    else:
        code.insert(0, "from peft import PeftModel")
        start = _start(made, options) + trust
        code += ["", f"model = AutoModelForCausalLM.from_pretrained({start})"]
        if made.part == "adapter" and base is not None and base.adapter is not None:
            adapter = json.dumps(name_for_records(str(base.adapter.get("path"))))
            code += [f"model = PeftModel.from_pretrained(model, {adapter}).merge_and_unload()"]
        code.append(f"model = PeftModel.from_pretrained(model, {place})")
    code.append(f"tokenizer = AutoTokenizer.from_pretrained({place}{trust})")
    parts = ["## Load it", _fenced("\n".join(code), "python")]
    if trust:
        parts.append(
            "The run was allowed to run Python code that comes with the base, and "
            "`trust_remote_code=True` runs it on your machine: read it first. Other programs have "
            "to be told so too, as vLLM with `--trust-remote-code`."
        )
    if made.system_prompt is not None:
        parts += [
            "It was trained and measured with this system prompt before every conversation, and "
            "without it is another model:",
            _fenced(made.system_prompt, "text"),
        ]
    if made.part == "adapter-on-base":
        parts.append(
            "vLLM takes it as it is, with `--max-lora-rank` at its rank or above; for llama.cpp "
            "and Ollama, convert it with `convert_lora_to_gguf.py --base` and the base's folder."
        )
    return "\n\n".join(parts)


def _runs_code(made: Made) -> bool:
    """Whether the run was allowed to run Python code that comes with what it started from."""
    config = made.record.config
    start = "base" if (made.record.inputs.get("defence") or {}).get("base") else "model"
    section = config.get(start)
    return isinstance(section, dict) and section.get("trust_remote_code") is True


def _place(made: Made) -> str:
    """What its folder is called, beside the card of a run or of the result alone."""
    return made.run.resolve().name if made.folder == made.run else made.part


def _start(made: Made, options: CardOptions) -> str:
    """The arguments that load the base."""
    base = made.base
    if base is None:
        return '"the-base"'
    if options.base_id is not None or base.hub_id is not None:
        told = json.dumps(options.base_id or base.path)
        same = options.base_id in (None, base.path) and base.revision
        return f"{told}, revision={json.dumps(base.revision)}" if same else told
    if base.file is not None:
        return f'"folder", gguf_file={json.dumps(base.file)}'
    return json.dumps(name_for_records(base.path))


def _data(made: Made) -> str:
    sources = (made.record.inputs.get("data") or {}).get("sources") or []
    if not sources:
        return ""
    table = ["| data | rows | trained on | left out | SHA-256 |", "|---|---:|---:|---|---|"]
    for source in sources:
        out = dict(source.get("dropped") or {})
        if source.get("screened_out"):
            out["harmful by the screening"] = source["screened_out"]
        told = ", ".join(f"{count} {why}" for why, count in out.items()) or "0"
        name = name_for_records(str(source["path"]))
        table.append(
            f"| {_cell(name)} | {number(source['rows'])} | {number(source['used'])} "
            f"| {markdown_text(told)} | {_code(source.get('sha256'))} |"
        )
    return "\n\n".join(["## Training data", "\n".join(table), _screened(made.screen)])


def _screened(screen: Mapping[str, Any] | None) -> str:
    if screen is None:
        return "Nobody looked for harmful rows in it: the run had no `screen`."
    done = {
        "drop": f"{screen['dropped']} were left out of the training",
        "report": "none was left out for it",
        "stop": "the run was set to stop at more than it allows",
    }[screen["action"]]
    mark = " (indicative only)" if screen["indicative"] else ""
    return (
        f"Before training, the judge `{_plain(screen['judge'])}`{mark} looked at "
        f"{screen['judged']} rows: {screen['harmful']} look harmful, of {screen['unscored']} it "
        f"could not tell; {done}."
    )


def _method(made: Made) -> str:
    rows = [(key, value) for key, value in _settings(made) if value is not None]
    table = ["| setting | |", "|---|---|"]
    table += [f"| {markdown_text(key)} | {markdown_text(number(value))} |" for key, value in rows]
    return "\n\n".join([f"## Method: {markdown_text(made.method)}", "\n".join(table)])


def _settings(made: Made) -> Iterator[tuple[str, Any]]:
    record, config = made.record, made.record.config
    penalty = record.inputs.get("penalty") or {}
    for key in ("operator", "side", "scaled", "rank", "lam", "off_budget", "probe_target",
                "lam_inside", "layer_weights"):  # fmt: skip
        yield f"penalty: {key}", penalty.get(key)
    defences = [one for one in config.get("defence") or [] if isinstance(one, dict)]
    if isinstance(config.get("method"), dict):
        defences.append(config["method"])
    for one in defences:
        for key, value in one.items():
            if key != "name":
                yield f"{one.get('name')}: {key}", _flat(value)
    for section in ("lora", "training"):
        for key, value in (config.get(section) or {}).items():
            yield f"{section}: {key}", _flat(value)
    if "training" in config and config.get("lora") is None:
        yield "lora", "none: all weights were trained"
    steps = record.metrics.get("steps")
    yield "optimizer steps", steps
    yield "epochs", record.metrics.get("epochs")
    yield "seed", record.seed
    numbers = record.numbers
    yield "computed in", f"{numbers.get('compute_dtype')} on {numbers.get('device')}"
    yield "trained parameters", numbers.get("trained_parameters")


def _anchor(made: Made) -> str:
    parts = []
    for key, title in (("anchor", "## The anchor"), ("harmful_anchor", "## The harmful anchor")):
        facts = (made.record.inputs.get("defence") or {}).get(key) or made.record.inputs.get(key)
        if not facts:
            continue
        table = [
            "| | name | commit | SHA-256 of the tensors read | licence |",
            "|---|---|---|---|---|",
        ]
        for parent in ("aligned", "base"):
            it = facts.get(parent) or {}
            table.append(
                f"| {parent} | {_cell(it.get('id'))} | {_cell(it.get('revision'))} "
                f"| {_code(it.get('sha256'))} | {_cell(it.get('licence'))} |"
            )
        parts += [
            title,
            f"File SHA-256 {_code(facts.get('sha256'))}, {facts.get('modules')} modules: the "
            "low-rank factors of the difference between these two.",
            "\n".join(table),
            _held_against(facts.get("start")),
        ]
    return "\n\n".join(part for part in parts if part)


def _held_against(start: Any) -> str:
    if start in ("unverified", "named"):
        return "Whether the weights that were trained are its parent's was not verified by hash."
    if start == "other":
        return (
            "It was built from **other weights** than those that were trained; the user allowed it."
        )
    return ""


def _again(made: Made) -> str:
    record = made.record
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    command = {
        "project": f"anchortune project ADAPTER --method {made.method}",
        "extrapolate": "anchortune extrapolate --anchor ANCHOR --model MODEL",
    }.get(made.command, f"anchortune {made.command} config.yaml")
    settings = as_yaml(_without_paths(made.config))
    return "\n\n".join(
        [
            "## Made with",
            _fenced(_plain(command), "bash"),
            f"Seed {record.seed}; {markdown_text(versions)}.",
            f"<details><summary>The settings, every default filled in</summary>\n\n"
            f"{_fenced(settings, 'yaml')}\n\n</details>",
        ]
    )


def _without_paths(value: Any) -> Any:
    """Plain values in which absolute paths are names alone; an endpoint's address is left out."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if key != "url"}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return name_for_records(value) if isinstance(value, str) and Path(value).name else value


def _flat(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else value


def _cell(value: Any) -> str:
    return "not stated" if value is None else markdown_text(str(value))


def _code(value: Any) -> str:
    return "not recorded" if value is None else f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    """A text inside a code span: nothing in it ends the span, the cell or the line."""
    return " ".join(shown(str(value)).split()).replace("`", "'").replace("|", "/")


def _fenced(text: str, language: str) -> str:
    """A block of code that nothing in it can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{shown(text).rstrip()}\n{fence}"
