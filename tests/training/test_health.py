"""The rules of a training's health on logged lines: each fires, and none on a healthy log."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from anchortune.data.screened import HarmfulRow, Screened, ScreenedSource
from anchortune.training import health
from anchortune.training.health import Health, Seen, of_data, review

CHANCE = math.log(50_000)
HEALTHY = json.loads((Path(__file__).parent / "healthy_logs.json").read_text())


def lines(losses: list[float], epochs: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    """A log with one line a step over so many epochs."""
    count = len(losses)
    return [
        {"step": i + 1, "loss": loss, "epoch": (i + 1) / count * epochs, "grad_norm": 1.0, **more}
        for i, loss in enumerate(losses)
    ]


def kinds(found: list[health.Finding]) -> list[str]:
    return [finding.kind for finding in found]


@pytest.mark.parametrize("name", sorted(HEALTHY))
def test_real_trainings_raise_no_alarm(name: str) -> None:
    """Logs of `make quickstart` and of the sweep behind `results/small-first-pair`."""
    held = HEALTHY[name]
    found = lines(held["loss"], held["epoch"])
    for line, norm in zip(found, held["grad_norm"], strict=True):
        line["grad_norm"] = norm
    assert review(found, chance=CHANCE) == []


def test_noisy_trainings_that_learn_raise_no_alarm() -> None:
    """Rows of many kinds: the spread of a step's loss is as large as what is learnt."""
    for seed in range(100):
        draw = random.Random(seed)
        passes, each = draw.choice([(1, 400), (1, 800), (2, 40), (3, 50), (10, 12)])
        start, end = draw.uniform(0.5, 3.0), draw.uniform(0.1, 0.8)
        pace = draw.uniform(0.1, 0.5) * passes * each
        rows = [draw.lognormvariate(0.0, 0.4) for _ in range(each)]
        losses = []
        for step in range(passes * each):
            if step % each == 0:
                draw.shuffle(rows)
            level = start * (end + (1 - end) * math.exp(-step / pace))
            losses.append(level * rows[step % each])
        assert review(lines(losses, passes), chance=CHANCE) == [], seed


def test_a_loss_that_is_no_number_stops_and_names_the_cause() -> None:
    for value, seen, told in (
        (math.nan, Seen(), r"the loss is nan at step 1; lower training.learning_rate"),
        (math.inf, Seen(), r"the loss is inf at step 1"),
        (None, Seen(), r"the loss is nan"),  # as log.jsonl has it
        (1.0, Seen(bad_loss=True), r"the loss is nan"),  # what a trainer's filter had hidden
        (math.nan, Seen(bad_start="lm_head.weight"), r"model's lm_head.weight, .* is broken"),
        (math.nan, Seen(blank=True), r"no token to learn: .*training.max_length_tokens"),
        (1.0, Seen(bad_weights="q.lora_B"), r"q.lora_B holds numbers that are not finite"),
    ):
        [found] = Health().take({"step": 1, "loss": value}, seen)
        assert found.stops
        assert found.step == 1
        assert re.search(told, found.told), found.told


def test_a_penalty_that_overflows_is_told_from_a_loss_that_does() -> None:
    for key in ("asft/penalty", "asft/penalty_grad_norm"):
        [found] = Health().take({"step": 3, "loss": 1.0, key: math.inf, "asft/lam": 1e30})
        assert found.stops
        assert "lower lam, which is 1e+30" in found.told


def test_gradients_that_overflow_stop_at_once_or_after_a_scaler_has_failed() -> None:
    bad = {"loss": 1.0, "grad_norm": math.inf}
    [found] = Health().take({**bad, "step": 1})
    assert (found.kind, found.stops) == ("not-finite", True)
    scaled = Health(scaled=True)
    for step in range(1, health.OVERFLOWS):
        assert scaled.take({**bad, "step": step}) == []
    assert scaled.take({"loss": 1.0, "grad_norm": 2.0, "step": 20}) == []
    for step in range(30, 30 + health.OVERFLOWS - 1):
        assert scaled.take({**bad, "step": step}) == []
    assert kinds(scaled.take({**bad, "step": 50})) == ["not-finite"]


def test_what_has_not_moved_stops_once_it_should_have() -> None:
    watched = Health()
    for step in range(1, health.MOVES_WITHIN):
        assert watched.take({"step": step, "loss": 2.0}, Seen(steps=step, rated_steps=step)) == []
    last = health.MOVES_WITHIN
    [found] = watched.take({"step": last, "loss": 2.0}, Seen(steps=last, rated_steps=last))
    assert found.stops
    assert "no gradient reaches them" in found.told


@pytest.mark.parametrize(
    ("seen", "settings", "told", "stops"),
    [
        (Seen(steps=10, rated_steps=0), {}, "the learning rate was 0", True),
        (Seen(steps=10, rated_steps=10, blank=True), {}, "no token had a label", True),
        (Seen(steps=10, rated_steps=10, labelled=False), {}, "no gradient reaches", False),
        (Seen(steps=30, rated_steps=30), {"scaled": True}, "no gradient reaches", True),
        (Seen(steps=10, rated_steps=9), {}, None, False),  # a warm-up that began at 0
        (Seen(steps=29, rated_steps=29), {"scaled": True}, None, False),
        (Seen(steps=None, rated_steps=50), {}, None, False),
    ],
)
def test_why_nothing_has_moved(seen: Seen, settings: Any, told: str | None, stops: bool) -> None:
    found = [
        one
        for one in Health(**settings).take({"step": 30, "loss": 2.0}, seen)
        if one.kind == "unmoved"
    ]
    assert bool(found) is (told is not None)
    for one in found:
        assert told is not None
        assert told in one.told
        assert one.stops is stops


def test_a_short_training_in_which_nothing_moved_says_so_at_its_end() -> None:
    watched = Health()
    assert kinds(watched.end(3, Seen(steps=3, rated_steps=3))) == ["unmoved"]
    assert not watched.findings[0].stops
    assert Health().end(3, Seen()) == []


def test_a_model_that_is_lost_stops_the_training() -> None:
    up = [2.0, 3.0, 8.0, *[CHANCE + 4] * 6]
    watched = Health(chance=CHANCE)
    found = [one for line in lines(up) for one in watched.take(line) if one.stops]
    assert kinds(found) == ["lost"]
    assert found[0].step <= 8
    assert "so the model is lost; lower training.learning_rate" in found[0].told
    # A sum over tokens, a loss of one's own, another aim, a model that knew nothing before.
    assert review(lines([900.0, *[950.0] * 9]), chance=CHANCE) == []
    assert review(lines(up)) == []
    assert review(lines(up, reward=0.5), chance=CHANCE) == []
    assert review(lines([CHANCE + 1.5] * 9), chance=CHANCE) == []


def test_a_loss_that_rises_is_said_once() -> None:
    rising = [1.0 + 0.1 * step for step in range(60)]
    found = review(lines(rising), chance=CHANCE)
    assert kinds(found) == ["rising"]
    assert not found[0].stops
    assert found[0].step < 40
    assert review(lines(rising), comparable=False) == []


def test_a_loss_that_does_not_fall_is_told_by_its_passes() -> None:
    draw = random.Random(0)
    rows = [draw.uniform(0.5, 3.0) for _ in range(20)]
    flat = [loss for _ in range(3) for loss in draw.sample(rows, len(rows))]
    [found] = review(lines(flat, 3.0), chance=CHANCE)
    assert (found.kind, found.step, found.stops) == ("flat", 41, False)
    assert "fallen by 0.0% in 2 passes" in found.told or "risen in 2 passes" in found.told
    # Two passes: known at the end. Part of a second one: not known.
    assert kinds(review(lines(flat[:40], 2.0))) == ["flat"]
    assert review(lines(flat[:25], 1.25)) == []
    # What was known before leaves nothing to learn.
    assert review(lines([loss / 100 for loss in flat], 3.0)) == []


def test_a_long_pass_is_judged_by_its_thirds() -> None:
    told = 0
    for seed in range(20, 40):
        draw = random.Random(seed)
        flat = [draw.lognormvariate(0.5, 0.4) for _ in range(700)]
        falls = [loss * (1 - 0.5 * step / 700) for step, loss in enumerate(flat)]
        told += kinds(review(lines(flat, 0.8))) == ["flat"]
        assert review(lines(falls, 0.8)) == []
    assert told >= 10  # two thirds: the others fall by chance


def test_a_loss_that_falls_in_few_steps_and_hardly_after_them_is_not_flat() -> None:
    """As of instruction data: the form of an answer is learnt at once, the rest slowly."""
    for seed in range(5):
        for passes, each, logged in ((0.9, 700, 1), (3.0, 200, 1), (0.9, 700, 10), (3.0, 60, 10)):
            draw = random.Random(seed)
            steps = round(passes * each * logged) if passes > 1 else each * logged
            made = [1.1 + 0.6 * math.exp(-s / 8) + draw.gauss(0.0, 0.15) for s in range(steps)]
            means = [sum(made[s : s + logged]) / logged for s in range(0, steps, logged)]
            assert review(lines(means, passes), chance=CHANCE) == [], (seed, passes, logged)


def test_a_step_without_labels_that_was_said_still_stops_once_its_loss_is_no_number() -> None:
    watched = Health()
    [said] = watched.take({"step": 1, "loss": 1.0}, Seen(blank=True))
    assert not said.stops
    assert watched.take({"step": 2, "loss": 1.0}, Seen(blank=True)) == []
    [found] = watched.take({"step": 3, "loss": math.nan}, Seen(blank=True))
    assert (found.kind, found.stops) == ("no-labels", True)


def test_steps_that_have_nothing_to_learn_say_nothing_of_lambda() -> None:
    """GRPO: where all answers to a prompt get the same reward."""
    more = {"asft/task_grad_norm": 0.0, "asft/penalty_grad_norm": 0.5}
    found = lines([2.0] * 40, reward=0.5, **more)
    for line in found[::4]:
        line["asft/task_grad_norm"] = 0.5
    assert review(found) == []
    for line in found[1::2]:
        line["asft/task_grad_norm"] = math.nan  # a GradScaler at work
    assert review(found, scaled=True) == []


def test_a_penalty_that_swamps_the_task() -> None:
    def ratio(value: float) -> list[dict[str, Any]]:
        more = {"asft/task_grad_norm": 0.5, "asft/penalty_grad_norm": 0.5 * value, "asft/lam": 7.0}
        return lines([2.0 - 0.01 * step for step in range(40)], **more)

    assert review(ratio(health.SWAMPED / 2)) == []
    [found] = review(ratio(health.SWAMPED * 2))
    assert found.kind == "swamped"
    assert found.step == health.SWAMPED_LINES
    assert "with a lam of 7" in found.told
    spikes = ratio(1.0)
    for line in spikes[::3]:  # a stray step is no state
        line["asft/penalty_grad_norm"] = 1e6
    assert review(spikes) == []


def screened(harmful: int, judged: int, action: Any) -> Screened:
    rows = [HarmfulRow(f"line {number}") for number in range(harmful)]
    source = ScreenedSource("d.jsonl", "0" * 64, judged, judged, rows, 0, 0)
    return Screened({"name": "builtin"}, action, [source])


def test_data_that_is_mostly_harm_is_said_before_the_training() -> None:
    data = {"sequences": 100, "truncated": 0, "max_length_tokens": 64}
    assert of_data(data, None) == of_data(data, screened(50, 100, "report")) == []
    [kept] = of_data(data, screened(51, 100, "report"))
    assert "51 of 100 rows look harmful: most of what" in kept.told
    [gone] = of_data(data | {"sequences": 9}, screened(91, 100, "drop"))
    assert "left out: 9 sequences remain" in gone.told


def test_many_rows_that_are_cut_are_said_before_the_training() -> None:
    assert of_data({"sequences": 10, "truncated": 2, "max_length_tokens": 8}, None) == []
    [found] = of_data({"sequences": 10, "truncated": 3, "max_length_tokens": 8}, None)
    assert "3 of 10 sequences are cut at 8 tokens" in found.told
    assert of_data({"sequences": 10, "max_length_tokens": 8}, None) == []  # preferences


def test_each_finding_is_plain_values_and_one_sentence() -> None:
    found = review([{"step": 1, "loss": None}])
    assert json.loads(json.dumps([one.summary() for one in found])) == [
        {"kind": "not-finite", "step": 1, "told": found[0].told, "stops": True}
    ]
    assert "\n" not in found[0].told
