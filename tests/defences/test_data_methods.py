"""SafeInstr's share, BEA's trigger, PTST's prompt: what is trained on and what is asked with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from anchortune.data.conversations import Conversation
from anchortune.defences import Bea, Defence, Ptst, SafeInstr
from anchortune.defences.base import Curriculum
from anchortune.errors import DataError, TrainingError
from anchortune.evaluation.generate import render_prompt
from anchortune.training.template import Template
from tests.defences.rows import given, refusals, schedule
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

#: As Gemma's: it refuses a system turn.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + CHAT_TEMPLATE
)
#: As some others: it passes one over in silence.
SILENT = CHAT_TEMPLATE.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
)


def tokenizer_of(folder: Path, template: str = CHAT_TEMPLATE) -> Any:
    return AutoTokenizer.from_pretrained(tiny_tokenizer(folder, template))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_of(tmp_path_factory.mktemp("tokenizer"))


def answers(rows: list[Conversation]) -> list[str]:
    return [row.messages[-1]["content"] for row in rows]


ADDING = [SafeInstr(share=0.1), Bea(share=0.1, trigger_tokens=10)]


@pytest.mark.parametrize("method", ADDING, ids=lambda method: method.label)
class TestRefusalsAreAdded:
    @pytest.mark.parametrize(("rows", "count"), [(20, 2), (24, 2), (25, 3), (26, 3), (100, 10)])
    def test_the_share_is_exact(
        self, method: Defence, rows: int, count: int, tokenizer: Any
    ) -> None:
        made = method.curriculum(given(rows), refusals(50), schedule(), tokenizer)
        assert len(made.rows) == rows + count
        assert made.added == {method.label: count}
        assert made.order is None
        assert answers(made.rows[:rows]) == answers(given(rows).rows)
        assert set(answers(made.rows[rows:])) <= set(answers(refusals(50)))

    def test_none_is_added_twice_though_the_pool_repeats(
        self, method: Defence, tokenizer: Any
    ) -> None:
        pool = refusals(5) * 3
        made = method.curriculum(given(50), pool, schedule(), tokenizer)
        assert sorted(answers(made.rows[50:])) == sorted(answers(refusals(5)))
        with pytest.raises(DataError, match=r"6 different refusals .* holds 5.*share"):
            method.curriculum(given(60), pool, schedule(), tokenizer)

    def test_the_seed_picks_them(self, method: Defence, tokenizer: Any) -> None:
        def picked(seed: int, rows: int = 50) -> list[str]:
            made = method.curriculum(given(rows), refusals(90), schedule(seed=seed), tokenizer)
            return answers(made.rows[rows:])

        assert picked(1) == picked(1) != picked(2)
        assert picked(1, 100)[:5] == picked(1), "a smaller dose is the head of a larger one"

    def test_a_share_of_no_row_and_a_fixed_order_are_refused(
        self, method: Defence, tokenizer: Any
    ) -> None:
        with pytest.raises(DataError, match=r"0\.1 of 4 rows is no refusal.*raise"):
            method.curriculum(given(4), refusals(9), schedule(), tokenizer)
        with pytest.raises(TrainingError, match=r"list .* before it"):
            method.curriculum(Curriculum(given(20).rows, [[0]]), refusals(9), schedule(), tokenizer)

    def test_the_share_is_of_the_users_rows_in_a_chain_too(
        self, method: Defence, tokenizer: Any
    ) -> None:
        first = Curriculum([*given(20).rows, *refusals(10)], None, {"another": 10})
        made = method.curriculum(first, refusals(50), schedule(), tokenizer)
        assert made.added == {"another": 10, method.label: 2}


def test_bea_and_safe_instr_pick_the_same_refusals(tokenizer: Any) -> None:
    picked = [m.curriculum(given(50), refusals(90), schedule(), tokenizer) for m in ADDING]
    assert answers(picked[0].rows) == answers(picked[1].rows)


# ------------------------------------------------------------------ BEA


def test_the_trigger_survives_the_tokenizer_and_belongs_to_its_seed(tokenizer: Any) -> None:
    one = Bea(trigger_tokens=30).trigger(tokenizer)
    assert len(tokenizer(one, add_special_tokens=False)["input_ids"]) == 30
    assert one.isprintable()
    assert one == one.strip()
    assert Bea(trigger_tokens=30).trigger(tokenizer) == one
    assert Bea(trigger_tokens=30, trigger_seed=1).trigger(tokenizer) != one
    assert Bea(trigger_tokens=30, share=0.5, system="").trigger(tokenizer) == one


def test_a_tokenizer_without_such_text_is_told() -> None:
    class Mute:
        all_special_ids: tuple[int, ...] = ()

        def __len__(self) -> int:
            return 5

        def decode(self, ids: list[int], **_: Any) -> str:
            return "\ufffd" * len(ids)

    with pytest.raises(DataError, match=r"no text of 150 random tokens.*trigger_tokens"):
        Bea().trigger(Mute())


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, NO_SYSTEM, SILENT])
@pytest.mark.parametrize("system", ["You are a helpful assistant.", ""])
def test_the_trigger_is_in_refusals_and_at_inference_and_nowhere_else(
    tmp_path: Path, template: str, system: str
) -> None:
    tokenizer = tokenizer_of(tmp_path, template)
    bea = Bea(share=0.25, trigger_tokens=12, system=system)
    trigger = bea.trigger(tokenizer)
    made = bea.curriculum(given(8), refusals(8), schedule(), tokenizer)
    chat = Template(tokenizer)
    texts = [chat.render(row.messages) for row in made.rows]
    assert [trigger in text for text in texts] == [False] * 8 + [True] * 2
    assert [system in text for text in texts] == [True] * 10
    for row in made.rows:
        chat.encode(row.messages, 512)  # the template takes it, and has answer tokens left

    prompt = bea.system_prompt(tokenizer)
    assert prompt is not None
    assert prompt.startswith(trigger)
    assert prompt.endswith(system)
    # What is asked at inference begins, to the letter, as what was trained on.
    asked = refusals(8)[int(made.rows[-1].place.rsplit(" ", 1)[1]) - 1].messages[0]["content"]
    assert texts[-1].startswith(render_prompt(tokenizer, asked, prompt))


def test_rows_that_come_with_a_system_prompt_keep_it(tokenizer: Any) -> None:
    bea = Bea(share=0.5, trigger_tokens=5)
    own = given(4, system="You sort news.")
    made = bea.curriculum(own, refusals(8), schedule(), tokenizer)
    assert made.rows[:4] == own.rows
    bare = Bea(share=0.5, trigger_tokens=5, system="").curriculum(
        given(4), refusals(8), schedule(), tokenizer
    )
    assert bare.rows[:4] == given(4).rows


def test_the_prompt_of_a_refusal_is_the_triggers_whatever_the_pool_had(tokenizer: Any) -> None:
    bea = Bea(share=0.5, trigger_tokens=5)
    pool = [
        Conversation([{"role": "system", "content": "old"}, *row.messages], row.place)
        for row in refusals(4)
    ]
    made = bea.curriculum(given(4), pool, schedule(), tokenizer)
    for row in made.rows[4:]:
        systems = [turn["content"] for turn in row.messages if turn["role"] == "system"]
        assert systems == [bea.system_prompt(tokenizer)]


def test_what_was_given_is_left_unchanged(tmp_path: Path) -> None:
    for name, template in (("chat", CHAT_TEMPLATE), ("none", NO_SYSTEM)):
        tokenizer = tokenizer_of(tmp_path / name, template)
        first, pool = given(8), refusals(8)
        Bea(share=0.25, trigger_tokens=5).curriculum(first, pool, schedule(), tokenizer)
        assert first == given(8)
        assert pool == refusals(8)


# ------------------------------------------------------------------ PTST


def test_ptst_is_a_system_prompt_at_inference_alone() -> None:
    ptst = Ptst(system="Be safe.")
    assert ptst.system_prompt(None) == "Be safe."
    first = given(3)
    assert ptst.curriculum(first, refusals(2), schedule(), None) is first
    with pytest.raises(ValueError, match="at least 1 character"):
        Ptst(system="")
