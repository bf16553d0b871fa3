"""``anchortune init``: what it writes is true and runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from anchortune.cli.app import app
from anchortune.config import TrainConfig
from anchortune.config_io import load_config
from anchortune.errors import AnchortuneError, ConfigError, PairError
from anchortune.jobs.config import JobConfig
from anchortune.jobs.plan import plan_job
from anchortune.setup.init import Wish, init
from anchortune.setup.model import look_at_model
from tests import tiny
from tests.setup.conftest import write

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
