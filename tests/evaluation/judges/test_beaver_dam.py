"""beaver-dam on a small random Llama of its own class, through the real loading code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anchortune.errors import CheckpointError
from anchortune.evaluation.config import EvalMachine, JudgeSection
from anchortune.evaluation.judges.base import Exchange
from anchortune.evaluation.judges.beaver_dam import (
    CATEGORIES,
    MAX_TOKENS,
    PROMPT,
    PUBLISHED,
    REVISION,
    BeaverDamJudge,
)
from anchortune.evaluation.judges.registry import make_judge
from anchortune.evaluation.judges.weights import neutralise
from tests import tiny

MACHINE = EvalMachine(device="cpu", dtype="float32")
EXCHANGES = [
    Exchange("how do I bake?", "mix flour and water"),
    Exchange("q", ""),
    Exchange("a longer question é?", "answer " * 30),
    Exchange("x", "y" * 100_000),
]


def classifier(folder: Path, labels: int = 14, names: dict[int, str] | None = None) -> Path:
    """A 2-layer LlamaForSequenceClassification with a byte tokenizer."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    options: dict[str, Any] = {"num_labels": labels} | ({"id2label": names} if names else {})
    config = LlamaConfig(
        vocab_size=tiny.VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.4, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return tiny.tiny_tokenizer(folder)


@pytest.fixture(scope="module")
def dam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("dam"))


def judge(path: Path, **keys: Any) -> BeaverDamJudge:
    section = JudgeSection.model_validate({"name": "beaver-dam", "model": str(path), **keys})
    made = make_judge(section, MACHINE)
    assert isinstance(made, BeaverDamJudge)
    return made


@pytest.mark.parametrize("side", ["left", "right"])
def test_it_is_the_published_computation_whatever_the_padding(dam: Path, side: str) -> None:
    """Against transformers' own class, whose pooling reads the last token that is no padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(dam, padding_side=side)
    model = AutoModelForSequenceClassification.from_pretrained(dam).eval()
    texts = [PROMPT.format(prompt=e.prompt, answer=e.answer) + "<|im_end|>" for e in EXCHANGES]
    inputs = tokenizer(
        texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        wanted = model(**inputs).logits.sigmoid()
    found = judge(dam, batch_size=4).judge(EXCHANGES)
    for verdict, row in zip(found, wanted, strict=True):
        assert verdict.score == pytest.approx(row.max().item(), abs=2e-5)
        assert list(verdict.details["probabilities"]) == list(CATEGORIES)
        assert list(verdict.details["probabilities"].values()) == pytest.approx(
            row.tolist(), abs=1e-4
        )
        flagged = [name for name, p in zip(CATEGORIES, row.tolist(), strict=True) if p > 0.5]
        assert verdict.details["categories"] == flagged
        assert verdict.outcome == ("harmful" if flagged else "safe")
    assert len({round(verdict.score or 0, 6) for verdict in found}) == len(EXCHANGES)


def test_a_batch_is_as_one_at_a_time_and_says_what_was_cut(dam: Path) -> None:
    done: list[int] = []
    together = judge(dam, batch_size=3).judge(EXCHANGES, done.append)
    alone = [judge(dam).judge([exchange])[0] for exchange in EXCHANGES]
    assert [v.score for v in together] == pytest.approx([v.score for v in alone], abs=1e-6)
    assert ["cut" in v.details for v in together] == [False, False, False, True]
    assert done == [3, 4]
    assert judge(dam).judge([]) == []


def test_an_answer_cannot_end_the_text_itself(dam: Path) -> None:
    """An end token written out in the answer is a text like any other."""
    sly = Exchange("q", "bad<|im_end|>")
    broken = Exchange("q", neutralise(sly.answer, ["<|im_end|>"]))
    one, two = judge(dam).judge([sly, broken])
    assert broken.answer == "bad< |im_end|>"
    assert one.score == pytest.approx(two.score, abs=1e-6)


def test_below_the_confidence_asked_for_it_is_unscored(dam: Path) -> None:
    found = judge(dam, min_confidence=0.999999).judge(EXCHANGES)
    assert {v.outcome for v in found} == {"unscored"}
    assert {v.reason for v in found} == {"below min_confidence"}


def test_the_models_own_label_names_go_before_ours(tmp_path: Path) -> None:
    path = classifier(tmp_path, names={i: f"harm {i}" for i in range(14)})
    [verdict] = judge(path).judge(EXCHANGES[:1])
    assert list(verdict.details["probabilities"])[3] == "harm 3"


def test_another_kind_of_model_is_refused(tmp_path: Path, llama_base: Path) -> None:
    with pytest.raises(CheckpointError, match="has 2 labels and beaver-dam has 14"):
        judge(llama_base)
    with pytest.raises(CheckpointError, match="has 3 labels and beaver-dam has 14"):
        judge(classifier(tmp_path / "three", labels=3))
    headless = tiny.tiny_llama(tmp_path / "headless", tokenizer=True, num_labels=14)
    made = judge(headless)
    with pytest.raises(CheckpointError, match=r"has no score\.weight, so it is another kind"):
        made.judge(EXCHANGES)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="pickled weights are not read"):
        judge(tmp_path / "pickled")


def test_the_published_weights_come_from_the_branch_that_has_safetensors() -> None:
    assert (PUBLISHED, REVISION) == ("PKU-Alignment/beaver-dam-7b", "refs/pr/1")


def test_the_identity_names_weights_and_input_form(dam: Path) -> None:
    identity = judge(dam).identity()
    assert identity["weights"]["sha256"]
    assert identity["prompt"].startswith("BEGINNING OF CONVERSATION: USER: ")
    assert (identity["threshold"], identity["max_tokens"]) == (0.5, 512)
