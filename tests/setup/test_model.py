"""What ``init`` sees in a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from anchortune.setup.model import look_at_model, narrowest
from tests import tiny


@pytest.mark.parametrize(
    ("make", "targets", "narrow"),
    [(tiny.tiny_phi3, ["qkv_proj"], 64), (tiny.tiny_gpt2, ["c_attn"], 96)],
)
def test_the_attention_is_found_by_what_the_architecture_calls_it(
    tmp_path: Path, make: Callable[..., Path], targets: list[str], narrow: int
) -> None:
    found = look_at_model(str(make(tmp_path / "m", tokenizer=True)))
    assert (found.targets, narrowest(found), found.base) == (targets, narrow, None)
    assert set(targets) < set(found.linear)


def test_a_model_that_speaks_no_chat_is_given_the_plain_template(tmp_path: Path) -> None:
    folder = tiny.tiny_llama(tmp_path / "m")
    tiny.tiny_tokenizer(folder, chat_template=None)
    assert "no chat template, so plain (### Instruction" in look_at_model(str(folder)).chat_line()
