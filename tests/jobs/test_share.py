"""The card of what a run made, and its way to the Hub; nothing leaves this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from typer.testing import CliRunner, Result

from anchortune.cli.app import app
from anchortune.cli.project import make_method
from anchortune.config_io import dump_yaml
from anchortune.errors import AnchortuneError, DataError, EvaluationError, JobError
from anchortune.jobs.origin import OpenAnchor
from anchortune.jobs.project import project
from anchortune.jobs.run import run_job
from anchortune.jobs.share import Stopped, plan_upload, push
from anchortune.report.card import CardOptions, card
from anchortune.report.card_source import read_made
from tests.hub_stand_in import Hub, serve
from tests.jobs.conftest import FAILS, Passed

BASE = CardOptions(base_id="org/base")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in that the Hub's client reaches."""
    from huggingface_hub import constants

    with serve() as running:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        yield running


def front(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_the_card_of_a_job_says_what_its_records_say(passed: Passed) -> None:
    made = read_made(passed.folder)
    assert (made.part, made.method, made.model, made.stopped) == (
        "adapter-on-base", "asft", "asft", False,
    )  # fmt: skip
    text, record = card(made), passed.first.record
    model = record.inputs["model"]
    shown = (
        model["sha256"],
        model["adapter"]["sha256"],
        record.inputs["data"]["sources"][0]["sha256"],
        record.inputs["anchor"]["sha256"],
        "The gate let it through: asft passes its one check",
        "belongs on the **bare** base",
        "| task.jsonl | 16 | 16 | 0 |",
        "Nobody looked for harmful rows",
        "refusal rate (refusal): bad",
        "n 6",
        "a refusal phrase is no judgement of harm",
        "Not measured: harmful score, over-refusal, jailbreaks",
        "| penalty: operator | subspace |",
        "anchortune run config.yaml",
        f"torch {record.versions['torch']}",
    )
    assert [part for part in shown if part not in text] == []
    assert str(passed.root) not in text  # nobody's paths
    assert "misdeed" not in text  # and no prompts


def test_what_the_hub_reads_of_a_card_is_what_was_measured(passed: Passed) -> None:
    text = card(read_made(passed.folder), CardOptions("org/mine", "org/base", "llama3.2"))
    found = ModelCard(text).data
    assert (found.library_name, found.base_model, found.license) == ("peft", "org/base", "llama3.2")
    results = {(r.metric_type, r.dataset_name): r.metric_value for r in found.eval_results or []}
    evaluated = read_made(passed.folder).results
    assert evaluated is not None
    accuracy = evaluated.measure("accuracy:own")
    assert accuracy is not None
    assert results["accuracy", "own"] == round(100 * accuracy.figures["asft"].value, 2)
    assert all(r.metric_type != "harmful_score" for r in found.eval_results or [])
    assert front(card(read_made(passed.folder), CardOptions(licence="ours")))["license"] == "other"


def test_a_base_that_is_nowhere_on_the_hub_is_named_by_its_hash_alone(passed: Passed) -> None:
    found = front(card(read_made(passed.folder)))
    assert "base_model" not in found
    assert "license" not in found


def test_the_job_lays_the_card_beside_what_it_releases(passed: Passed) -> None:
    for part in ("adapter", "adapter-on-base"):
        written = (passed.folder / part / "README.md").read_text(encoding="utf-8")
        assert written == card(read_made(passed.folder, part=part))  # type: ignore[arg-type]
        assert written == card(read_made(passed.folder / part))
    assert "with the alignment's adapter merged in" in " ".join(
        (passed.folder / "adapter" / "README.md").read_text(encoding="utf-8").split()
    )


def test_the_code_of_the_card_loads_what_it_says(
    passed: Passed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both results, each on its base, are one model."""
    import torch
    from transformers import AutoModelForCausalLM

    base, aligned = passed.make().model.path, passed.make().model.adapter
    outputs = []
    for part in ("adapter", "adapter-on-base"):
        text = card(read_made(passed.folder, part=part))  # type: ignore[arg-type]
        code = text.split("```python\n")[1].split("```")[0]
        code = code.replace(f'"{Path(base).name}")', f"{base!r}).float()")
        code = code.replace(f'"{Path(str(aligned)).name}"', repr(aligned))
        monkeypatch.chdir(passed.folder)
        names: dict[str, Any] = {}
        exec(code, names)
        with torch.no_grad():
            outputs.append(names["model"](torch.tensor([[1, 2, 3, 4]])).logits)
    bare = AutoModelForCausalLM.from_pretrained(base).float()
    with torch.no_grad():
        assert not torch.allclose(bare(torch.tensor([[1, 2, 3, 4]])).logits, outputs[0], atol=1e-3)
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)


def test_a_training_alone_says_that_nothing_was_measured(passed: Passed) -> None:
    run = passed.folder / "train" / "sft"
    text = card(read_made(run))
    assert "**Nothing was measured of it**" in text
    assert "without anything that keeps the alignment" in text
    assert "model-index" not in text
    measured = read_made(run, evaluation=passed.folder / "eval")
    assert measured.model == "sft"
    assert "**Nothing" not in card(measured)


def test_an_evaluation_of_other_weights_is_no_word_on_these(passed: Passed, tmp_path: Path) -> None:
    run = shutil.copytree(passed.folder / "train" / "sft", tmp_path / "other")
    for part in ("adapter", "adapter-on-base"):
        weights = run / part / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(EvaluationError, match="none of which has the weights"):
        read_made(run, evaluation=passed.folder / "eval")
    with pytest.raises(EvaluationError, match="leave --eval out"):
        read_made(passed.folder, evaluation=passed.folder / "eval")


def test_an_evaluation_on_another_base_is_no_word_on_these(passed: Passed) -> None:
    """The adapter alone is the same there, and what it makes of the base is not."""

    def move(record: dict[str, Any]) -> None:
        for facts in record["metrics"]["models"].values():
            facts["sha256"], facts["files"] = "0" * 64, {"model.safetensors": "0" * 64}

    _edit(passed.folder / "eval" / "record.json", move)
    with pytest.raises(EvaluationError, match="on another base than"):
        read_made(passed.folder / "train" / "sft", evaluation=passed.folder / "eval")


def test_what_was_mended_afterwards_has_a_card_too(passed: Passed, tmp_path: Path) -> None:
    run, anchor = passed.folder / "train" / "sft", passed.folder / "anchor.safetensors"
    mended = tmp_path / "mended"
    method = make_method("subspace", [])
    project(str(run / "adapter"), method, mended, anchor=OpenAnchor.at(str(anchor)))
    text = card(read_made(mended))
    assert "mended by safe-lora after its training" in text
    assert "with the alignment's adapter merged in" in " ".join(text.split())
    assert 'from_pretrained(model, "mended")' in text
    assert "| safe-lora: operator | subspace |" in text


@pytest.mark.parametrize(
    ("where", "part", "said"),
    [
        ("eval", None, "is an evaluation; name the run"),
        (".", "model", "holds no model, but adapter-on-base and adapter"),
        ("adapter", "model", "is one adapter"),
        ("steps", None, "no complete run"),
    ],
)
def test_what_is_no_run_is_refused(passed: Passed, where: str, part: Any, said: str) -> None:
    with pytest.raises(AnchortuneError, match=said):
        read_made(passed.folder / where, part=part)


def _edit(path: Path, change: Any) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change",
    [
        lambda job: job["outputs"].pop("release"),
        lambda job: job["outputs"].update(release=[]),
        lambda job: job["metrics"].update(gate=[1]),
        lambda job: job["metrics"].update(gate={"decision": "passed"}),
        lambda job: job["outputs"].update(steps={"screen": {"outputs": {"action": "report"}}}),
    ],
)
def test_a_record_of_something_else_is_told_in_a_sentence(passed: Passed, change: Any) -> None:
    _edit(passed.folder / "record.json", change)
    with pytest.raises(DataError, match="are not what a run writes"):
        card(read_made(passed.folder))


def test_a_result_that_leads_elsewhere_is_not_shared(passed: Passed, tmp_path: Path) -> None:
    """A run of somebody else's may point at files of whoever pushes it."""
    secret = tmp_path / "token"
    secret.write_text("hf_secret")
    (passed.folder / "adapter-on-base" / "vocab.json").symlink_to(secret)
    with pytest.raises(JobError, match=r"vocab\.json leads out of its folder"):
        plan_upload(read_made(passed.folder), "org/mine", BASE)
    other = shutil.copytree(passed.folder / "adapter", tmp_path / "else" / "adapter")
    shutil.rmtree(passed.folder / "adapter-on-base")
    _edit(
        passed.folder / "record.json",
        lambda job: job["outputs"]["release"].update(path=str(other)),
    )
    with pytest.raises(JobError, match="leads out of"):
        read_made(passed.folder)


def test_names_of_strangers_are_no_markup(passed: Passed) -> None:
    """A source, a model and a judge whose names would end a cell, a span, a block or the YAML."""
    evil = "x`|<script>\n---\n# owned\n```\n\x1b[31m"
    for path in (passed.folder, passed.folder / "adapter-on-base"):
        record = json.loads((path / "record.json").read_text())
        record["inputs"]["data"]["sources"][0]["path"] = evil
        record["inputs"]["model"]["path"] = evil
        record["config"]["output"] = evil
        (path / "record.json").write_text(json.dumps(record))
    text = card(read_made(passed.folder), CardOptions(name="org/name", licence=evil))
    assert "\x1b" not in text
    assert front(text)["license"] == "other"
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text.split("\n---\n", 1)[1])
    every = [token for one in tokens for token in (one, *(one.children or []))]
    html = "".join(token.content for token in every if token.type.startswith("html"))
    assert "script" not in html
    assert html.count("<") == 4  # details and summary
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert headings[0] == "org/name"
    assert not any("owned" in heading for heading in headings)


def test_a_push_is_files_card_and_the_bases_name(passed: Passed, hub: Hub) -> None:
    upload = plan_upload(read_made(passed.folder), "org/mine", BASE)
    url = push(upload, token="hf_test", endpoint=hub.endpoint)
    assert url.startswith(f"{hub.endpoint}/org/mine/commit/")
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    assert "Bearer hf_test" in hub.tokens
    _, files = hub.find("org/mine", "main") or ("", {})
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} < set(files)
    assert not {"record.json", "release.json"} & set(files)
    weights = passed.folder / "adapter-on-base" / "adapter_model.safetensors"
    assert files["adapter_model.safetensors"] == weights.read_bytes()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    text = files["README.md"].decode()
    assert front(text)["base_model"] == "org/base"
    assert 'from_pretrained(model, "org/mine")' in text
    assert not any(str(passed.root).encode() in data for data in files.values())


def test_a_push_that_the_hub_refuses_is_one_sentence(passed: Passed, hub: Hub) -> None:
    upload = plan_upload(read_made(passed.folder), "org/mine", BASE)
    hub.refuse_commits = True
    with pytest.raises(JobError, match="org/mine could not be pushed to the Hub"):
        push(upload, endpoint=hub.endpoint)


@pytest.mark.parametrize(
    ("part", "repo", "options", "said"),
    [
        (None, "mine", BASE, "is no repository of the Hub"),
        (None, "org/mine", CardOptions(), "nobody else could load it; give --base-id"),
        (None, "org/mine", CardOptions(base_id="/x/y"), "is no model of the Hub"),
        ("adapter", "org/mine", BASE, "push adapter-on-base, which holds both"),
    ],
)
def test_what_nobody_could_load_is_not_pushed(
    passed: Passed, part: Any, repo: str, options: CardOptions, said: str
) -> None:
    with pytest.raises(JobError, match=said):
        plan_upload(read_made(passed.folder, part=part), repo, options)


def test_what_the_gate_stopped_is_shared_only_with_a_card_that_says_so(passed: Passed) -> None:
    run_job(passed.make(limits=FAILS))
    made = read_made(passed.folder)
    assert made.folder == passed.folder / "rejected" / "adapter-on-base"
    with pytest.raises(Stopped, match="was not let through by the gate") as stopped:
        plan_upload(made, "org/mine", BASE)
    assert stopped.value.exit_code == 3
    upload = plan_upload(made, "org/mine", BASE, allow_stopped=True)
    text = upload.files["README.md"]
    assert isinstance(text, bytes)
    assert b"**The gate did not let it through.**" in text
    assert "**The gate did not" in (made.folder / "README.md").read_text(encoding="utf-8")


def test_a_copy_of_what_the_gate_stopped_is_stopped_too(passed: Passed, tmp_path: Path) -> None:
    """Neither a copy nor an evaluation that is named for it leads round the gate."""
    run_job(passed.make(limits=FAILS))
    rejected = passed.folder / "rejected" / "adapter-on-base"
    copy = shutil.copytree(rejected, tmp_path / "copy" / "adapter-on-base")
    trained = passed.folder / "train" / "asft"
    for made in (
        read_made(copy),
        read_made(rejected, evaluation=passed.folder / "eval"),
        read_made(trained),
        read_made(trained / "adapter"),
    ):
        with pytest.raises(Stopped, match="was not let through by the gate"):
            plan_upload(made, "org/mine", BASE)
        assert "**The gate did not let it through.**" in card(made)
    assert "No evaluation lies beside it" in card(read_made(copy))
    run_job(passed.make())  # which is let through: the stopped one is no word on it, nor it on that
    assert read_made(passed.folder).folder == passed.folder / "adapter-on-base"
    shutil.copytree(copy, rejected, dirs_exist_ok=True)
    assert read_made(rejected).folder == rejected
    assert read_made(rejected).stopped


def test_what_is_no_part_of_a_model_stays_here(passed: Passed) -> None:
    folder = passed.folder / "adapter-on-base"
    for name in ("merges.txt", "customers.txt"):
        (folder / name).write_text("a b", encoding="utf-8")
    files = plan_upload(read_made(passed.folder), "org/mine", BASE).files
    assert "merges.txt" in files
    assert "customers.txt" not in files
    (folder / "adapter_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="are not what a run writes"):
        plan_upload(read_made(passed.folder), "org/mine", BASE)


def test_the_card_names_no_address_of_a_server(passed: Passed) -> None:
    server = {"url": "http://judge.internal:8000/v1", "model": "judge-1"}
    _edit(
        passed.folder / "record.json",
        lambda job: job["config"]["evaluate"]["judges"].append(
            {"name": "rubric", "server": server}
        ),
    )
    text = card(read_made(passed.folder))
    assert "judge-1" in text
    assert "judge.internal" not in text


def test_a_licence_is_called_as_the_hub_calls_it_and_is_the_trained_models(passed: Passed) -> None:
    record = passed.folder / "adapter-on-base" / "record.json"

    def licensed(start: str) -> Any:
        def change(made: dict[str, Any]) -> None:
            made["inputs"]["anchor"]["start"] = start
            made["inputs"]["anchor"]["aligned"]["licence"] = "Apache-2.0"

        return change

    _edit(record, licensed("aligned"))
    assert front(card(read_made(passed.folder)))["license"] == "apache-2.0"
    _edit(record, licensed("other"))
    assert "license" not in front(card(read_made(passed.folder)))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_the_command_prints_or_writes_the_card(passed: Passed, tmp_path: Path) -> None:
    text, file = card(read_made(passed.folder)), tmp_path / "CARD.md"
    assert invoke("card", passed.folder).stdout == text + "\n"
    assert invoke("card", passed.folder, "-o", file).stdout == f"{file}\n"
    assert file.read_text(encoding="utf-8") == text
    assert "there already" in str(invoke("card", passed.folder, "-o", file).exception)
    told = json.loads(invoke("card", passed.folder, "-o", file, "--force", "--json").stdout)
    assert (told["decision"], told["card"]) == ("passed", text)
    assert told["front_matter"] == front(text)


def test_a_dry_push_sends_nothing(passed: Passed, hub: Hub) -> None:
    arguments = ("push", passed.folder, "org/mine", "--base-id", "org/base")
    shown = invoke(*arguments, "--dry-run")
    assert "nothing was sent" in shown.stdout
    assert hub.requests == []
    told = json.loads(invoke(*arguments, "--json").stdout)
    assert told["commit"].startswith(hub.endpoint)
    assert (told["private"], told["base_model"]) == (True, "org/base")


def test_a_job_pushes_by_flag_what_its_gate_let_through(
    passed: Passed, hub: Hub, tmp_path: Path
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(dump_yaml(passed.make()))
    refused = invoke("run", job, "--push-to", "org/mine")
    assert "give --base-id" in str(refused.exception)
    lone = invoke("run", job, "--base-id", "org/base")
    assert "--base-id is for --push-to" in str(lone.exception)
    flags = ("--push-to", "org/mine", "--base-id", "org/base")
    shown = invoke("run", job, *flags)
    assert f"pushed  {hub.endpoint}/org/mine/commit/" in shown.stdout
    sent = len(hub.requests)
    stopped = invoke("run", job, *flags, "--set", "limits.min_accuracy=0.9", "--json")
    assert stopped.exit_code == 3
    assert json.loads(stopped.stdout)["pushed"] is None
    assert len(hub.requests) == sent
