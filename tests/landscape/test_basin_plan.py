"""What a basin's plan refuses, and when a search that is complete counts as the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.format import HARMFUL_VERSION, HarmfulOrigin
from anchortune.cli.drift import _aligned
from anchortune.errors import AnchorError, ConfigError
from anchortune.landscape.basin import as_place
from anchortune.landscape.directions import Sources
from anchortune.landscape.plan import plan_basin
from anchortune.landscape.run import RESULT, Place, Run
from anchortune.report.basin import Count, Point
from tests.evaluation.eval_stand_ins import CountingJudge
from tests.landscape.test_basin import anchors, judge, settings

__all__ = ["anchors", "judge"]


def test_a_harmful_anchor_is_not_taken_for_the_aligned_one(
    tmp_path: Path, llama_aligned: Path, anchors: tuple[Path, Path], judge: CountingJudge
) -> None:
    held = Anchor.load(anchors[1])
    told = HarmfulOrigin(
        method="gradient", data="p", data_sha256="0" * 64, pairs=1, rows=1, seed=0, settings={}
    )
    place = tmp_path / "harmful.safetensors"
    metadata = held.metadata.model_copy(update={"harmful": told, "format_version": HARMFUL_VERSION})
    Anchor(held.modules, metadata).save(place)
    with pytest.raises(AnchorError, match=r"is a harmful anchor.*give it as harmful_anchor"):
        plan_basin(settings(tmp_path, llama_aligned, (place, anchors[1])))
    plan_basin(settings(tmp_path, llama_aligned, (anchors[0], place)))
    with pytest.raises(AnchorError, match=r"--anchor .* is a harmful anchor"):
        _aligned(Anchor.load(place), place)


def test_places_may_be_deleted_to_start_again(
    tmp_path: Path, llama_aligned: Path, anchors: tuple[Path, Path], judge: CountingJudge
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "basin.json").write_text("{}")
    (tmp_path / "out" / "epl.png").write_text("")
    plan_basin(settings(tmp_path, llama_aligned, anchors))


def test_a_run_that_went_on_is_another_map(
    tmp_path: Path, llama_aligned: Path, anchors: tuple[Path, Path], judge: CountingJudge
) -> None:
    plan = plan_basin(settings(tmp_path, llama_aligned, anchors))
    run = Run(tmp_path, None, None, [Place("step 1", 1, tmp_path)])  # type: ignore[arg-type]
    plan.runs["r"] = run
    before = plan.inputs()
    run.places.append(Place(RESULT, 2, tmp_path))
    assert plan.inputs() != before


def test_a_label_that_a_draw_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be called 'random 0'"):
        Sources(updates={"random 0": {}})


def test_the_limit_of_babble_does_not_hang_on_a_last_bit() -> None:
    # 1 - 0.9 is a hair below 0.1, and the pictures mark this place.
    point = Point(alpha=0.1, harm=Count(count=0, of=1), coherent=Count(count=9, of=10))
    assert not as_place(point, 0.1).coherent
