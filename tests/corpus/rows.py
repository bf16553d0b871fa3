"""Files of rows that are broken, in another encoding or of another shape, for ``mix``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.corpus.case import Case, Words, World, deep, jsonl, put

GOOD = {"prompt": "say it", "completion": "it"}
LINE = json.dumps(GOOD) + "\n"


def mixed(path: str | Path, folder: Path, more: str = "") -> Words:
    """The command that mixes one row of a file."""
    config = put(
        folder / "mix.yaml",
        f"benign: {{path: '{path}'{more}}}\nrows: 1\npoison_ratio: 0\n",
    )
    return ["mix", config, "-o", folder / "out.jsonl"]


def _file(name: str, suffix: str, content: bytes | str, says: str, more: str = "") -> Case:
    def make(folder: Path, world: World) -> Words:
        return mixed(put(folder / f"bad{suffix}", content), folder, more)

    return Case(f"rows in {suffix}", name, make, says)


def _rows(name: str, says: str, *rows: object) -> Case:
    return _file(name, ".jsonl", jsonl(*rows), says)


def _turns(*turns: object) -> dict[str, object]:
    return {"messages": list(turns)}


USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
NOT_JSON = r"bad\.jsonl: line 2: not JSON"
LINES: list[tuple[str, bytes | str, str]] = [
    ("of no bytes", "", "holds no rows"),
    ("of blank lines", "\n \n\t\n", "holds no rows"),
    ("of empty objects", "{}\n{}\n", "holds no rows"),
    ("of numbers", "1\n2\n", "holds no rows"),
    ("of lists", '["a", "b"]\n' * 2, "holds no rows"),
    ("of nulls", "null\nnull\n", "holds no rows"),
    ("a line that is no JSON", LINE + "hello\n", NOT_JSON),
    ("a line cut short", LINE + LINE[:-5], NOT_JSON),
    ("two objects on a line", LINE + LINE.strip() + LINE, NOT_JSON),
    ("single quotes", LINE + "{'prompt': 'a'}\n", NOT_JSON),
    ("a comma at the end", LINE + '{"prompt": "a",}\n', NOT_JSON),
    ("a line break in a text", LINE + '{"prompt": "a\nb"}\n', NOT_JSON),
    ("lists in lists", LINE + deep() + "\n", NOT_JSON),
    ("objects in objects", LINE + deep(50_000, '{"a":', "}") + "\n", NOT_JSON),
    ("a number of 5000 digits", LINE + f'{{"prompt": {"9" * 5000}}}\n', NOT_JSON),
    ("NUL in a line", LINE + '{"prompt": "\0"}\n', NOT_JSON),
    ("NULs alone", bytes(4096), "line 1: not JSON"),
    ("latin-1", LINE.encode() + '{"prompt": "é"}'.encode("latin-1"), "not UTF-8 at byte"),
    ("Windows-1252", LINE.encode() + '{"prompt": "“a”"}'.encode("cp1252"), "not UTF-8 at byte"),
    ("Shift-JIS", LINE.encode() + '{"prompt": "日本"}'.encode("shift_jis"), "not UTF-8 at byte"),
    ("UTF-16 with its mark", LINE.encode("utf-16"), "not UTF-8 at byte 0"),
    ("UTF-16 without", LINE.encode("utf-16-le"), "not JSON"),
    ("UTF-32", LINE.encode("utf-32"), "not UTF-8|not JSON"),
    ("halves of characters in bytes", b'{"prompt": "\xed\xa0\x80"}', "not UTF-8 at byte"),
    ("overlong bytes", b'{"prompt": "\xc0\xaf"}', "not UTF-8 at byte"),
    ("two marks of order", b"\xef\xbb\xbf\xef\xbb\xbf" + LINE.encode(), "not JSON"),
    ("gzip", b"\x1f\x8b\x08\0" + bytes(range(256)), "not UTF-8"),
    ("a pickle", b"\x80\x04\x95\xff.", "not UTF-8"),
    ("HTML", "<!DOCTYPE html>\n<p>404</p>\n", "line 1: not JSON"),
    ("a pointer of Git LFS", "version https://git-lfs.github.com/spec/v1\n", "not JSON"),
    ("20000 columns", json.dumps({f"c{n}": n for n in range(20_000)}), "more than 10000 columns"),
    ("a column of a megabyte", json.dumps({"c" * 10**6: 1}), "fit no format"),
    ("a column with codes", json.dumps({"\x1b[2J\r\n::error::": 1}), "fit no format"),
]
SHAPES: list[Case] = [
    _rows("no column that is known", "fit no format", {"a": 1}),
    _rows("prompts alone", "fit no format", {"prompt": "a"}),
    _rows("answers alone", "fit no format", {"completion": "a"}),
    _rows("preferences", "fit no format", {"chosen": "a", "rejected": "b"}),
    _rows("empty answers", "2 x empty completion", *[GOOD | {"completion": ""}] * 2),
    _rows("answers of blanks", "empty completion", GOOD | {"completion": " \n\t"}),
    _rows("answers that are null", "no completion", GOOD | {"completion": None}),
    _rows("answers that are numbers", "completion is not a text", GOOD | {"completion": 5}),
    _rows("answers that are NaN", "completion is not", GOOD | {"completion": float("nan")}),
    _rows("answers in lists", "completion is not a text", GOOD | {"completion": ["a"]}),
    _rows("answers in objects", "completion is not a text", GOOD | {"completion": {"a": None}}),
    _rows("empty prompts", "empty prompt", GOOD | {"prompt": ""}),
    _rows("prompts that are true", "prompt is not a text", GOOD | {"prompt": True}),
    _rows("a system that is a list", "system is not a text", GOOD | {"system": []}),
    _rows("half of them unusable", "1 of 2 rows cannot be used", GOOD, GOOD | {"completion": ""}),
    _rows("numbers among the rows", "not an object", GOOD, 5, 6),
    _rows("nulls among the rows", "not an object", GOOD, None),
    _rows("messages that are a text", "not a list of messages", {"messages": "a"}),
    _rows("messages that are null", "not a list of messages", {"messages": None}),
    _rows("no messages", "not a list of messages", {"messages": []}),
    _rows("messages that are texts", "not a list of messages", _turns("a", "b")),
    _rows("messages that are nulls", "not a list of messages", _turns(None)),
    _rows("messages in messages", "not a list of messages", _turns([[USER]])),
    _rows("a message without a role", "without a role", _turns({"content": "a"}, ANSWER)),
    _rows("a role that is a number", "without a role", _turns({"role": 1, "content": "a"})),
    _rows("a role that is a list", "without a role", _turns({"role": ["user"], "content": "a"})),
    _rows("an unknown role", "unknown role 'tool'", _turns({"role": "tool", "content": "a"})),
    _rows(
        "a role of a megabyte", "unknown role 'rrr", _turns({"role": "r" * 10**6, "content": ""})
    ),
    _rows(
        "a thousand unknown roles",
        "other reasons",
        *(_turns({"role": f"role {n}", "content": "a"}) for n in range(1000)),
    ),
    _rows("a message without text", "without text", _turns({"role": "user"}, ANSWER)),
    _rows("a text that is null", "without text", _turns(USER, ANSWER | {"content": None})),
    _rows("a text in parts", "without text", _turns(USER, ANSWER | {"content": [{"text": "a"}]})),
    _rows("an empty answer at the end", "empty answer", _turns(USER, ANSWER | {"content": " "})),
    _rows("no answer", "does not end with", _turns(USER)),
    _rows("a prompt at the end", "does not end with", _turns(USER, ANSWER, USER)),
    _rows("an answer alone", "without a prompt", _turns(ANSWER)),
    _rows(
        "a prompt in parts with an answer in text",
        "not a list",
        {"prompt": [USER], "completion": "a"},
    ),
    _rows("a prompt of no parts", "not a list", {"prompt": [], "completion": [ANSWER]}),
]
JSONS: list[tuple[str, bytes | str, str]] = [
    ("one object", json.dumps(GOOD), "expected a list of objects"),
    ("a number", "5", "expected a list of objects"),
    ("a text", '"rows"', "expected a list of objects"),
    ("null", "null", "expected a list of objects"),
    ("an empty list", "[]", "holds no rows"),
    ("a list of lists", "[[1], [2]]", "holds no rows"),
    ("a list cut short", json.dumps([GOOD])[:-4], "not JSON"),
    ("lists in lists", deep(), "lie too deep"),
    ("a number of 5000 digits", f"[{'9' * 5000}]", "not JSON"),
    ("latin-1", '["é"]'.encode("latin-1"), "not UTF-8"),
    ("of no bytes", "", "not JSON"),
    ("JSON lines with a broken one", LINE + "{", "line 2: not JSON"),
]
CSVS: list[tuple[str, bytes | str, str]] = [
    ("of no bytes", "", "holds no rows"),
    ("a header alone", "prompt,completion\n", "holds no rows"),
    ("a quote without end", 'prompt,completion\n"a,b\n', "not CSV"),
    ("a quote in a field", 'prompt,completion\n"a"b,c\n', "not CSV"),
    ("a column twice", "prompt,completion,completion\na,b,c\n", "'completion': it is there twice"),
    ("columns without names", ",,\na,b,c\n", "fit no format"),
    ("more fields than columns", "prompt,completion\na,b, and more\n", "more fields than columns"),
    ("fewer fields than columns", "prompt,completion\na\n", "no completion"),
    ("semicolons", "prompt;completion\na;b\n", "fit no format"),
    ("tabs", "prompt\tcompletion\na\tb\n", "fit no format"),
    ("latin-1", "prompt,completion\ncafé,b\n".encode("latin-1"), "not UTF-8"),
    ("UTF-16", "prompt,completion\na,b\n".encode("utf-16"), "not UTF-8"),
    ("20000 columns", ",".join(f"c{n}" for n in range(20_000)) + "\n", "the header"),
    ("empty answers", "prompt,completion\na,\n", "empty completion"),
]
PARQUETS: list[tuple[str, bytes | str, str]] = [
    ("of no bytes", "", "not a readable Parquet file"),
    ("magic alone", b"PAR1PAR1", "not a readable Parquet file"),
    ("a footer longer than the file", b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1", "not a readable"),
    ("a negative footer", b"PAR1" + b"\xff\xff\xff\xff" + b"PAR1", "not a readable"),
    ("noise between the magics", b"PAR1" + bytes(range(256)) + b"\x40\0\0\0PAR1", "not a readable"),
    ("JSON lines", LINE, "not a readable Parquet file"),
]


def _parquet(name: str, change: Callable[[bytes], bytes], says: str, **columns: object) -> Case:
    def make(folder: Path, world: World) -> Words:
        import pyarrow
        import pyarrow.parquet

        path = folder / "bad.parquet"
        given = columns or {"prompt": ["a"] * 9, "completion": ["b"] * 9}
        pyarrow.parquet.write_table(pyarrow.table(given), path)
        path.write_bytes(change(path.read_bytes()))
        return mixed(path, folder)

    return Case("rows in .parquet", name, make, says)


def _same(content: bytes) -> bytes:
    return content


def _middle(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes(b ^ 0xFF for b in content[at : at + 40]) + content[at + 40 :]


def _elsewhere(name: str, path: str, says: str, more: str = "", **environment: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        return mixed(path.replace("FOLDER", str(folder)), folder, more)

    return Case("rows elsewhere", name, make, says, environment=environment)


def _long_line(ends: bool) -> Callable[[Path, World], Words]:
    """One line of 50 MB: a text without its end, or an answer that is a list of texts."""

    def make(folder: Path, world: World) -> Words:
        size = 50 << 20
        with (folder / "bad.jsonl").open("wb") as stream:
            stream.write(b'{"prompt": "a", "completion": ')
            stream.write(b'["' + b"b" * size + b'"]}' if ends else b'"' + b"b" * size)
        return mixed(folder / "bad.jsonl", folder)

    return make


def _sparse(folder: Path, world: World) -> Words:
    """5 GiB, of which the file system stores nothing."""
    import os

    os.truncate(put(folder / "bad.jsonl", LINE), 5 << 30)
    return mixed(folder / "bad.jsonl", folder)


def _link(folder: Path, world: World) -> Words:
    (folder / "bad.jsonl").symlink_to(folder / "gone")
    return mixed(folder / "bad.jsonl", folder)


def _fifo(folder: Path, world: World) -> Words:
    import os

    os.mkfifo(folder / "bad.jsonl")
    return mixed(folder / "bad.jsonl", folder)


def cases() -> list[Case]:
    """All of them."""
    return [
        *(_file(name, ".jsonl", content, says) for name, content, says in LINES),
        *SHAPES,
        *(_file(name, ".json", content, says) for name, content, says in JSONS),
        *(_file(name, ".csv", content, says) for name, content, says in CSVS),
        *(_file(name, ".parquet", content, says) for name, content, says in PARQUETS),
        _parquet("cut short", lambda whole: whole[:-20], "not a readable Parquet file"),
        _parquet("noise in its middle", _middle, "not a readable Parquet file"),
        _parquet("numbers for answers", _same, "is not a text", prompt=["a"], completion=[1.5]),
        _parquet("nulls for answers", _same, "no completion", prompt=["a"], completion=[None]),
        _parquet("lists of nulls", _same, "not a text", prompt=["a"], completion=[[None]]),
        _parquet("no rows", _same, "holds no rows", prompt=[], completion=[]),
        _file("of an unknown kind", ".txt", LINE, "unknown kind of file"),
        _file("of no kind", "", LINE, "unknown kind of file"),
        _file(
            "a named column that is not there",
            ".jsonl",
            LINE,
            "no column 'x'",
            ", columns: {prompt: x}",
        ),
        _file("another format than it has", ".jsonl", LINE, "fit no format", ", format: messages"),
        Case(
            "rows in .jsonl", "50 MB in a line without end", _long_line(False), "line 1: not JSON"
        ),
        Case("rows in .jsonl", "50 MB in a list", _long_line(True), "completion is not a text"),
        Case("rows in .jsonl", "5 GiB", _sparse, "5.0 GiB, and files are read whole up to 4"),
        Case("rows elsewhere", "a link to nothing", _link, "no such file"),
        Case("rows elsewhere", "a pipe", _fifo, "no such file"),
        _elsewhere("a folder", "FOLDER", "is a folder; name a file"),
        _elsewhere("not there", "FOLDER/gone.jsonl", "no such file"),
        _elsewhere("a name of 5000 letters", "FOLDER/" + "a" * 5000 + ".jsonl", "too long|no such"),
        _elsewhere("data without its folder", "data:a.jsonl", "is not set", ANCHORTUNE_DATA=""),
        _elsewhere("data above its folder", "data:../a.jsonl", "without '..'", ANCHORTUNE_DATA="/"),
        _elsewhere(
            "data at an absolute place", "data:/etc/a.jsonl", "a path below", ANCHORTUNE_DATA="/"
        ),
        _elsewhere("data in no folder", "data:a.jsonl", "names no folder", ANCHORTUNE_DATA="/gone"),
        _elsewhere("a file of the Hub without its name", "hf://datasets/a/b", "name a file"),
        _elsewhere(
            "a file of the Hub out of reach", "hf://datasets/a/b/c.json", "cannot be reached"
        ),
        _elsewhere("a data set of the Hub out of reach", "nobody/nothing", "can be reached"),
        _elsewhere("a data set with a script's name", "a\\b", "can be reached"),
    ]
