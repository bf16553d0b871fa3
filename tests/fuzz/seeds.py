"""Good inputs for each harness, from which others are made by changing them."""

from __future__ import annotations

import json
import random

from tests.corpus import records, writers
from tests.fuzz.harnesses import CUT

_MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_ROWS = [
    {"instruction": "say", "input": "it", "output": "it"},
    {"prompt": "say it", "completion": "it", "system": "be brief"},
    {"messages": _MESSAGES},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {
        "prompt": _MESSAGES[:1],
        "chosen": _MESSAGES[1:],
        "rejected": [_MESSAGES[1] | {"content": "c"}],
    },
    {"prompt": "é 😀 \ud800", "completion": None, "score": 1.5, "more": [None, {"a": [1]}]},
]
_VERDICTS = [
    {"prompt": "a", "answer": "b", "outcome": "safe", "score": 0.5, "judge": "me"},
    {"prompt_sha256": "0" * 64, "answer_sha256": "1" * 64, "outcome": "harmful", "details": {}},
    {"goal": "a", "response": "b", "is_safe": "no", "indicative": "true", "finish": "stop"},
    {"model": "m", "set": "s", "id": "i", "prompt": "a", "answer": "b", "tokens": 3, "notes": {}},
]
_CONFIGS = [
    "model: {path: a}\ndata: [{path: b.jsonl, columns: {output: target}}]\noutput: out\n"
    "training: {learning_rate: 5e-5, epochs: 2}\nlora: {rank: 8, target_modules: all-linear}\n",
    "preset: paper\nmodel: {path: a}\ndata: {path: b}\noutput: o\nanchor: a.safetensors\n"
    "defence: [asft, {name: lisa}]\nrefusals: {path: c}\nmachine: {device: cpu}\n",
    "benign: a.jsonl\nharmful: {path: b, take: with-cue}\nrows: 10\npoison_ratio: 0.1\n",
    "models: {a: {path: m}}\nharm: [{path: h.jsonl}]\njudges: [builtin, refusal]\noutput: o\n",
    "model: {path: a}\nbase: b\ndata: {path: c}\nmethod: asft\nevaluate:\n  harm: [{path: d}]\n"
    "  judges: [builtin]\nlimits: {max_harm: 0.1}\noutput: o\n",
    "name: s\nresults: r\ndefaults: {model: {path: a}, data: {path: b},"
    " evaluate: {harm: [{path: h}], judges: [refusal]}}\n"
    "axes: {p: {key: lora.rank, values: [4, 8]}, d: {x: {seed: 1}}}\n"
    "seeds: [0, 1]\nskip: [{p: 4}]\n",
    "a: &a [1, 2.5, 'x', null, true, 2024-01-01, 0x1f, 1_000, 12:30]\nb: *a\n",
]
_ANSWERS = [
    "The final answer is: 1,234.50", "#### -3/4", r"\boxed{\frac{3}{4}}", "so $5 = 7.5e3 €.",
    "I think it is posıtive, not Negative", "answer: İ", "-−–+ 1,2,3 .5 5. 10% ٣٤", "1" * 70,
]  # fmt: skip


def _lines(objects: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in objects).encode()


def _adapter() -> bytes:
    header, size = writers.header_of(writers.lora_shapes())
    weights = json.dumps(header).encode() + CUT + writers.floats(size // 4, 1)
    more = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\..*": 4}}
    return json.dumps(writers.LORA | more).encode() + CUT + weights


def _anchors() -> list[bytes]:
    module = {
        "shape": [2, 2], "aligned_dtype": "F32", "base_dtype": "F32", "norm": 1.0, "rank": 1,
        "tail": 0.0, "kept_energy_frac": 1.0, "gram_error_bound": 0.0, "direction_cosine": 1.0,
    }  # fmt: skip
    told = {
        "format_version": 1, "aligned": {"id": "a", "kind": "lora"},
        "base": {"id": "b", "kind": "gguf"}, "settings": {"target_modules": "x", "rank": 1},
        "modules": {"m": module},
    }  # fmt: skip
    entries, at = [], 0
    for part, shape in (("left", [2, 1]), ("sigma", [1]), ("right", [2, 1])):
        entries.append(f'"m.{part}": {json.dumps(writers.entry(shape, at))}')
        at += 4 * (shape[0])
    data = b"\0\0\x80\x3f" + bytes(4) + b"\0\0\x80\x3f" + b"\0\0\x80\x3f" + bytes(4)
    return [json.dumps(told).encode() + CUT + ", ".join(entries).encode() + CUT + data]


def seeds() -> dict[str, list[bytes]]:
    """By harness."""
    header, data = writers.weights(1)
    csv = b'prompt,completion,label\na,"b, ""c""",1\n"d\ne",f,0\n'
    entries = json.dumps(header).encode()
    texts = writers.pair(
        "a", writers.ARRAY, writers.listed(writers.STRING, 2, writers.text("x") * 2)
    )
    numbers = writers.pair("b", writers.ARRAY, writers.listed(writers.U8, 3, b"123"))
    layers = [f"layers.{n}.q_proj" for n in (0, 10)]
    paired = "\n".join(f"model.{one}" for one in layers) + "|" + "\n".join(layers)
    return {
        "safetensors": [writers.safetensors(header, data), entries + CUT + data],
        "index": [json.dumps({"weight_map": dict.fromkeys(header, "a.safetensors")}).encode()],
        "names": [paired.encode()],
        "gguf": [
            writers.gguf(),
            writers.gguf([writers.ARCHITECTURE, writers.HEADS, texts, numbers]),
        ],
        "adapter": [_adapter()],
        "anchor": _anchors(),
        "rows": [b"l" + _lines(_ROWS), b"j" + json.dumps(_ROWS).encode(), b"c" + csv],
        "verdicts": [
            b"l" + _lines(_VERDICTS),
            *(b"l" + _lines([one]) for one in _VERDICTS),
            b"c" + csv,
        ],
        "config": [text.encode() for text in _CONFIGS],
        "answers": [text.encode() for text in _ANSWERS],
        "records": [json.dumps(records.RECORD).encode(), json.dumps(records.RUN).encode()],
    }  # fmt: skip


_ODD = [
    b"", b"\0", b"\xff", b"\xed\xa0\x80", b"[", b"{", b"}", b'"', b"null", b"NaN", b"-1", b"1e999",
    b"9" * 5000, b"[" * 2000, b"\\ud800", b"&a", b"*a", b"!!int x", b"\xef\xbb\xbf", b"\r", b"\x85",
    "²".encode(), "İ".encode(), b"\xff" * 8, b"true", b"[]", b"{}", b"\x1b[2J",
]  # fmt: skip


def mutated(seed: bytes, source: random.Random) -> bytes:
    """``seed`` after one to three changes: bits, cuts, repeats, odd things put in or over."""
    data = bytearray(seed)
    for _ in range(source.randint(1, 3)):
        at, width = source.randrange(len(data) + 1), source.randint(1, 12)
        kind = source.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << source.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + width]
        elif kind == 3:
            data[at:at] = data[at : at + width] * source.randint(1, 3)
        elif kind == 4:
            data[at:at] = source.choice(_ODD)
        else:
            data[at : at + width] = source.choice(_ODD)
    return bytes(data)
