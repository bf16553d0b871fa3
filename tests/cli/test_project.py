"""``anchortune project`` and ``extrapolate``: adapters that PEFT loads, and mistakes told early."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from anchortune import progress
from anchortune.adapter.merge import merge_adapter
from anchortune.adapter.update import read_update
from anchortune.anchor.anchor import Anchor
from anchortune.anchor.format import HARMFUL_VERSION, HarmfulOrigin
from anchortune.cli.app import main
from anchortune.cli.project import make_method
from anchortune.defences.base import Anchors
from anchortune.files import sha256_file
from anchortune.maths.lowrank import LowRank
from anchortune.record import read_record
from tests import tiny


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The command line, in this process."""

    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["anchortune", *map(str, arguments)])
        logging.getLogger("anchortune").handlers.clear()
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return Result(int(ended.value.code or 0), told.out, told.err)

    yield call
    logging.getLogger("anchortune").handlers.clear()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def anchor(place: Path, llama_aligned: Path, llama_base: Path) -> Path:
    path = place / "anchor.safetensors"
    Anchor.from_checkpoints(llama_aligned, llama_base, rank=8).save(path)
    return path


@pytest.fixture(scope="module")
def harmful(place: Path, llama_aligned: Path) -> Path:
    """Of a model tuned on harm, as ``anchor harmful`` marks it."""
    tuned = tiny.tiny_llama(place / "harmful", seed=9)
    made = Anchor.from_checkpoints(tuned, llama_aligned, rank=8)
    told = HarmfulOrigin(
        method="tune", data="pairs", data_sha256="0" * 64, pairs=1, rows=1, seed=0, settings={}
    )
    metadata = made.metadata.model_copy(update={"harmful": told, "format_version": HARMFUL_VERSION})
    path = place / "harmful.safetensors"
    Anchor(made.modules, metadata).save(path)
    return path


@pytest.fixture(scope="module")
def adapter(place: Path, llama_aligned: Path) -> Path:
    """Made elsewhere by PEFT: no record; a tokenizer beside it."""
    folder = tiny.tiny_adapter(place / "adapter", llama_aligned, seed=4)
    tiny.tiny_tokenizer(folder)
    (folder / "training_args.bin").write_bytes(b"pickle")
    return folder


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in model.state_dict().items()}


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def dense(part: LowRank) -> torch.Tensor:
    return part.left.double() @ part.right.double()


METHODS = [
    ("safe-lora", ["modules=2"]),
    ("safe-lora", ["threshold=0.9", "operator=subspace"]),
    ("subspace", ["rank=4"]),
    ("csulora", ["strength=10"]),
    ("resta", ["gamma=0.25"]),
    ("resta", ["vector=harmful", "rank=2"]),
]


@pytest.mark.parametrize(("method", "settings"), METHODS, ids=str)
def test_a_mended_adapter_is_a_standard_one(
    run: Run, tmp_path: Path, adapter: Path, anchor: Path, harmful: Path, llama_aligned: Path,
    method: Any, settings: list[str],
) -> None:  # fmt: skip
    out = tmp_path / "mended"
    against = "harmful" if "vector=harmful" in settings else "aligned"
    given = ("--harmful-anchor", harmful) if against == "harmful" else ("--anchor", anchor)
    sets = [word for setting in settings for word in ("--set", setting)]
    result = run("project", adapter, "--method", method, *given, "-o", out, *sets)
    assert result.code == 0, result.err
    assert "warning" not in result.err
    assert "modules changed" in result.out
    assert "one-sided" in result.out

    update, _ = read_update(adapter)
    chosen = make_method(method, settings)
    loaded = {against: Anchor.load(harmful if against == "harmful" else anchor)}
    wanted = chosen.after(update, Anchors(**loaded))
    before = weights(load(llama_aligned))
    after = weights(PeftModel.from_pretrained(load(llama_aligned), str(out)).merge_and_unload())
    for name, value in before.items():
        module = name.removesuffix(".weight")
        edited = value + dense(wanted[module]) if module in wanted else value
        torch.testing.assert_close(after[name], edited, rtol=1e-5, atol=1e-5)

    record = read_record(out)
    key = "harmful_anchor" if against == "harmful" else "anchor"
    assert record.kind == "project"
    assert record.inputs["adapter"]["sha256"] == sha256_file(adapter / "adapter_model.safetensors")
    assert record.inputs[key]["sha256"] == loaded[against].sha256
    assert record.inputs[key]["start"] == ("base" if against == "harmful" else "aligned")
    assert record.outputs["sha256"] == {
        "adapter_model.safetensors": sha256_file(out / "adapter_model.safetensors")
    }
    assert record.config["method"]["name"] == chosen.label
    assert str(out.parent) not in (out / "record.json").read_text()
    for part in ("before", "after"):
        energy = sum(record.metrics[f"energy_{part}"].values())
        assert energy == pytest.approx(record.metrics[f"norm_{part}"] ** 2, rel=1e-4)
    assert (out / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()
    assert not (out / "training_args.bin").exists()


def test_the_result_lies_beside_the_adapter_and_json_is_the_record(
    run: Run, tmp_path: Path, llama_aligned: Path, anchor: Path
) -> None:
    made = tiny.tiny_adapter(tmp_path / "run" / "adapter", llama_aligned)
    result = run("project", made, "--method", "csulora", "--anchor", anchor, "--json")
    out = tmp_path / "run" / "adapter-csulora"
    assert json.loads(result.out) == json.loads((out / "record.json").read_text())
    again = run("project", made, "--method", "csulora", "--anchor", anchor)
    assert again.code == 2
    assert f"{out} is there already and is not written over; name another with -o" in again.err


def test_a_long_mend_tells_how_far_it_is(
    run: Run, tmp_path: Path, adapter: Path, anchor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("project", adapter, "--method", "subspace", "--anchor", anchor, "-o")
    assert "modules:" not in run(*words, tmp_path / "quick").err
    clock = count(step=20)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    told = run(*words, tmp_path / "slow").err
    for label in ("comparing", "projecting", "measuring"):
        assert f"{label} modules: 1 of 4, about" in told


def test_one_method_after_another(run: Run, tmp_path: Path, adapter: Path, anchor: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    assert run("project", adapter, "--method", "csulora", "--anchor", anchor, "-o", first).code == 0
    assert run("project", first, "--method", "resta", "--anchor", anchor, "-o", second).code == 0
    update, loaded = read_update(adapter)[0], Anchors(aligned=Anchor.load(anchor))
    wanted = make_method("resta", []).after(
        make_method("csulora", []).after(update, loaded), loaded
    )
    for name, part in read_update(second)[0].items():
        torch.testing.assert_close(dense(part), dense(wanted[name]), rtol=1e-4, atol=1e-5)


def test_the_anchor_of_another_model_is_refused(
    run: Run, tmp_path: Path, anchor: Path, llama_base: Path
) -> None:
    other = tiny.tiny_llama(tmp_path / "other", seed=77)
    for model, said in ((other, "holds other weights"), (llama_base, "is the base that")):
        made = tiny.tiny_adapter(tmp_path / f"on-{model.name}", model)
        out = tmp_path / f"out-{model.name}"
        arguments = ("project", made, "--method", "csulora", "--anchor", anchor, "-o", out)
        refused = run(*arguments)
        assert refused.code == 2
        assert said in refused.err
        assert "--allow-other-start" in refused.err
        assert not out.exists()
        allowed = run(*arguments, "--allow-other-start")
        assert allowed.code == 0
        assert "was built from other weights than" in allowed.err
        assert read_record(out).inputs["anchor"]["start"] == "other"


def test_a_model_that_cannot_be_compared_is_told(
    run: Run, tmp_path: Path, adapter: Path, anchor: Path
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name, base, warned in (("unnamed", None, True), ("named", "llama-aligned", False)):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            (folder / file).write_bytes((adapter / file).read_bytes())
        (folder / "adapter_config.json").write_text(
            json.dumps(config | {"base_model_name_or_path": base})
        )
        result = run("project", folder, "--method", "subspace", "--anchor", anchor)
        assert result.code == 0, result.err
        assert ("could not be compared" in result.err) == warned


def test_a_run_tells_what_its_adapter_was_trained_on(
    run: Run, tmp_path: Path, adapter: Path, anchor: Path, llama_base: Path
) -> None:
    """A record is believed where it is of these weights, and goes before PEFT's own config."""
    first = tmp_path / "first"
    assert run("project", adapter, "--method", "csulora", "--anchor", anchor, "-o", first).code == 0
    told = json.loads((first / "record.json").read_text())
    told["config"]["model"]["path"] = str(llama_base)
    (first / "record.json").write_text(json.dumps(told))
    arguments = ("project", first, "--method", "resta", "--anchor", anchor)
    assert "is the base that" in run(*arguments, "-o", tmp_path / "second").err
    told["outputs"]["sha256"] = {"adapter_model.safetensors": "of others"}
    (first / "record.json").write_text(json.dumps(told))
    assert run(*arguments, "-o", tmp_path / "third").code == 0
    told["outputs"]["on_base"] = {
        "sha256": {"adapter_model.safetensors": sha256_file(first / "adapter_model.safetensors")}
    }
    (first / "record.json").write_text(json.dumps(told))
    refused = run(*arguments, "-o", tmp_path / "fourth")
    assert "holds the alignment and the fine-tune as one adapter; give the fine-tune" in refused.err


def test_mistakes_are_one_line_and_exit_code_2(
    run: Run, tmp_path: Path, adapter: Path, anchor: Path, harmful: Path, llama_aligned: Path
) -> None:
    wide = tiny.tiny_adapter(tmp_path / "wide", llama_aligned, target_modules=["o_proj", "q_proj"])
    dora = tiny.tiny_adapter(tmp_path / "dora", llama_aligned, use_dora=True)
    with_anchor = ("--anchor", anchor)
    for arguments, said in [
        ((adapter, "--method", "csulora"), "--method csulora needs --anchor FILE"),
        (
            (adapter, "--method", "resta", "--set", "vector=harmful", *with_anchor),
            "needs --harmful-anchor FILE",
        ),
        (
            (adapter, "--method", "resta", *with_anchor, "--harmful-anchor", harmful),
            "reads no --harmful-anchor with these settings",
        ),
        (
            (adapter, "--method", "csulora", *with_anchor, "--set", "strenght=2"),
            "unknown key 'strenght'; did you mean 'strength'?",
        ),
        (
            (adapter, "--method", "csulora", *with_anchor, "--set", "strength=-1"),
            "strength: expected a number above 0",
        ),
        (
            (adapter, "--method", "subspace", *with_anchor, "--set", "modules=2"),
            "unknown key 'modules'; known here: rank",
        ),
        ((adapter, "--method", "csulora", *with_anchor, "--set", "name=lisa"), "with --method"),
        (
            (adapter, "--method", "csulora", *with_anchor, "--set", "rank=9"),
            "rank 9 is asked for and the anchor holds 8",
        ),
        ((adapter, "--method", "csulora", "--anchor", harmful), "is a harmful anchor"),
        ((adapter, "--method", "csulora", "--anchor", tmp_path / "no.safetensors"), "is no file"),
        ((wide, "--method", "csulora", *with_anchor), "2 of 4 modules of the adapter are not in"),
        ((dora, "--method", "csulora", *with_anchor), "it is no plain LoRA (use_dora)"),
        ((adapter.parent, "--method", "csulora", *with_anchor), "name the adapter in it: "),
        ((tmp_path / "gone", "--method", "csulora", *with_anchor), "is no folder with"),
    ]:
        out = tmp_path / "out"
        result = run("project", *arguments, "-o", out)
        assert result.code == 2, arguments
        assert said in result.err
        assert result.err.count("\n") == 1
        assert not out.exists()


@pytest.mark.parametrize("rank", ["3", "full"])
def test_extrapolate_moves_the_aligned_model_along_dw(
    run: Run, tmp_path: Path, anchor: Path, llama_aligned: Path, rank: str
) -> None:
    out = tmp_path / "lox"
    result = run(
        *("extrapolate", "--anchor", anchor, "--model", llama_aligned, "-o", out),
        *("--rank", rank, "--alpha", "0.5"),
    )
    assert result.code == 0, result.err
    assert "4 modules moved by 0.5 · dW" in result.out
    before = weights(load(llama_aligned))
    after = weights(PeftModel.from_pretrained(load(llama_aligned), str(out)).merge_and_unload())
    k = None if rank == "full" else int(rank)
    modules = Anchor.load(anchor).modules
    for name, value in before.items():
        factors = modules.get(name.removesuffix(".weight"))
        if factors is not None:
            u, s, v = (t.double() for t in (factors.left, factors.sigma, factors.right))
            value = value + 0.5 * u[:, :k] @ torch.diag(s[:k]) @ v[:, :k].T
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-5)
    record = read_record(out)
    assert (record.kind, record.config["method"]["alpha"]) == ("extrapolate", 0.5)
    assert record.inputs["anchor"]["start"] == "aligned"
    assert "is there already" in run(
        "extrapolate", "--anchor", anchor, "--model", llama_aligned, "-o", out
    ).err  # fmt: skip


def test_extrapolate_on_a_model_with_an_alignment_adapter(
    run: Run, tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "lox"
    Anchor.from_checkpoints(llama_adapter, llama_base).save(path)
    result = run(
        *("extrapolate", "--anchor", path, "--model", llama_base, "--adapter", llama_adapter),
        *("--rank", "full", "--alpha", "1", "-o", out),
    )
    assert result.code == 0, result.err
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert "merge_adapter" in (out / "README.md").read_text()
    twice = weights(merge_adapter(merge_adapter(load(llama_base), llama_adapter), out))
    once, bare = weights(merge_adapter(load(llama_base), llama_adapter)), weights(load(llama_base))
    for name, value in once.items():
        torch.testing.assert_close(twice[name], 2 * value - bare[name], rtol=1e-4, atol=1e-5)


def test_extrapolate_refuses_what_does_not_fit(
    run: Run, tmp_path: Path, anchor: Path, harmful: Path, llama_base: Path, llama_aligned: Path
) -> None:
    wide = tiny.tiny_llama(tmp_path / "wide", seed=2, hidden_size=64)
    for arguments, said in [
        (("--anchor", anchor, "--model", llama_base), "is the base that"),
        (("--anchor", anchor, "--model", wide), "they are not of one family"),
        (("--anchor", harmful, "--model", llama_aligned), "is a harmful anchor"),
        (("--anchor", anchor, "--model", llama_aligned, "--rank", "9"), "rank 9 is asked for"),
        (("--anchor", anchor, "--model", llama_aligned, "--rank", "x"), "--rank x is neither"),
        (
            ("--anchor", anchor, "--model", llama_aligned, "--alpha", "0"),
            "alpha: expected a number",
        ),
    ]:
        out = tmp_path / "out"
        result = run("extrapolate", *arguments, "-o", out)
        assert result.code == 2, arguments
        assert said in result.err
        assert not out.exists()


def test_conv1d_weights_are_mended_and_moved_the_right_way_round(run: Run, tmp_path: Path) -> None:
    aligned, base = (tiny.tiny_gpt2(tmp_path / f"gpt2-{n}", seed=n) for n in (1, 2))
    made = tiny.tiny_adapter(
        tmp_path / "adapter", aligned, target_modules=["c_attn"], fan_in_fan_out=True
    )
    path, lox, mended = tmp_path / "a.safetensors", tmp_path / "lox", tmp_path / "mended"
    Anchor.from_checkpoints(aligned, base, rank="full", target_modules=["c_attn"]).save(path)
    assert run("extrapolate", "--anchor", path, "--model", aligned, "--rank", "full",
               "--alpha", "1", "-o", lox).code == 0  # fmt: skip
    result = run("project", made, "--anchor", path, "--method", "resta", "--set", "gamma=1",
                 "-o", mended)  # fmt: skip
    assert result.code == 0, result.err
    one, other = weights(load(aligned)), weights(load(base))
    moved = weights(PeftModel.from_pretrained(load(aligned), str(lox)).merge_and_unload())
    tuned = weights(PeftModel.from_pretrained(load(aligned), str(made)).merge_and_unload())
    both = weights(PeftModel.from_pretrained(load(aligned), str(mended)).merge_and_unload())
    name = "transformer.h.1.attn.c_attn.weight"
    delta = one[name] - other[name]
    torch.testing.assert_close(moved[name], one[name] + delta, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[name], tuned[name] + delta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("command", ["project", "extrapolate"])
def test_every_option_and_setting_is_explained(command: str) -> None:
    from typer.main import get_command

    from anchortune.cli.app import app

    page = (Path(__file__).parents[2] / "docs" / "one-anchor.md").read_text("utf-8")
    options = get_command(app).commands[command].params  # type: ignore[attr-defined]
    flags = {flag for option in options for flag in option.opts if flag.startswith("--")}
    assert "--anchor" in flags
    assert not [flag for flag in flags if f"`{flag}`" not in page]
    for method in ("safe-lora", "csulora", "resta"):
        keys = type(make_method(method, [])).model_fields.keys() - {"name"}  # type: ignore[arg-type]
        assert not [key for key in keys if f"| `{key}` |" not in page]
