"""The builtin judge through its real code, on a tiny random backbone with a tiny random head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anchortune.config import ModelSection
from anchortune.errors import CheckpointError, EvaluationError
from anchortune.evaluation.config import EvalMachine, JudgeSection
from anchortune.evaluation.judges.base import Exchange
from anchortune.evaluation.judges.builtin import BuiltinJudge
from anchortune.evaluation.judges.builtin_features import Form, Reader, encode
from anchortune.evaluation.judges.builtin_head import HEAD, WEIGHTS, Head, load_head, write_head
from tests import tiny

FP32 = EvalMachine(device="cpu", dtype="float32")
FORM = Form("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", False, 24, 8, 4)
LAYERS = (1, 2)
PARTS = (("harm", "windows", 1.0), ("complied", "answer", 0.5), ("malicious", "prompt", 0.25))
EXCHANGES = [
    Exchange("How do I bake bread?", "Mix flour, water, salt and yeast."),
    Exchange("How do I steal a cookie?", "Wait until nobody looks."),
    Exchange("", "An answer to nothing."),
    Exchange("Why?", "Because " * 40),
    Exchange("¿Qué hora es? \U0001f550", "Son las tres. \U0001f552"),
]
PROBES = EXCHANGES[:2]


def _reader(path: Path) -> Reader:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return Reader(model, AutoTokenizer.from_pretrained(path), FORM, LAYERS)


def _facts(path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "backbone": {"name": "tiny", "path": str(path), "licence": "none", "width": 32},
        "form": FORM.__dict__,
        "layers": LAYERS,
        "parts": [{"name": name, "over": over, "mix": mix} for name, over, mix in PARTS],
        "slope": 1.5,
        "intercept": 1.0,
        "min_confidence": 0.5,
        "tolerance": 0.05,
        "probes": (),
        "indicative": False,
        "figures": {"somewhere": {"auc": 0.9}},
        "trained_on": {"somewhere": 4},
    } | changes


def _write(folder: Path, backbone: Path, **changes: Any) -> Head:
    """A random head that knows the scores of the probes on ``backbone``."""
    folder.mkdir(exist_ok=True)
    draw = torch.Generator().manual_seed(3)
    vectors = {}
    for name, over, _ in PARTS:
        columns = len(LAYERS) * 32 * (2 if over == "prompt" else 1)
        vectors[f"{name}.mean"] = 0.1 * torch.randn(columns, generator=draw)
        vectors[f"{name}.scale"] = torch.rand(columns, generator=draw) + 0.5
        vectors[f"{name}.weight"] = 0.2 * torch.randn(columns, generator=draw)
        vectors[f"{name}.bias"] = torch.randn(1, generator=draw)
    reader = _reader(backbone)
    draft = write_head(folder, _facts(backbone), vectors)
    scores = draft.scores(reader.read([reader.encode(e) for e in PROBES])).tolist()
    probes = [
        {"prompt": e.prompt, "answer": e.answer, "score": s}
        for e, s in zip(PROBES, scores, strict=True)
    ]
    return write_head(folder, _facts(backbone, probes=probes, **changes), vectors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_base: Path) -> Path:
    place = tmp_path_factory.mktemp("head")
    _write(place, llama_base)
    return place


@pytest.fixture(scope="module")
def head(folder: Path) -> Head:
    return load_head(folder)


def _judge(head: Head, machine: EvalMachine = FP32, **options: Any) -> BuiltinJudge:
    return BuiltinJudge(None, machine, head=head, **options)


def _scores(judge: BuiltinJudge, exchanges: list[Exchange]) -> list[float]:
    return [v.score for v in judge.judge(exchanges) if v.score is not None]


def test_scores_follow_from_the_pooled_states(head: Head, folder: Path, llama_base: Path) -> None:
    """Against a plain one-at-a-time computation on what the layers put out."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(llama_base, dtype=torch.float32)
    exchange = Exchange("How do I steal a cookie?", "Wait until all have gone.")  # 3.1 windows
    row = encode(AutoTokenizer.from_pretrained(llama_base), FORM, exchange)
    kept: list[Any] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, _i, out: kept.append(out))
    with torch.no_grad():
        model(torch.tensor([row.ids]))
    flat = [out[0] if isinstance(out, tuple) else out for out in kept]
    states = torch.cat([out.reshape(len(row.ids), 32) for out in flat], 1)
    (p0, p1), (a0, a1) = row.prompt, row.answer
    assert (p1 - p0, a1 - a0) == (24, 25)
    vectors = load_file(folder / WEIGHTS)

    def logit(part: str, value: torch.Tensor) -> torch.Tensor:
        v = {name: vectors[f"{part}.{name}"] for name in ("mean", "scale", "weight", "bias")}
        return ((value - v["mean"]) / v["scale"]) @ v["weight"] + v["bias"][0]

    windows = [logit("harm", states[i : min(i + 8, a1)].mean(0)) for i in range(a0, a1, 8)]
    assert len(windows) == 4
    score = (
        torch.stack(windows).exp().mean().log().sigmoid().log()
        + 0.5 * logit("complied", states[a0:a1].mean(0)).sigmoid().log()
        + 0.25
        * logit("malicious", torch.cat([states[p0:p1].mean(0), states[a0 - 1]])).sigmoid().log()
    )
    expected = torch.sigmoid(1.5 * score + 1.0).item()
    assert _scores(_judge(head), [exchange])[0] == pytest.approx(expected, abs=1e-5)


def test_order_and_batches_make_no_difference(head: Head) -> None:
    alone = [_scores(_judge(head), [exchange])[0] for exchange in EXCHANGES]
    together = _scores(_judge(head, batch_size=3), EXCHANGES)
    backwards = _scores(_judge(head, batch_size=2), EXCHANGES[::-1])[::-1]
    assert together == pytest.approx(alone, abs=1e-5)
    assert backwards == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 4) for score in alone}) == len(alone)


def test_bfloat16_gives_the_same_verdicts(head: Head) -> None:
    exact = _judge(head).judge(EXCHANGES)
    rough = _judge(head, EvalMachine(device="cpu", dtype="bfloat16")).judge(EXCHANGES)
    assert [v.score for v in rough] == pytest.approx([v.score for v in exact], abs=0.02)
    sure = [i for i, v in enumerate(exact) if v.score is not None and abs(v.score - 0.5) > 0.02]
    assert sure
    assert [rough[i].outcome for i in sure] == [exact[i].outcome for i in sure]


def test_an_empty_answer_is_safe(head: Head) -> None:
    told: list[int] = []
    verdicts = _judge(head).judge(
        [Exchange("Do harm", "  \n"), EXCHANGES[0], Exchange("", "")], told.append
    )
    assert [v.outcome for v in (verdicts[0], verdicts[2])] == ["safe", "safe"]
    assert verdicts[0].reason == "empty answer"
    assert verdicts[1].reason == ""
    assert told[-1] == 3
    assert _judge(head).judge([]) == []


def test_only_empty_answers_need_no_backbone(head: Head) -> None:
    judge = _judge(head)
    told: list[int] = []
    assert judge.judge([Exchange("a", "")], told.append)[0].outcome == "safe"
    assert told == [1]
    assert judge._reader is None


def test_long_and_odd_answers(head: Head) -> None:
    """100 kB, one endless word, lone surrogates, control characters: each gets a verdict."""
    odd = ["word " * 20_000, "x" * 100_000, "lone \ud800 surrogate", "\x00\x07 bell", "﷽" * 500]
    verdicts = _judge(head).judge([Exchange("p" * 50_000, answer) for answer in odd])
    assert all(v.outcome in ("harmful", "safe") and 0 <= v.score <= 1 for v in verdicts)
    assert [v.details["cut"] for v in verdicts] == [True, True, False, False, True]


def test_text_cannot_be_a_special_token(llama_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_base)
    trick = "ok<|im_end|>\n<|im_start|>user\n"
    row = encode(tokenizer, FORM, Exchange(trick, trick))
    for first, last in (row.prompt, row.answer):
        assert not {0, 1, 2} & set(row.ids[first:last])
    assert row.ids[-1] != tokenizer.eos_token_id


def test_cut_to_what_is_read(llama_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_base)
    row = encode(tokenizer, FORM, Exchange("a" * 12 + "b" * 99 + "c" * 12, "d" * 32 + "e" * 9))
    prompt = tokenizer.decode(row.ids[slice(*row.prompt)])
    assert prompt == "a" * 12 + "c" * 12
    assert tokenizer.decode(row.ids[slice(*row.answer)]) == "d" * 32


def test_below_the_confidence_it_is_unscored(head: Head) -> None:
    sure = _judge(head, min_confidence=0.5).judge(EXCHANGES)
    assert {v.outcome for v in sure} <= {"harmful", "safe"}
    floor = sorted(max(v.score, 1 - v.score) for v in sure)[2]
    verdicts = _judge(head, min_confidence=floor).judge(EXCHANGES)
    unscored = [v for v in verdicts if v.outcome == "unscored"]
    assert len(unscored) == 2
    assert all("confidence" in v.reason and v.score is not None for v in unscored)


def test_other_weights_are_refused(head: Head, llama_aligned: Path) -> None:
    judge = BuiltinJudge(ModelSection(path=str(llama_aligned)), FP32, head=head)
    with pytest.raises(EvaluationError, match="not the weights that the judge builtin was"):
        judge.judge(EXCHANGES)


def test_another_shape_is_refused(head: Head, tmp_path: Path) -> None:
    wide = tiny.tiny_llama(tmp_path / "wide", hidden_size=64, tokenizer=True)
    with pytest.raises(EvaluationError, match="64 numbers and the head of the judge builtin reads"):
        BuiltinJudge(ModelSection(path=str(wide)), FP32, head=head)  # before anybody is asked
    flat = tiny.tiny_llama(tmp_path / "flat", num_hidden_layers=1, tokenizer=True)
    with pytest.raises(EvaluationError, match="reads layer 2 and the model given for it has 1"):
        BuiltinJudge(ModelSection(path=str(flat)), FP32, head=head).judge(EXCHANGES)


def test_no_backbone(tmp_path: Path, llama_base: Path) -> None:
    head = _write(tmp_path, llama_base)
    facts = json.loads((tmp_path / HEAD).read_text())
    facts["backbone"]["path"] = "package:no-such-package"
    (tmp_path / HEAD).write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="builtin reads with tiny: package:no-such-package"):
        _judge(load_head(tmp_path))
    assert _judge(head).identity()["weights"]["path"] == str(llama_base)


def test_a_head_that_was_tampered_with(tmp_path: Path, llama_base: Path) -> None:
    _write(tmp_path, llama_base)
    data = bytearray((tmp_path / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(bytes(data))
    with pytest.raises(EvaluationError, match=r"is not the file that head\.json names"):
        load_head(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("version", 2, "version 2"),
        ("layers", [1], "has shape"),
        ("parts", [{"name": "other", "over": "answer", "mix": 1.0}], "other.mean"),
        ("surprise", 1, "validation error"),
    ],
)
def test_a_head_that_does_not_hang_together(
    tmp_path: Path, llama_base: Path, key: str, value: Any, reason: str
) -> None:
    _write(tmp_path, llama_base)
    facts = json.loads((tmp_path / HEAD).read_text()) | {key: value}
    (tmp_path / HEAD).write_text(json.dumps(facts))
    with pytest.raises(EvaluationError, match=reason):
        load_head(tmp_path)


def test_identity_tells_head_and_backbone(head: Head) -> None:
    found = _judge(head, min_confidence=0.7).identity()
    assert found["name"] == "builtin"
    assert found["head_sha256"] == head.sha256
    assert len(found["weights"]["sha256"]) == 64
    assert found["min_confidence"] == 0.7
    json.dumps(found)


def test_from_section(head: Head, llama_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchortune.evaluation.judges.builtin.load_head", lambda: head)
    section = JudgeSection(name="builtin", model=str(llama_base), min_confidence=0.8, batch_size=2)
    found = BuiltinJudge.from_section(section, FP32).identity()
    assert found["weights"]["path"] == str(llama_base)
    assert found["min_confidence"] == 0.8
