from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from anchortune.evaluation.generate import generate, render_prompt
from tests.tiny import tiny_llama

PROMPTS = [
    "a",
    "A much longer question than the others, with some words in it?",
    "Hello there",
    "b",
]


@pytest.fixture(scope="module")
def model_and_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    path = tiny_llama(
        tmp_path_factory.mktemp("generate") / "llama", dtype=torch.float32, tokenizer=True
    )
    return (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        AutoTokenizer.from_pretrained(path),
    )


def test_batched_answers_equal_one_at_a_time(model_and_tokenizer: tuple[Any, Any]) -> None:
    model, tokenizer = model_and_tokenizer
    together = generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=3)
    alone = [generate(model, tokenizer, [p], max_new_tokens=12)[0] for p in PROMPTS]
    assert together == alone
    assert any(together)


def test_an_answer_ends_at_the_end_token(model_and_tokenizer: tuple[Any, Any]) -> None:
    model, tokenizer = model_and_tokenizer
    ids = tokenizer("Hello there", add_special_tokens=False)["input_ids"]
    text = generate(model, tokenizer, ["Hello there"], max_new_tokens=8)[0]
    stop = tokenizer(text, add_special_tokens=False)["input_ids"][0]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    assert generate(model, tokenizer, ["Hello there"], max_new_tokens=8) == [""]
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert ids


def test_progress_is_told_and_the_models_mode_is_kept(model_and_tokenizer: tuple[Any, Any]) -> None:
    model, tokenizer = model_and_tokenizer
    seen: list[int] = []
    model.train()
    generate(model, tokenizer, PROMPTS, max_new_tokens=1, batch_size=3, on_done=seen.append)
    assert seen == [1, 2, 3, 4]
    assert model.training
    model.eval()


def test_a_model_without_a_template_gets_the_plain_one(
    model_and_tokenizer: tuple[Any, Any],
) -> None:
    _, tokenizer = model_and_tokenizer
    assert render_prompt(tokenizer, "Hi", "Be kind").startswith("<|im_start|>system\nBe kind")
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        assert render_prompt(tokenizer, "Hi") == "### Instruction:\nHi\n\n### Response:\n"
    finally:
        tokenizer.chat_template = template
