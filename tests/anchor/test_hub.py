"""Sharing an anchor, against a stand-in of the Hub's HTTP API; nothing leaves this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.build import build_anchor
from anchortune.anchor.hub import card
from anchortune.errors import AnchorError, CheckpointError
from tests.hub_stand_in import Hub, serve


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in that every call of the Hub's client reaches, and an empty cache."""
    from huggingface_hub import constants

    with serve() as running:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            running.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield running


@pytest.fixture(scope="module")
def anchor(llama_aligned: Path, llama_base: Path) -> Anchor:
    return Anchor.from_checkpoints(llama_aligned, llama_base, rank=4)


def same(one: Anchor, other: Anchor) -> bool:
    return one.metadata == other.metadata and all(
        torch.equal(one.modules[name].left, other.modules[name].left) for name in one.modules
    )


def test_push_then_from_pretrained_gives_the_same_anchor(hub: Hub, anchor: Anchor) -> None:
    url = anchor.push_to_hub("org/name", token="hf_test", private=True, endpoint=hub.endpoint)
    assert url == f"{hub.endpoint}/org/name/commit/{hub.refs['org/name']['main']}"
    assert (hub.created[0]["name"], hub.created[0]["organization"]) == ("name", "org")
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    assert set(hub.find("org/name", "main")[1]) == {"anchor.safetensors", "README.md"}  # type: ignore[index]
    assert "Bearer hf_test" in hub.tokens
    fetched = Anchor.from_pretrained("org/name", endpoint=hub.endpoint)
    assert same(fetched, anchor)
    assert fetched.sha256 == anchor.sha256


def test_a_revision_is_a_revision(hub: Hub, anchor: Anchor, llama_adapter: Path,
                                  llama_base: Path) -> None:  # fmt: skip
    anchor.push_to_hub("org/name", endpoint=hub.endpoint)
    first = hub.refs["org/name"]["main"]
    hub.refs["org/name"]["v1"] = first
    second = Anchor.from_checkpoints(llama_adapter, llama_base)
    second.push_to_hub("org/name", endpoint=hub.endpoint)
    assert same(Anchor.from_pretrained("org/name", endpoint=hub.endpoint), second)
    for revision in ("v1", first):
        found = Anchor.from_pretrained("org/name", revision=revision, endpoint=hub.endpoint)
        assert same(found, anchor)


def test_what_the_hub_does_not_have_is_named(hub: Hub, anchor: Anchor) -> None:
    with pytest.raises(AnchorError, match="org/none is no repository that this token may read"):
        Anchor.from_pretrained("org/none", endpoint=hub.endpoint)
    hub.commit("org/empty", {"README.md": b"x"})
    with pytest.raises(AnchorError, match=r"org/empty holds no anchor.safetensors"):
        Anchor.from_pretrained("org/empty", endpoint=hub.endpoint)
    with pytest.raises(AnchorError, match="org/empty has no revision 'v9'"):
        Anchor.from_pretrained("org/empty", revision="v9", endpoint=hub.endpoint)
    hub.refuse_commits = True
    with pytest.raises(AnchorError, match="org/name could not be pushed to the Hub"):
        anchor.push_to_hub("org/name", endpoint=hub.endpoint)


def test_offline_says_so(anchor: Anchor) -> None:
    with pytest.raises(AnchorError, match="cannot be reached"):
        Anchor.from_pretrained("org/absent")
    with pytest.raises(AnchorError, match="could not be pushed to the Hub"):
        anchor.push_to_hub("org/absent")


def test_a_folder_that_holds_an_anchor_serves_too(tmp_path: Path, anchor: Anchor) -> None:
    anchor.save(tmp_path / "anchor.safetensors")
    assert same(Anchor.from_pretrained(str(tmp_path)), anchor)


def test_the_card_names_both_parents_and_their_licences(
    hub: Hub, llama_aligned: Path, llama_base: Path
) -> None:
    base = {path.name: path.read_bytes() for path in llama_base.iterdir()}
    base["README.md"] = b"---\nlicense: llama3\n---\n"
    commit = hub.commit("org/base", base)
    modules, metadata = build_anchor(llama_aligned, "org/base", rank=4)
    text = card(Anchor(modules, metadata), "org/anchor")
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == ["org/base"]
    for part in ("llama-aligned", "org/base", commit, "llama3", "not stated", "q_proj, v_proj"):
        assert part in text
    assert str(metadata.aligned.sha256) in text
    assert 'Anchor.from_pretrained("org/anchor")' in text
    assert str(llama_aligned.parent) not in text  # nobody's paths


def test_a_checkpoint_from_the_hub_is_fetched_without_code_or_pickle(
    hub: Hub, llama_aligned: Path, llama_base: Path
) -> None:
    files = {path.name: path.read_bytes() for path in llama_base.iterdir()}
    unwanted = ["pytorch_model.bin", "modeling_evil.py", "onnx/model.safetensors"]
    commit = hub.commit("org/base", files | dict.fromkeys(unwanted, b"x"))
    hub.commit("org/base", {"model.safetensors.index.json": b"{}"})
    modules, metadata = build_anchor(
        llama_aligned, "org/base", base_revision=commit, target_modules=["q_proj"]
    )
    local, _ = build_anchor(llama_aligned, llama_base, target_modules=["q_proj"])
    assert all(torch.equal(modules[name].left, local[name].left) for name in local)
    assert (metadata.base.id, metadata.base.revision) == ("org/base", commit)
    fetched = " ".join(hub.requests)
    assert all(f"/{name}" not in fetched for name in unwanted)


def test_checkpoints_that_the_hub_does_not_have_are_named(hub: Hub, llama_base: Path) -> None:
    with pytest.raises(CheckpointError, match="org/none is neither a folder here nor a model"):
        build_anchor("org/none", llama_base)
    hub.commit("org/bin", {"pytorch_model.bin": b"x", "config.json": b"{}"})
    with pytest.raises(CheckpointError, match=r"holds no .safetensors file"):
        build_anchor("org/bin", llama_base)
    with pytest.raises(CheckpointError, match="org/bin has no revision 'v9'"):
        build_anchor("org/bin", llama_base, aligned_revision="v9")
