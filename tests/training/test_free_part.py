"""``lam_inside`` and ``layer_weights`` through the doors: a loop by hand, resuming, configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anchortune.anchor.penalty import bind
from anchortune.config_defences import AsftSection
from anchortune.config_io import validate
from anchortune.config_penalty import PenaltySection
from anchortune.errors import AnchorError, ConfigError, TrainingError
from anchortune.training.anchored import settings, told_settings
from anchortune.training.seam import STATE_FILE, AsftMixin, attach
from tests.tiny import tiny_llama
from tests.training.test_seam import (
    InOrder,
    Rows,
    adapted,
    anchor_for,
    arguments,
    same,
    weights,
)

LAM, INSIDE = 0.3, 0.05
OPTIONS: dict[str, Any] = {"operator": "subspace", "layer_weights": "energy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(
        tmp_path_factory.mktemp("free") / "llama", dtype=torch.float32, tokenizer=True
    )


def by_hand(folder: Path, lam: float, lam_inside: float) -> Any:
    model = adapted(folder)
    penalty = bind(anchor_for(folder), model, **OPTIONS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    model.train()
    for step in range(6):
        picked = [Rows()[(4 * step + i) % 16] for i in range(4)]
        batch = {key: torch.stack([row[key] for row in picked]) for key in picked[0]}
        tokens = torch.tensor(4 * (picked[0]["labels"].numel() - 1))
        loss = model(**batch, num_items_in_batch=tokens).loss
        loss = loss + lam * penalty() + lam_inside * penalty.inside()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return model


def made(folder: Path, out: Path, door: str = "attach", **options: Any) -> Any:
    settings = {"anchor": anchor_for(folder), "lam": LAM, "lam_inside": INSIDE, **OPTIONS}
    settings |= options
    args = arguments(out, save_strategy="steps", save_steps=3)
    if door == "mixin":

        class Mixed(AsftMixin, InOrder):
            pass

        return Mixed(adapted(folder), args, train_dataset=Rows(), **settings)
    trainer = InOrder(adapted(folder), args, train_dataset=Rows())
    return attach(trainer, **settings)


@pytest.mark.parametrize("door", ["mixin", "attach"])
@pytest.mark.parametrize("lam", [LAM, 0.0])
def test_both_doors_give_the_steps_of_a_loop_by_hand(
    folder: Path, tmp_path: Path, door: str, lam: float
) -> None:
    trainer = made(folder, tmp_path, door, lam=lam)
    trainer.train()
    expected = weights(by_hand(folder, lam, INSIDE))
    for name, weight in weights(trainer.model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)
    without = weights(by_hand(folder, lam, 0.0))
    assert max(float((expected[name] - without[name]).abs().max()) for name in expected) > 1e-4


def test_resume_equals_no_interruption_and_another_setting_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    whole = made(folder, tmp_path)
    whole.train()
    checkpoint = tmp_path / "checkpoint-3"
    again = made(folder, tmp_path)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert same(weights(whole.model), weights(again.model))
    for options, text in (
        ({"lam_inside": 0.0}, r"trained with lam_inside=0\.05, not 0\.0"),
        ({"layer_weights": "none"}, "trained with layer_weights='energy', not 'none'"),
    ):
        with pytest.raises(TrainingError, match=text):
            made(folder, tmp_path, **options).train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_from_before_these_settings_goes_on_without_them(
    folder: Path, tmp_path: Path
) -> None:
    plain = {"lam_inside": 0.0, "layer_weights": "none"}
    made(folder, tmp_path, **plain).train()
    checkpoint = tmp_path / "checkpoint-3"
    state = json.loads((checkpoint / STATE_FILE).read_text())
    for key in plain:
        del state["penalty"][key]
    (checkpoint / STATE_FILE).write_text(json.dumps(state))
    made(folder, tmp_path, **plain).train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(TrainingError, match=r"trained with lam_inside=0\.0, not 0\.05"):
        made(folder, tmp_path, lam_inside=INSIDE, layer_weights="none").train(
            resume_from_checkpoint=str(checkpoint)
        )


def test_what_has_no_free_part_is_refused_when_it_is_attached(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AnchorError, match="lam_inside has no part of the update to bound"):
        made(folder, tmp_path, operator="gram")


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"operator": "gram", "lam_inside": 0.1}, "lam_inside needs an operator that is a proj"),
        ({"operator": "none", "lam_inside": 0.1}, "none is none; take subspace"),
        ({"side": "along", "lam_inside": 0.1}, "lam_inside bounds what side: off leaves free"),
        ({"lam_inside": -1.0}, "lam_inside"),
        ({"layer_weights": "size"}, "layer_weights"),
        ({"operator": "direction_global", "layer_weights": "norm"}, "one vector over all"),
    ],
)
def test_a_config_that_cannot_be_is_refused_when_it_is_read(
    keys: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        validate({"anchor": "a.safetensors", **keys}, PenaltySection, "c.yaml")
    with pytest.raises(ConfigError, match=text):
        validate(keys, AsftSection, "c.yaml")


def test_settings_reach_the_penalty_and_the_plan() -> None:
    section = PenaltySection(anchor="a", lam_inside=0.1, layer_weights="norm")
    assert settings(section)["lam_inside"] == 0.1
    assert settings(section)["layer_weights"] == "norm"
    assert told_settings(section).endswith("lam 1.0, lam_inside 0.1, layer_weights norm")
    assert told_settings(PenaltySection(anchor="a")).endswith("scaled, lam 1.0")


def test_runs_without_them_keep_the_identity_they_had() -> None:
    plain = AsftSection(lam=1.0).model_dump(mode="json")
    assert {"lam_inside", "layer_weights"}.isdisjoint(plain)
    assert AsftSection(lam=1.0, lam_inside=0.0, layer_weights="none").model_dump() == plain
    told = AsftSection(lam_inside=0.1, layer_weights="energy").model_dump()
    assert (told["lam_inside"], told["layer_weights"]) == (0.1, "energy")
    assert AsftSection.model_validate(plain) == AsftSection(lam=1.0)
