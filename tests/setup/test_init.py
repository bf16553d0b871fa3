"""``anchortune init``: what it sees, what it writes, and that what it writes is true and runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from anchortune.cli.app import app
from anchortune.config import DataSection, TrainConfig
from anchortune.config_io import load_config
from anchortune.data.conversations import load_source
from anchortune.errors import AnchortuneError, ConfigError, DataError, PairError
from anchortune.jobs.config import JobConfig
from anchortune.jobs.plan import plan_job
from anchortune.maths.stats import tango
from anchortune.models.load import load_tokenizer
from anchortune.setup.init import Wish, init
from anchortune.setup.measured import find_sets, find_task, least_prompts
from anchortune.setup.model import look_at_model, narrowest
from anchortune.setup.page import Page, plain, scalar
from anchortune.setup.rows import look_at_data
from anchortune.training.template import Template
from tests import tiny

Rows = list[dict[str, Any]]
TURNS = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "ok"}]
SHARED = [{"from": "human", "value": "say"}, {"from": "gpt", "value": "ok"}]
#: Rows, the format that is found, and the columns that the config has to name.
LAYOUTS: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    "instruction": ({"instruction": "say", "input": "loud", "output": "ok"}, "instruction", {}),
    "target": (
        {"instruction": "say", "input": "x", "target": "ok"},
        "instruction",
        {"output": "target"},
    ),
    "prompt": ({"prompt": "say", "completion": "ok"}, "prompt_completion", {}),
    "gsm8k": ({"question": "1 + 1?", "answer": "2"}, "prompt_completion", {}),
    "system": (
        {"system": "be brief", "prompt": "say", "response": "ok"},
        "prompt_completion",
        {},
    ),
    "messages": ({"messages": TURNS}, "messages", {}),
    "sharegpt": ({"conversations": SHARED, "id": 3}, "messages", {}),
    "dialogue": ({"dialogue": TURNS}, "messages", {"messages": "dialogue"}),
    "trl": ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt_completion", {}),
    "sentence": (
        {"idx": 1, "sentence": "say", "label": "ok"},
        "prompt_completion",
        {"prompt": "sentence", "completion": "label"},
    ),
    "unknown": (
        {"Frage": "say", "Antwort": "ok", "n": 1},
        "prompt_completion",
        {"prompt": "Frage", "completion": "Antwort"},
    ),
    "half known": (
        {"Frage": "say", "answer": "ok"},
        "prompt_completion",
        {"prompt": "Frage", "completion": "answer"},
    ),
}


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def template(llama_base: Path) -> Template:
    from anchortune.config import ModelSection

    return Template(load_tokenizer(ModelSection(path=str(llama_base))))


Make = Callable[..., Wish]


@pytest.fixture
def wish(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    llama_base: Path,
    llama_adapter: Path,
) -> Make:
    """Makes what is asked for; the files lie in the working folder."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"say {i}", "completion": f"ok {i}"} for i in range(20)]
    write(tmp_path / "task.jsonl", rows)
    write(tmp_path / "bad.jsonl", [{"prompt": f"misdeed {i}"} for i in range(80)])

    def make(**given: Any) -> Wish:
        known: dict[str, Any] = {
            "model": str(llama_adapter),
            "base": str(llama_base),
            "data": "task.jsonl",
            "harm": ["bad.jsonl"],
            "out": Path("job.yaml"),
        }
        return Wish(**(known | given))

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_rows_is_read_as_a_run_reads_it(
    tmp_path: Path, template: Template, layout: str
) -> None:
    row, kind, columns = LAYOUTS[layout]
    path = write(tmp_path / "d.jsonl", [row] * 4)
    found = look_at_data(path, {}, template)
    assert found.report.format == kind
    assert found.section == DataSection(path=path, columns=columns)
    assert found.guessed == bool(columns)
    conversations, _ = load_source(found.section, seed=1)
    assert [turn["role"] for turn in conversations[0].messages][-2:] == ["user", "assistant"]  # type: ignore[union-attr]
    assert found.lengths == [len(template.encode(conversations[0].messages, 999)[0].input_ids)] * 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "anchortune align with method: dpo"),
        ({"sentence": "a", "label": 1}, "'label' holds a number in each row"),
        ({"a": "x", "b": "y", "c": "z"}, "--column prompt=NAME --column completion=NAME"),
        ({"prompt": "a"}, "--column prompt=NAME"),
        ({"prompt": "a", "completion": " "}, "4 of 4 rows cannot be used"),
    ],
)
def test_rows_that_mean_nothing_are_refused_with_the_mend(
    tmp_path: Path, template: Template, row: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "d.jsonl", [row] * 4)
    with pytest.raises(DataError) as caught:
        look_at_data(path, {}, template)
    assert said in str(caught.value)
    assert str(caught.value).startswith(path)


def test_every_kind_of_file_is_read(tmp_path: Path, template: Template) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"question": f"q {i}", "answer": f"a {i}"} for i in range(3)]
    lines = ["question,answer", *(f"{row['question']},{row['answer']}" for row in rows)]
    (tmp_path / "d.csv").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    (tmp_path / "d.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    write(tmp_path / "d.jsonl", rows)
    found = [look_at_data(str(tmp_path / f"d.{kind}"), {}, template).lengths
             for kind in ("csv", "json", "parquet", "jsonl")]  # fmt: skip
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize(
    ("make", "targets", "narrow"),
    [(tiny.tiny_phi3, ["qkv_proj"], 64), (tiny.tiny_gpt2, ["c_attn"], 96)],
)
def test_the_attention_is_found_by_what_the_architecture_calls_it(
    tmp_path: Path, make: Callable[..., Path], targets: list[str], narrow: int
) -> None:
    found = look_at_model(str(make(tmp_path / "m", tokenizer=True)))
    assert (found.targets, narrowest(found), found.base) == (targets, narrow, None)
    assert set(targets) < set(found.linear)


def test_a_model_that_speaks_no_chat_is_given_the_plain_template(tmp_path: Path) -> None:
    folder = tiny.tiny_llama(tmp_path / "m")
    tiny.tiny_tokenizer(folder, chat_template=None)
    assert "no chat template, so plain (### Instruction" in look_at_model(str(folder)).chat_line()


def test_columns_that_the_user_names_go_before_the_guess(
    tmp_path: Path, template: Template
) -> None:
    path = write(tmp_path / "d.jsonl", [{"a": "x", "b": "y", "c": "z"}] * 4)
    found = look_at_data(path, {"prompt": "c", "completion": "a"}, template)
    assert (found.guessed, found.report.columns) == (False, {"prompt": "c", "completion": "a"})


def test_of_many_rows_a_sample_is_counted_and_said(
    tmp_path: Path, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchortune.setup import rows

    monkeypatch.setattr(rows, "COUNTED_ROWS", 5)
    path = write(tmp_path / "d.jsonl", [{"prompt": "a" * i, "answer": "b"} for i in range(1, 21)])
    found = look_at_data(path, {}, template)
    assert (found.rows, found.counted, found.all_counted, found.sequences) == (20, 5, False, 20)


def test_what_is_written_is_true_and_a_dry_run_passes(
    wish: Make, tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    rows = [{"prompt": "say " + "x" * i, "completion": "no" if i % 2 else "yes"} for i in range(42)]
    write(tmp_path / "task.jsonl", [*rows, {"prompt": "empty", "completion": ""}])
    write(tmp_path / "test.jsonl", rows[:30])
    write(tmp_path / "good.jsonl", [{"prompt": f"nice {i}"} for i in range(40)])
    written = init(wish(test=["test.jsonl"], benign=["good.jsonl"]))
    text = Path("job.yaml").read_text()
    assert text == written.text
    config = load_config("job.yaml", JobConfig)
    assert (config.model.path, config.model.adapter) == (str(llama_base), str(llama_adapter))
    assert config.output == "runs/job"
    steps = {part.name: part for part in plan_job(config).parts}
    train = steps["train-asft"].facts
    data = train["inputs"]["data"]
    assert f"{data['sequences']} sequences in batches of 8: {train['steps']} steps" in text
    assert data["truncated"] == 0
    assert data["max_length_tokens"] == config.training.max_length_tokens
    assert f"here: {train['dtype']}" in text
    assert f"difference in {steps['anchor'].facts['modules']} layers" in text
    longest = f"the longest row has {written.seen.data.longest} tokens, so none is cut"
    for told in (
        longest, "42 of 43 rows can be used", "Left out: 1 x empty completion",
        "a chat template of its own; reads 512 tokens", "the model's other linear layers: k_proj,",
        "80 harmful prompts, in the column prompt", "40 harmless prompts",
        "30 items; 2 classes: no, yes", "80 prompts can show it",
        "30 items are too few to show it, so the gate will answer 4: 73 are the least",
    ):  # fmt: skip
        assert told in text.replace("\n  # ", " ")
    assert [task.match for task in config.evaluate.tasks] == ["choice"]
    assert [one.benign for one in config.evaluate.harm] == [False, True]
    limits = config.limits
    assert limits is not None
    assert set(limits.given()) == {
        *("max_harm_increase", "max_accuracy_drop", "max_over_refusal_increase"),
    }
    assert not (tmp_path / "runs").exists()
    assert any("30 items of a task are too few" in note for note in written.notes)


def test_a_full_model_needs_its_base_which_a_card_may_name(
    wish: Make, tmp_path: Path, llama_base: Path, llama_aligned: Path
) -> None:
    full = {"model": str(llama_aligned), "base": None}
    with pytest.raises(ConfigError, match="name that model with --base"):
        init(wish(**full))
    with pytest.raises(PairError, match=r"have the same weights in .*q_proj"):
        init(wish(model=str(llama_aligned), base=str(llama_aligned)))
    copy = shutil.copytree(llama_aligned, tmp_path / "aligned")
    (copy / "README.md").write_text(f"---\nbase_model: {llama_base}\n---\n# A model\n")
    written = init(wish(**full | {"model": "aligned"}))
    config = load_config("job.yaml", JobConfig)
    assert config.base is not None
    assert (config.model.path, config.base.path) == ("aligned", str(llama_base))
    assert "as its model card says: make sure of it" in written.text
    # Half of what the narrowest layer has: with all 16 nothing would be off the anchor.
    assert config.penalty.rank == 8


def test_a_base_that_is_a_gguf_file(wish: Make, tmp_path: Path) -> None:
    aligned = tiny.tiny_llama(tmp_path / "a", 1, intermediate_size=64, tokenizer=True)
    other = tiny.tiny_llama(tmp_path / "b", 2, intermediate_size=64)
    tiny.tiny_gguf(tmp_path / "b.gguf", other)
    written = init(wish(model=str(aligned), base="b.gguf"))
    assert written.seen.modules == 4
    with pytest.raises(AnchortuneError, match=r"b\.gguf: cannot be loaded .*tokenizer"):
        look_at_model("b.gguf")  # as a model it needs a tokenizer


def test_a_config_that_only_trains(wish: Make, llama_base: Path, llama_aligned: Path) -> None:
    from anchortune import Anchor

    pair = {"model": str(llama_aligned), "base": str(llama_base), "train": True, "harm": []}
    with pytest.raises(ConfigError, match=r"anchor build .*--target-modules q_proj,v_proj -o"):
        init(wish(**pair))
    Anchor.from_checkpoints(llama_aligned, llama_base, target_modules=["v_proj", "up_proj"]).save(
        "a.safetensors"
    )
    asked = wish(**pair | {"base": None, "anchor": "a.safetensors", "out": Path("train.yaml")})
    written = init(asked)
    config = load_config("train.yaml", TrainConfig)
    assert config.penalty is not None
    assert config.lora is not None
    assert (config.penalty.anchor, config.lora.target_modules) == ("a.safetensors", ["v_proj"])
    assert written.seen.next == "anchortune train train.yaml --dry-run"
    with pytest.raises(ConfigError, match="--harm is for an evaluation"):
        init(wish(**pair | {"harm": ["bad.jsonl"]}))


def test_nothing_is_written_over_and_nothing_that_would_not_run(wish: Make) -> None:
    Path("job.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"job\.yaml is there; .*--force"):
        init(wish())
    Path("job.yaml").unlink()
    for given, said in (
        ({"harm": []}, "give --harm FILE"),
        ({"model": "org/none"}, "the Hub cannot be reached"),
        ({"base": "org/none"}, "the Hub cannot be reached"),
        ({"data": "org/none"}, "that can be reached"),
        ({"data": "gone.jsonl"}, "no such file"),
        ({"harm": ["advbnch"]}, "did you mean advbench"),
        ({"harm": ["gone.jsonl"]}, "no such file"),
        ({"test": ["alpaca"]}, "a model behind a server"),
        ({"base": None, "model": "bad.jsonl"}, "give the folder it is in"),
        ({"anchor": "a.safetensors"}, "drop it"),
    ):
        with pytest.raises(AnchortuneError) as caught:
            init(wish(**given))
        assert said in str(caught.value)
        assert not Path("job.yaml").exists()


def test_an_adapter_whose_base_is_gone_says_how_to_name_it(
    wish: Make, tmp_path: Path, llama_adapter: Path
) -> None:
    copy = shutil.copytree(llama_adapter, tmp_path / "adapter")
    config = json.loads((copy / "adapter_config.json").read_text())
    for base, said in (("gone/there/base", "say with --base where"), (None, "names no base")):
        config["base_model_name_or_path"] = base
        (copy / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(AnchortuneError, match=said):
            init(wish(model="adapter", base=None))


def test_without_a_judge_of_harm_no_limit_is_set_on_it(
    wish: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchortune.checkpoints import packaged
    from anchortune.errors import CheckpointError

    def gone(name: str) -> str:
        if name.startswith("package:"):
            raise CheckpointError(f"{name}: the package is not installed")
        return name

    monkeypatch.setattr(packaged, "resolve", gone)
    written = init(wish())
    config = load_config("job.yaml", JobConfig)
    assert [judge.name for judge in config.evaluate.judges] == ["refusal"]
    assert (config.screen, config.limits) == (None, None)
    assert any("no judge of harm is here" in note for note in written.notes)


@pytest.mark.parametrize(
    ("answers", "match"),
    [
        (["yes", "no"] * 10, "choice"),
        (["3", "1,200", "#### 7"] * 5, "number"),
        ([f"word{'n' * i}" for i in range(12)], "exact"),
        (["a " * 40] * 4, None),
    ],
)
def test_how_answers_are_matched_is_told_by_the_right_ones(
    tmp_path: Path, template: Template, answers: list[str], match: str | None
) -> None:
    rows = [{"instruction": f"q {i}", "input": "", "output": a} for i, a in enumerate(answers)]
    task, why = find_task(write(tmp_path / "t.jsonl", rows), {}, template.tokenizer)
    assert (task.tree["match"] if task else None) == match
    assert bool(why) == (match is None)


def test_the_one_column_of_texts_is_that_of_the_prompts(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", [{"n": i, "request": f"misdeed {i}"} for i in range(4)])
    good = write(tmp_path / "good.jsonl", [{"prompt": f"nice {i}", "x": "y"} for i in range(3)])
    [harm], [benign], notes = find_sets([bad], [good])
    assert harm.tree == {"path": bad, "column": "request"}
    assert benign.tree == {"path": good, "benign": True}
    assert (harm.prompts, benign.prompts, notes) == (4, 3, [])
    two = write(tmp_path / "two.jsonl", [{"a": "x", "b": "y"}])
    with pytest.raises(AnchortuneError, match="name theirs in column"):
        find_sets([two], [])


@pytest.mark.parametrize("limit", [0.03, 0.05, 0.1])
def test_the_fewest_prompts_are_those_of_the_gates_interval(limit: float) -> None:
    least = least_prompts(limit)
    assert tango(0, 0, least)[1] <= limit < tango(0, 0, least - 1)[1]


@pytest.mark.parametrize(
    "value",
    ["1e5", "yes", "a: b # c", "é\n\u202e", "", "~", "0x1", "- a", [1e-3, "no"], {"on": "5e-5"}],
)
def test_what_is_written_is_read_back(value: Any) -> None:
    from anchortune.config_io import parse_yaml

    page = Page()
    page.put("key", value, "a comment\n#: \u202e" + "x" * 200)
    assert parse_yaml(page.text(), "p") == {"key": value}
    assert parse_yaml(f"[{scalar(value)}]", "p") == [value]
    assert "\u202e" not in plain("\u202e")


def test_the_command(wish: Make, tmp_path: Path, llama_base: Path, llama_adapter: Path) -> None:
    wish()

    def run(*words: str) -> Result:
        start = ("init", "--model", str(llama_adapter), "--data", "task.jsonl")
        return CliRunner().invoke(app, [*start, "--base", str(llama_base), *words])

    shown = run("--harm", "bad.jsonl", "--judge", "refusal", "-o", "my job.yaml")
    assert shown.exit_code == 0, shown.output
    assert "4 layers to anchor" in shown.stdout
    assert shown.stdout.rstrip().endswith("next: anchortune run 'my job.yaml' --dry-run")
    told = json.loads(run("--harm", "bad.jsonl", "--judge", "refusal", "--json").stdout)
    assert told["model"]["target_modules"] == ["q_proj", "v_proj"]
    assert told["data"]["longest_tokens"] > 0
    assert isinstance(run("--column", "prompt").exception, ConfigError)


def test_the_page_explains_every_option() -> None:
    import typer

    page = (Path(__file__).parents[2] / "docs" / "first-minutes.md").read_text("utf-8")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name in ("init", "doctor"):
        flags = {flag for p in commands[name].params for flag in p.opts if flag.startswith("--")}
        assert not [flag for flag in flags if flag not in page]
