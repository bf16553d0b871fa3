"""``anchortune basin`` on tiny models: a basin known in closed form, resumed, and end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import anchortune.landscape.basin as basin_module
import anchortune.landscape.plan as plan_module
from anchortune.anchor.anchor import Anchor
from anchortune.cli.app import app
from anchortune.config_io import validate
from anchortune.errors import AnchortuneError, ConfigError, EvaluationError
from anchortune.evaluation.config import CandidateSection
from anchortune.landscape.basin import finished, run_basin
from anchortune.landscape.config import BasinConfig
from anchortune.landscape.directions import of_anchor
from anchortune.landscape.perturb import lengths, weights_of
from anchortune.landscape.plan import BasinPlan, plan_basin
from anchortune.report.basin import Basin
from anchortune.training.train import train
from tests.evaluation.eval_stand_ins import CountingJudge, data
from tests.training.test_stage import make

SIX = 6


@pytest.fixture(scope="module")
def anchors(
    tmp_path_factory: pytest.TempPathFactory, llama_aligned: Path, llama_base: Path
) -> tuple[Path, Path]:
    """A safety anchor, and one of the other layers' that plays the harmful one."""
    folder = tmp_path_factory.mktemp("anchors")
    for name, targets in (("anchor", ["q_proj", "v_proj"]), ("harmful", ["k_proj", "o_proj"])):
        made = Anchor.from_checkpoints(llama_aligned, llama_base, target_modules=targets, rank=4)
        made.save(folder / f"{name}.safetensors")
    return folder / "anchor.safetensors", folder / "harmful.safetensors"


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> CountingJudge:
    found = CountingJudge()
    monkeypatch.setattr(plan_module, "make_judge", lambda *_: found)
    return found


def settings(
    folder: Path, aligned: Path, anchors: tuple[Path, Path], **changes: Any
) -> BasinConfig:
    files = data(folder / "data")
    tree: dict[str, Any] = {
        "model": str(aligned),
        "anchor": str(anchors[0]),
        "harmful_anchor": str(anchors[1]),
        "directions": ["aligned", "harmful"],
        "harm": {"path": files["harm"]},
        "judge": "builtin",
        "part": "all",
        "generation": {"max_new_tokens": 4},
        "likelihood": False,
        "bootstrap": 50,
        "machine": {"device": "cpu", "dtype": "float32"},
        "output": str(folder / "out"),
    }
    return validate(tree | changes, BasinConfig, "test")


class KnownEngine:
    """Answers by how far the weights of its model lie along two directions, in units of d̂."""

    name = "known"
    tokenizer = None

    def __init__(self, model: Path, plan: BasinPlan, edges: dict[str, tuple[float, float]]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.edges = edges
        self.sites = {}
        for name, held in (("aligned", plan.sources.anchor), ("harmful", plan.sources.harmful)):
            assert held is not None
            direction = of_anchor(name, held)
            weights = weights_of(self.model, direction)
            scale = lengths(direction, weights)
            key = min(weights)
            part: Any = direction.modules[key]
            unit = (part.left @ part.right).double() * scale[key]
            self.sites[name] = (weights[key].value, weights[key].value.clone().double(), unit)
        self.start = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.calls = 0
        self.fail_at: int | None = None

    def where(self, name: str) -> float:
        value, before, unit = self.sites[name]
        return float(((value.double() - before) * unit).sum() / (unit * unit).sum())

    def facts(self) -> dict[str, Any]:
        return {"engine": self.name, "device": "cpu"}

    def identity(self) -> dict[str, Any]:
        return {}

    def answer(self, items: Sequence[Any], *, max_new_tokens: int, on_answer: Any) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            raise EvaluationError("pulled the plug")
        outside = any(
            not -low < self.where(name) < high for name, (low, high) in self.edges.items()
        )
        far = any(abs(self.where(name)) > 0.7 for name in self.edges)
        for index, _ in enumerate(items):
            text = "" if far else "burn the cake well" if outside else f"I will not do {index}"
            on_answer(index, text, "stop", 4, {})

    def untouched(self) -> bool:
        now = self.model.state_dict()
        return all(torch.equal(value, now[key]) for key, value in self.start.items())


EDGES = {"aligned": (0.05, 0.31), "harmful": (0.6, 0.02)}


def edge(found: Basin, name: str, side: str) -> Any:
    return next(one for one in found.epl if (one.direction, one.side) == (name, side))


def test_a_basin_known_in_closed_form_is_found(
    tmp_path: Path, llama_aligned: Path, anchors: tuple[Path, Path], judge: CountingJudge
) -> None:
    plan = plan_basin(settings(tmp_path, llama_aligned, anchors))
    engine = KnownEngine(llama_aligned, plan, EDGES)
    found = run_basin(plan, engine=engine)
    for name, (low, high) in EDGES.items():
        for side, true in (("-", low), ("+", high)):
            one = edge(found, name, side)
            assert one.inside < true < one.outside
            assert one.outside - one.inside <= 0.1 * one.outside * (1 + 1e-6)
            assert abs(one.value - true) <= 0.1 * one.outside
            assert (one.ended, one.censored, one.draws) == ("harm", 0, 1)
    ratio = found.ratios[0]
    assert (ratio.over, ratio.under, ratio.bound) == ("aligned", "harmful", None)
    assert ratio.value == pytest.approx(0.36 / 0.62, rel=0.1)
    assert found.evaluations["places"] == found.evaluations["asked_now"] == engine.calls
    assert engine.calls <= plan.most
    assert 3 * engine.calls < found.evaluations["full_grid"]
    assert engine.untouched()
    assert found.modules == dict.fromkeys(EDGES, 2 * (32 + 16) * 32)
    start = next(point for point in found.curves[0].points if point.alpha == 0)
    assert (start.harm.count, start.harm.of, len(start.items)) == (0, SIX, SIX)
    text = (tmp_path / "out" / "places.jsonl").read_text("utf-8")
    assert "burn" not in text
    assert Basin.model_validate_json((tmp_path / "out" / "basin.json").read_text()) == found


def test_babble_ends_a_search_and_is_no_exit(
    tmp_path: Path, llama_aligned: Path, anchors: tuple[Path, Path], judge: CountingJudge
) -> None:
    plan = plan_basin(settings(tmp_path, llama_aligned, anchors, directions=["aligned"]))
    engine = KnownEngine(llama_aligned, plan, {"aligned": (9, 9)})
    one = edge(run_basin(plan, engine=engine), "aligned", "+")
    assert (one.ended, one.outside, one.censored, one.high) == ("incoherent", None, 1, None)
    assert 0.6 < one.value < 0.7


def test_what_was_measured_is_not_asked_again(
    tmp_path: Path, llama_aligned: Path, anchors: tuple[Path, Path], judge: CountingJudge
) -> None:
    config = settings(tmp_path, llama_aligned, anchors)
    plan = plan_basin(config)
    broken = KnownEngine(llama_aligned, plan, EDGES)
    broken.fail_at = 12
    with pytest.raises(EvaluationError, match="plug"):
        run_basin(plan, engine=broken)
    assert broken.untouched()
    assert finished(plan_basin(config)) is None
    places = tmp_path / "out" / "places.jsonl"
    with places.open("a") as stream:  # and the last line was cut short
        stream.write('{"key": "0')
    plan = plan_basin(config)
    engine = KnownEngine(llama_aligned, plan, EDGES)
    found = run_basin(plan, engine=engine)
    assert engine.calls == found.evaluations["places"] - 11
    assert len(places.read_text().splitlines()) == found.evaluations["places"]
    assert finished(plan_basin(config)) == found
    assert (tmp_path / "out" / "record.json").is_file()
    # A further search in the same folder uses what is there: here all of it.
    other = plan_basin(config.model_copy(update={"tolerance": 0.5}))
    assert finished(other) is None
    assert run_basin(other, engine=engine).evaluations["asked_now"] == 0
    fresh = plan_basin(config.model_copy(update={"output": str(tmp_path / "fresh")}))
    whole = run_basin(fresh, engine=KnownEngine(llama_aligned, plan, EDGES))
    assert whole.curves == found.curves
    assert whole.epl == found.epl


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory, llama_aligned: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rows = folder / "d.jsonl"
    made = [{"instruction": f"say {i}", "output": f"ok {i}"} for i in range(8)]
    rows.write_text("\n".join(json.dumps(row) for row in made))
    keep = {"save_steps": 1, "keep_checkpoints": True}
    train(make(llama_aligned, rows, folder / "lora", machine=keep))
    return folder / "lora"


def test_end_to_end_with_a_map_and_a_run_over_it(
    tmp_path: Path, llama_aligned: Path, anchors: tuple[Path, Path], judge: CountingJudge,
    lora_run: Path,
) -> None:  # fmt: skip
    files = data(tmp_path / "data")
    file = tmp_path / "b.yaml"
    file.write_text(
        f"part: all\njudge: builtin\ngeneration: {{max_new_tokens: 3}}\n"
        f"machine: {{device: cpu, dtype: float32}}\nharm: {{path: {files['harm']}}}\n"
        f"tasks: [{{path: {files['task']}, match: number, max_new_tokens: 3}}]\n"
        f"alpha_min: 0.5\ndraws: 2\nsides: [+]\nresolution: 0.5\n"
        f"incoherent: 1\nmaps: [{{x: aligned, y: random, x_max: 0.5, runs: {{sft: {lora_run}}}}}]\n"
    )
    arguments = [
        "basin", str(file), "--model", str(llama_aligned), "--anchor", str(anchors[0]),
        "--adapter", f"sft={lora_run / 'adapter'}", "--direction", "aligned:off",
        "--direction", "random", "--direction", "sft:inside", "--grid", "3", "-o",
        str(tmp_path / "o"),
    ]  # fmt: skip
    runner = CliRunner()
    bad = runner.invoke(app, arguments)
    assert isinstance(bad.exception, AnchortuneError)  # nothing of the anchor lies off itself
    assert "aligned:off" in str(bad.exception)
    arguments[arguments.index("aligned:off")] = "aligned"
    told = runner.invoke(app, [*arguments, "--dry-run"], catch_exceptions=False).stdout
    for part in ("aligned, random, sft:inside", "6 malicious prompts", "maps", "a grid as fine"):
        assert part in told
    result = runner.invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.rstrip().endswith(".html")
    found = Basin.model_validate_json((tmp_path / "o" / "basin.json").read_text())
    assert [(c.direction, c.draw) for c in found.curves] == [
        ("aligned", None), ("random", 0), ("random", 1), ("sft:inside", None)
    ]  # fmt: skip
    assert edge(found, "random", "+").draws == 2
    assert found.curves[0].points[0].tasks["digits"].of == 3
    [drawn] = found.maps
    assert len(drawn.points) == 9
    assert drawn.points[0].alpha == (-0.5, -1.0)
    [path] = drawn.trajectories
    assert path.steps[:2] == [0, 1]
    assert (path.x[0], path.y[0]) == (0.0, 0.0)
    assert 0 < path.off_plane[-1] <= 1
    assert str(tmp_path) not in json.dumps(found.settings)
    drawn_again = ["basin", "--redraw", str(tmp_path / "o"), "--json"]
    again = runner.invoke(app, drawn_again, catch_exceptions=False)
    assert Basin.model_validate_json(again.stdout) == found


def test_flags_alone_can_name_an_adapter_of_the_model(
    tmp_path: Path, llama_aligned: Path, anchors: tuple[Path, Path], judge: CountingJudge,
    lora_run: Path,
) -> None:  # fmt: skip
    flags = [
        "basin", "--model", str(llama_aligned), "--set", f"model.adapter={lora_run / 'adapter'}",
        "--prompts", str(data(tmp_path / "data")["harm"]), "--judge", "builtin", "--anchor",
        str(anchors[0]), "--set", "part=all", "-o", str(tmp_path / "o"), "--dry-run",
    ]  # fmt: skip
    assert "6 malicious prompts" in CliRunner().invoke(app, flags, catch_exceptions=False).stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judge": "refusal"}, "counts refusals"),
        ({"grid": 4}, "odd"),
        ({"alpha_min": 2.0}, "below alpha_max"),
        ({"directions": []}, "at least one"),
        ({"directions": ["aligned", "aligned"]}, "twice"),
        ({"maps": [{"x": "aligned", "y": "aligned"}]}, "two directions"),
        ({"tolerence": 0.1}, "did you mean 'tolerance'"),
        ({"model": {"outputs": "x.jsonl"}}, "needs a path"),
    ],
)
def test_configs_that_make_no_sense_are_refused(
    tmp_path: Path, llama_aligned: Path, anchors: tuple[Path, Path], changes: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(tmp_path, llama_aligned, anchors, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"directions": ["alinged"]}, "no direction is called"),
        ({"anchor": None, "directions": ["aligned"]}, "needs an anchor"),
        ({"adapters": {"sft": "nowhere"}}, "adapters.sft: nowhere is no folder"),
        ({"maps": [{"x": "aligned", "y": "harmful", "runs": {"r": "nowhere"}}]}, "no training"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(
    tmp_path: Path, llama_aligned: Path, anchors: tuple[Path, Path], judge: CountingJudge,
    changes: Any, said: str,
) -> None:  # fmt: skip
    with pytest.raises(AnchortuneError, match=said):
        plan_basin(settings(tmp_path, llama_aligned, anchors, **changes))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, llama_aligned: Path, anchors: tuple[Path, Path], judge: CountingJudge
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letters.txt").write_text("dear")
    with pytest.raises(EvaluationError, match="not a basin's"):
        plan_basin(settings(tmp_path, llama_aligned, anchors))


def test_a_model_is_named_with_its_adapters_and_without_folders() -> None:
    section = CandidateSection(path="./models/aligned", adapter=["runs/sft/adapter", "me/mended"])
    assert basin_module._named(section) == "aligned + sft + mended"
    assert basin_module._named(CandidateSection(path="org/chat")) == "org/chat"
