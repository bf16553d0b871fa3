"""A path in somebody's metadata leads nowhere outside its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from anchortune.checkpoints.source import open_checkpoint
from anchortune.config import ModelSection
from anchortune.config_io import validate
from anchortune.errors import CheckpointError, ConfigError
from anchortune.jobs.methods import MethodSection
from anchortune.jobs.sweep_config import SweepConfig
from anchortune.models.load import load_model, load_tokenizer, pick_numbers
from anchortune.sections import MachineSection
from anchortune.untrusted import stays_inside

CPU = pick_numbers(MachineSection(device="cpu", dtype="float32"), None)
SECRET = "the key of the house"


@pytest.mark.parametrize(
    "place", ["../other/{0}", "{1}/{0}", "..\\other\\{0}", "a/../../other/{0}"]
)
def test_an_index_leads_out_of_no_model(place: str, tmp_path: Path, llama_base: Path) -> None:
    """Neither where tensors are read by us nor where transformers loads the model."""
    model = Path(shutil.copytree(llama_base, tmp_path / "m"))
    other = Path(shutil.copytree(llama_base, tmp_path / "other"))
    index = model / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    for name, file in tree["weight_map"].items():
        tree["weight_map"][name] = place.format(file, other)
    index.write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="points out of its folder"):
        open_checkpoint(model)
    with pytest.raises(CheckpointError, match="points out of its folder"):
        load_model(ModelSection(path=str(model)), CPU)


@pytest.mark.parametrize("key", ["vocab_file", "tokenizer_file", "merges_file", "chat_template"])
def test_a_tokenizer_reads_no_file_that_its_config_names(
    key: str, tmp_path: Path, llama_base: Path
) -> None:
    """Nor would it come to lie, as its vocabulary, in an adapter that somebody publishes."""
    model = Path(shutil.copytree(llama_base, tmp_path / "m"))
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    place = model / "tokenizer_config.json"
    tree = json.loads(place.read_text())
    place.write_text(json.dumps(tree | {key: str(secret)}))
    if key == "tokenizer_file" and transformers.__version__.startswith("5.0."):
        with pytest.raises(CheckpointError):  # it wants a tokenizer in that file
            load_tokenizer(ModelSection(path=str(model)))
        return
    made = load_tokenizer(ModelSection(path=str(model)))
    made.save_pretrained(tmp_path / "saved")
    saved = [path.read_text("utf-8") for path in (tmp_path / "saved").iterdir()]
    assert saved
    assert SECRET not in "".join(saved)


def test_what_a_link_fetches_is_not_put_beside_a_mended_adapter(
    tmp_path: Path, llama_base: Path, llama_aligned: Path
) -> None:
    from anchortune.anchor.anchor import Anchor
    from anchortune.defences.csulora import CsuLora
    from anchortune.jobs.origin import OpenAnchor
    from anchortune.jobs.project import project
    from tests.tiny import tiny_adapter

    adapter = tiny_adapter(tmp_path / "a", llama_aligned, seed=1)
    secret = tmp_path / "id_rsa"
    secret.write_text(SECRET)
    (adapter / "notes.txt").symlink_to(secret)
    (adapter / "own.txt").write_text("mine")
    (adapter / "again.txt").symlink_to("own.txt")
    anchor = Anchor.from_checkpoints(
        llama_aligned, llama_base, target_modules=["q_proj", "v_proj"], rank=2
    )
    out = tmp_path / "out"
    project(str(adapter), CsuLora(), out, anchor=OpenAnchor(anchor, "anchor"))
    assert not (out / "notes.txt").exists()
    assert (out / "own.txt").read_text() == (out / "again.txt").read_text() == "mine"
    assert not (out / "again.txt").is_symlink()
    assert SECRET.encode() not in b"".join(path.read_bytes() for path in out.iterdir())


def test_links_of_the_hubs_cache_are_inside(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blob = tmp_path / "models--a--b" / "blobs" / "abc"
    for folder in (snapshot, blob.parent):
        folder.mkdir(parents=True)
    blob.write_text("x")
    (snapshot / "in.txt").symlink_to("../../blobs/abc")
    (tmp_path / "far").write_text("x")
    (snapshot / "out.txt").symlink_to(tmp_path / "far")
    assert stays_inside(snapshot / "in.txt", snapshot)
    assert not stays_inside(snapshot / "out.txt", snapshot)
    (snapshot / "sub").mkdir()
    (snapshot / "sub" / "in.txt").symlink_to(blob)
    assert stays_inside(snapshot / "sub" / "in.txt", snapshot / "sub")
    assert not stays_inside(snapshot / ".." / "x", snapshot)
    assert not stays_inside(blob, blob.parent.parent / "snapshots")


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", "../x", "/x", "a\\b", "x\n", ""])
def test_no_label_or_name_is_a_path(name: str) -> None:
    section: dict[str, Any] = {"chain": ["asft"], "label": name}
    with pytest.raises(ConfigError, match="label"):
        validate(section, MethodSection, "job")
    sweep = {"name": name, "axes": {}, "defaults": {}}
    with pytest.raises(ConfigError, match="name"):
        validate(sweep, SweepConfig, "sweep")


def test_a_record_leads_nowhere(tmp_path: Path) -> None:
    """Paths in a record are shown, and nothing is read or written at them."""
    from anchortune.report.page import write_page
    from tests.report import made_up

    (tmp_path / "far").mkdir()
    secret = tmp_path / "far" / "outputs.jsonl"
    secret.write_text(json.dumps({"model": "sft", "set": "s", "id": "1", "answer": SECRET}) + "\n")
    folder = made_up.write(tmp_path / "eval", output=str(tmp_path / "far"))
    (folder / "outputs.jsonl").unlink()
    html = write_page(folder).read_text("utf-8")
    assert SECRET not in html
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["outputs.jsonl"]


def test_a_column_of_pictures_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows name files and addresses; where they are decoded, these are opened."""
    import datasets

    from anchortune.data.rows import read_rows
    from anchortune.sections import RowsSection

    (tmp_path / "secret.txt").write_text(SECRET)
    places = [str(tmp_path / "secret.txt"), "http://evil.example/seen"]
    held = datasets.Features({"prompt": datasets.Value("string"), "x": datasets.Image()})
    rows = [{"prompt": "q", "x": {"bytes": None, "path": place}} for place in places]
    made = datasets.Dataset.from_list(rows, features=held)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    found = read_rows(RowsSection(path="org/name"))
    assert found.rows == rows
