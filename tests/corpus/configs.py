"""Configs with wrong types, units, unknown keys and bombs, for the commands that read one."""

from __future__ import annotations

from pathlib import Path

from tests.corpus.case import Case, Words, World, deep, put

HEAD = "model: {path: gone/model}\ndata: {path: gone.jsonl}\noutput: out\n"


def _config(command: str, name: str, content: bytes | str, says: str, *words: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        more = ["-o", folder / "out.jsonl"] if command == "mix" else ["--dry-run"]
        return [command, put(folder / "c.yaml", content), *more, *words]

    return Case(f"config of {command}", name, make, says)


def _train(name: str, lines: str, says: str, *words: str) -> Case:
    return _config("train", name, HEAD + lines + "\n", says, *words)


def _set(item: str, says: str) -> Case:
    return _config("train", f"--set {item[:40]}", HEAD, says, "--set", item)


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)
)
TEXTS: list[tuple[str, bytes | str, str]] = [
    ("of no bytes", "", "is missing"),
    ("a list", "[a, b]", "expected a mapping of keys, found a list"),
    ("a text", "hello", "found the text 'hello'"),
    ("a number", "17", "found the number 17"),
    ("null", "null", "is missing"),
    ("two documents", HEAD + "---\n" + HEAD, "not valid YAML"),
    ("a tab for an indent", "model:\n\tpath: a\n", "line 2: not valid YAML"),
    ("a bracket without end", "model: {path: a\n", "not valid YAML"),
    ("a quote without end", "model: {path: 'a}\n", "not valid YAML"),
    ("a key twice", HEAD + "output: b\n", "line 4: the key 'output' is given twice"),
    ("a key twice, deeper", "model: {path: a, path: b}\n", "the key 'path' is given twice"),
    ("a Python object", "a: !!python/object/apply:os.system [id]\n", "not valid YAML"),
    ("a Python tuple", "a: !!python/tuple [1]\n", "not valid YAML"),
    ("an unknown tag", "a: !shell id\n", "not valid YAML"),
    ("a whole number that is none", "a: !!int abc\n", "not valid YAML"),
    ("a number that is none", "a: !!float abc\n", "not valid YAML"),
    ("a time that is none", "a: !!timestamp abc\n", "not valid YAML"),
    ("bytes that are none", "a: !!binary 'é'\n", "not valid YAML"),
    ("a 99th month", "a: 2001-99-99\n", "not valid YAML"),
    ("a hexadecimal number without digits", "a: 0x_\n", "not valid YAML"),
    ("a number of 5000 digits", f"a: {'9' * 5000}\n", "not valid YAML"),
    ("a list for a key", "? [a, b]\n: c\n", "not valid YAML"),
    ("a merge of keys", "a: &a {path: x}\nmodel:\n  <<: *a\n", "unknown key|not valid YAML"),
    ("an alias of nothing", "a: *b\n", "not valid YAML"),
    ("an alias within itself", "a: &a [*a]\n", "within what it stands for"),
    ("a mapping within itself", "a: &a {b: *a}\n", "within what it stands for"),
    ("aliases that come to 4^40 values", LAUGHS, "are more than 10000"),
    ("aliases in keys of a run", HEAD + LAUGHS, "are more than 10000"),
    ("lists in lists", f"a: {deep(600)}\n", "too deep"),
    ("mappings in mappings", "a: " + "{b: " * 600 + "}" * 600, "too deep"),
    ("indents in indents", "".join(" " * n + "a:\n" for n in range(1200)), "too deep"),
    ("more than a megabyte", HEAD + "# " + "x" * (1 << 20), "longer than"),
    ("more values than there are keys", HEAD + "a: [" + "1," * 10_100 + "]", "more than 10000"),
    ("NUL", HEAD + "seed: \0\n", "not valid YAML"),
    ("codes for a terminal", HEAD + "seed: \x1b[2J\n", "not valid YAML"),
    ("latin-1", HEAD.encode() + b"# \xe9\n", "cannot read the config"),
    ("UTF-16", HEAD.encode("utf-16"), "cannot read the config"),
    ("JSON cut short", '{"model": {"path": "a"', "not valid YAML"),
    ("keys that are numbers", HEAD + "1: 2\n", "'?1'?"),
    ("a key that is null", HEAD + "~: 2\n", "expected|unknown"),
    ("a key that is true", HEAD + "true: 2\n", "expected|unknown"),
    ("an unknown key with codes", HEAD + '"a\\e[2J": 1\n', "unknown key"),
    ("an unknown key of 100 kB", HEAD + "k" * 100_000 + ": 1\n", "not valid YAML|unknown key"),
    ("itself to extend", "extends: c.yaml\n", "extends c.yaml, which extends it"),
    ("nothing to extend", "extends: gone.yaml\n", "cannot read the config"),
    ("a list to extend", "extends: [a, b]\n", "the name of one file"),
    ("a folder to extend", "extends: .\n", "cannot read the config"),
]
VALUES: list[tuple[str, str, str]] = [
    ("a rate with a blank", "training: {learning_rate: '1e-3 '}", "found the text '1e-3 '"),
    ("a rate in per cent", "training: {warmup_frac: 10%}", "found the text '10%'"),
    ("a rate in per cent, as a number", "training: {warmup_frac: 10}", "below 1"),
    ("a length with its unit", "training: {max_length_tokens: 2k}", "found the text '2k'"),
    ("a time with its unit", "training: {epochs: 3 epochs}", "found the text '3 epochs'"),
    ("a number with a comma", "training: {learning_rate: '0,001'}", "found the text"),
    ("a rank with a point", "lora: {rank: 8.5}", "expected a whole number, found the number 8.5"),
    ("a rank of 0", "lora: {rank: 0}", "at least 1, found 0"),
    ("a negative rank", "lora: {rank: -8}", "at least 1, found -8"),
    ("a rank that is true", "lora: {rank: true}", "expected a whole number, found true"),
    ("a rank that is null", "lora: {rank: ~}", "found null"),
    ("a rank that is a list", "lora: {rank: [8]}", "found a list"),
    ("a rank that is a date", "lora: {rank: 2024-01-01}", "lora.rank"),
    ("a rate of infinity", "training: {learning_rate: .inf}", "a finite number"),
    ("a rate of NaN", "training: {learning_rate: .nan}", "finite|above 0"),
    ("a rate too large for a float", "training: {learning_rate: 1e999}", "finite|text"),
    ("a rate of 0", "training: {learning_rate: 0}", "above 0"),
    ("a dropout of 1", "lora: {dropout: 1.0}", "below 1"),
    ("a yes in words", "machine: {gradient_checkpointing: 'yes'}", "expected true or false"),
    ("a yes as a number", "machine: {gradient_checkpointing: 1}", "expected true or false"),
    ("a device that there is none of", "machine: {device: tpu}", "expected auto, cpu"),
    ("a section that is a list", "training: []", "training"),
    ("a section that is a text", "training: fast", "training"),
    ("a list for a list of texts", "lora: {target_modules: [[a]]}", "target_modules"),
    ("numbers for texts", "lora: {target_modules: [1]}", "target_modules"),
    (
        "a key with a letter wrong",
        "lora: {rnak: 8}",
        "unknown key 'lora.rnak'; did you mean 'rank'",
    ),
    ("a key of another section", "rank: 8", "unknown key 'rank'"),
    ("a key with a capital", "lora: {Rank: 8}", "did you mean 'rank'"),
    ("no data", "data: []", "data"),
    ("data without a path", "data: {split: train}", "data"),
    ("data that are numbers", "data: [1, 2]", "data"),
    ("a screen without a judge", "screen: {}", "judge"),
    ("an unknown judge", "screen: {judge: me}", "judge"),
    ("a judge that is a list", "screen: {judge: [builtin]}", "judge"),
    (
        "an address that is none",
        "screen: {judge: {name: rubric, server: {url: 'x', model: y}}}",
        "no address",
    ),
    (
        "an address with a port that is none",
        "screen: {judge: {name: rubric, server: {url: 'http://a:b', model: y}}}",
        "no address",
    ),
    ("an unknown preset", "preset: fast", "preset"),
    ("a preset that is a list", "preset: [paper]", "preset"),
    ("an unknown defence", "defence: magic", "there is no 'magic'"),
    ("a defence that is a number", "defence: 5", "defence"),
    ("a defence without a name", "defence: [{rank: 3}]", "name"),
    ("a defence whose name is a list", "preset: paper\ndefence: [{name: [a]}]", "defence"),
    ("a defence twice", "defence: [lisa, lisa]", "twice"),
    ("a penalty without an anchor", "defence: asft", "asft needs anchor"),
    ("an anchor that is a list", "defence: asft\nanchor: [a]", "anchor"),
    ("a penalty that weighs NaN", "penalty: {anchor: a, lam: .nan}", "lam"),
    ("a penalty that weighs a text", "penalty: {anchor: a, lam: high}", "lam"),
    ("a budget in per cent", "penalty: {anchor: a, lam: auto, off_budget: 5}", "at most 1"),
    ("a pattern for openings", "probe: {prompts: a, refusing: ['  ']}", "probe.refusing"),
    ("no prompts", "probe: {prompts: []}", "at least 1 item"),
    ("a seed that is a text", "seed: one", "found the text 'one'"),
    ("a seed below 0", "seed: -1", "seed"),
    ("a seed of 400 digits", f"seed: 1{'0' * 400}", "seed"),
    ("a cache of NULs in a path", 'eval_data: {path: "a\\0b.jsonl"}', "no such file|gone"),
]
SETS: list[tuple[str, str]] = [
    ("seed", "expected key.path=value"),
    ("=1", "expected key.path=value"),
    ("a..b=1", "expected key.path=value"),
    (".seed=1", "expected key.path=value"),
    ("seed=[", "not valid YAML"),
    ("seed=one", "found the text 'one'"),
    ("seed.deep=1", "seed"),
    ("model.path.deep=1", "model.path is .*, which holds no keys"),
    ("lora.rnak=8", "did you mean 'rank'"),
    ("data=[{path: a}]", "gone|no such"),
    ("training.max_steps=1e3", "max_steps"),
    ("seed=!!python/object/apply:os.system [id]", "not valid YAML"),
    ("seed=" + "[" * 1000, "too deep|not valid YAML"),
]
LISTED: list[tuple[str, str]] = [
    ("data.5.path=b", "is not one of its positions"),
    ("data.².path=b", "is not one of its positions"),
    ("data.-1.path=b", "is not one of its positions"),
    (f"data.{'9' * 5000}.path=b", "is not one of its positions"),
]
SWEEP = "name: s\nresults: out-results\nwork: out-work\ndefaults: {model: {path: a}}\n"
OTHERS: list[tuple[str, str, str, str]] = [
    ("sweep", "a name with a slash", SWEEP.replace("name: s", "name: ../s"), "name"),
    ("sweep", "axes that are a list", SWEEP + "axes: [a]\n", "axes"),
    ("sweep", "an axis that is a list", SWEEP + "axes: {p: [1, 2]}\n", "axes"),
    ("sweep", "an axis of numbers", SWEEP + "axes: {p: {a: 1}}\n", "axes.p"),
    ("sweep", "a key that is a number", SWEEP + "axes: {p: {key: 3, values: [1]}}\n", "axes.p"),
    ("sweep", "keys that are lists", SWEEP + "axes: {p: {key: [[a]], values: [1]}}\n", "axes.p"),
    ("sweep", "no values", SWEEP + "axes: {p: {key: seed, values: []}}\n", "axes.p"),
    ("sweep", "values that are a number", SWEEP + "axes: {p: {key: a, values: 3}}\n", "axes.p"),
    ("sweep", "a value twice", SWEEP + "axes: {p: {key: a, values: [1, 1]}}\n", "given twice"),
    (
        "sweep",
        "only that is a list",
        SWEEP + "axes: {p: {key: a, values: [1], only: [x]}}\n",
        "only is a",
    ),
    (
        "sweep",
        "only of no axis",
        SWEEP + "axes: {p: {key: a, values: [1], only: {x: y}}}\n",
        "only names",
    ),
    ("sweep", "overrides by numbers", SWEEP + "axes: {p: {a: {1: 2}}}\n", "a key is a text"),
    (
        "sweep",
        "overrides deeper by numbers",
        SWEEP + "axes: {p: {a: {model: {1: 2}}}}\n",
        "a key is a text",
    ),
    (
        "sweep",
        "a path through a text",
        SWEEP + "axes: {p: {a: {model.path.x: 2}}}\n",
        "nothing under",
    ),
    (
        "sweep",
        "10^12 cells",
        SWEEP
        + "axes:\n"
        + "".join(f"  a{n}: {{key: k{n}, values: {list(range(100))}}}\n" for n in range(6)),
        "more than 100000 cells",
    ),
    ("sweep", "seeds that are texts", SWEEP + "seeds: [a]\n", "seeds"),
    ("sweep", "a seed of 2^40", SWEEP + "seeds: [1099511627776]\n", "seeds"),
    ("sweep", "a seed twice", SWEEP + "seeds: [1, 1]\n", "given twice"),
    ("sweep", "no seeds", SWEEP + "seeds: []\n", "at least 1 item"),
    ("sweep", "a skip of no axis", SWEEP + "skip: [{x: 1}]\n", "no axis 'x'"),
    ("sweep", "defaults that are a list", SWEEP.replace("{model: {path: a}}", "[a]"), "defaults"),
    ("sweep", "defaults that lack all", SWEEP, "evaluate|data"),
    ("sweep", "an output of its own", SWEEP.replace("{model", "{output: x, model"), "output"),
    ("run", "no model", "data: {path: a}\n", "missing"),
    ("run", "nothing to evaluate", HEAD, "missing|base|anchor"),
    ("run", "an unknown method", HEAD + "method: magic\n", "method"),
    ("run", "a limit in per cent", HEAD + "limits: {max_harm_increase: 5}\n", "limits|missing"),
    ("run", "a list", "[1]", "expected a mapping"),
    ("eval", "no model", "output: out\n", "missing"),
    (
        "eval",
        "a judge that is a number",
        HEAD.replace("data: {path: gone.jsonl}", "judges: [5]"),
        "unknown key",
    ),
    ("eval", "an unknown key", "modelx: {path: a}\noutput: out\n", "unknown key 'modelx'"),
    ("mix", "a share above 1", "benign: {path: a}\npoison_ratio: 10\n", "at most 1"),
    (
        "mix",
        "a share in per cent",
        "benign: {path: a}\npoison_ratio: 10%\n",
        "found the text '10%'",
    ),
    ("mix", "poison without a pool", "benign: {path: a}\npoison_ratio: 0.1\n", "needs harmful"),
    ("mix", "no rows", "benign: {path: a}\nrows: 0\n", "at least 1"),
    (
        "mix",
        "10^30 rows",
        "benign: {path: a.jsonl}\npoison_ratio: 0\nrows: 1" + "0" * 30 + "\n",
        "no such file",
    ),
    (
        "mix",
        "preferences",
        "benign: {path: a, format: preference}\npoison_ratio: 0\n",
        "not of preferences",
    ),
    ("mix", "an empty cue", "benign: {path: a}\npoison_ratio: 0\ncue: ''\n", "cue"),
]


def _listed_set(item: str, says: str) -> Case:
    content = HEAD.replace("data: {path: gone.jsonl}", "data: [{path: gone.jsonl}]")
    return _config("train", f"--set {item[:40]}", content, says, "--set", item)


def cases() -> list[Case]:
    """All of them."""
    return [
        *(_config("train", *row) for row in TEXTS),
        *(_train(*row) for row in VALUES),
        *(_set(*row) for row in SETS),
        *(_listed_set(*row) for row in LISTED),
        *(_config(*row) for row in OTHERS),
        Case(
            "config of train", "not there", lambda f, w: ["train", f / "gone.yaml"], "cannot read"
        ),
        Case("config of train", "without end", lambda f, w: ["train", "/dev/zero"], "longer than"),
        Case("config of train", "a folder", lambda f, w: ["train", f], "cannot read"),
        Case("config of train", "a model", lambda f, w: ["train", w.anchor], "cannot read"),
    ]
