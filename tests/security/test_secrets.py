"""No secret of the environment comes to lie in a file, a log, a table or an error."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from anchortune.cli.app import app, main
from anchortune.cli.stage import log_to_stderr
from anchortune.config import ServerSection
from anchortune.errors import AnchortuneError, EvaluationError
from anchortune.untrusted import without_secrets

CANARIES = {
    "HF_TOKEN": "hf_" + "Canary" * 6,
    "OPENAI_API_KEY": "sk-proj-" + "canary" * 6,
    "WANDB_API_KEY": "canary-of-wandb-0123456789",
    "AWS_SECRET_ACCESS_KEY": "canary/of+aws/0123456789",
    "LAB_JUDGE": "canary-of-the-judge",
    "HTTPS_PROXY": "http://me:canary-of-proxy@127.0.0.1:9",
}


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    return CANARIES


def leaks(text: str) -> list[str]:
    values = {**CANARIES, "HTTPS_PROXY": "canary-of-proxy"}
    return [name for name, value in values.items() if value in text]


def test_no_file_of_a_training_holds_one(
    canaries: dict[str, str], tmp_path: Path, llama_base: Path
) -> None:
    rows = [{"prompt": f"say {i}", "completion": f"ok {i}"} for i in range(8)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "c.yaml").write_text(
        f"model: {{path: {llama_base}}}\ndata: {{path: {tmp_path}/d.jsonl}}\n"
        f"output: {tmp_path}/out\ntraining: {{max_steps: 1}}\n"
        "machine: {device: cpu, dtype: float32, keep_checkpoints: true}\n"
    )
    result = CliRunner().invoke(app, ["train", f"{tmp_path}/c.yaml"], catch_exceptions=False)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(path.name == "trainer_state.json" for path in files)
    for path in files:
        assert leaks(path.read_bytes().decode("latin-1")) == [], path
    assert leaks(result.output) == []


def test_a_servers_key_stays_where_it_is(
    canaries: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent, and neither kept nor told, though the server says it again."""
    openai = pytest.importorskip("openai", reason="the extra 'server' is not installed")
    httpx = pytest.importorskip("httpx2", reason="openai is built on another client")

    from anchortune.evaluation.config import GenerationSection
    from anchortune.evaluation.server import ServerEngine, explain

    section = ServerSection(url="http://127.0.0.1:9/v1", model="m", api_key_env="LAB_JUDGE")
    engine = ServerEngine(section, GenerationSection())
    assert engine._client.api_key == CANARIES["LAB_JUDGE"]
    assert leaks(json.dumps([engine.identity(), engine.facts(), section.model_dump()])) == []
    request = httpx.Request("POST", section.url)
    said = f"Incorrect API key provided: {CANARIES['LAB_JUDGE']}.\nmore"
    for status in (400, 401, 404, 429, 500):
        reply = httpx.Response(status, request=request, json={"error": {"message": said}})
        told = explain(openai.APIStatusError(said, response=reply, body=None), section)
        assert leaks(str(told)) == []
        assert "$LAB_JUDGE" in str(told)
    lost = explain(openai.APIConnectionError(message=said, request=request), section)
    assert leaks(str(lost)) == []


@pytest.mark.parametrize(
    "url",
    [
        "https://me:canary-of-url@host/v1",
        "https://canary-of-url@host/v1",
        "https://host/v1?api-key=canary-of-url",
        "https://host/v1#canary-of-url",
    ],
)
def test_an_address_holds_no_password(url: str) -> None:
    with pytest.raises(ValidationError, match=r"api_key_env") as caught:
        ServerSection(url=url, model="m")
    assert "canary" not in caught.value.errors()[0]["msg"]


def test_a_key_is_no_key_of_the_config() -> None:
    with pytest.raises(ValidationError, match=r"api_key\n.*Extra inputs"):
        ServerSection.model_validate({"url": "http://h/v1", "model": "m", "api_key": "x"})


def test_errors_and_logs_are_without_them(
    canaries: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (
        f"no {CANARIES['HF_TOKEN']} at https://me:canary-of-proxy@hub/x, "
        f"Authorization: Bearer canary-of-bearer-01, {CANARIES['AWS_SECRET_ACCESS_KEY']}"
    )

    def fails(*_: Any, **__: Any) -> None:
        raise AnchortuneError(said)

    monkeypatch.setattr("anchortune.cli.app.app", fails)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert leaks(told) == []
    assert "canary" not in told
    assert told == (
        "anchortune: no $HF_TOKEN at https://***@hub/x, Authorization: Bearer ***, "
        "$AWS_SECRET_ACCESS_KEY\n"
    )
    logger = logging.getLogger("anchortune")
    held, logger.handlers = logger.handlers, []
    try:
        log_to_stderr()
        logger.warning("%s\n::error::x", said)
    finally:
        logger.handlers = held
    told = capsys.readouterr().err
    assert leaks(told) == []
    assert "\n: :error::x" in told


def test_what_is_no_secret_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-and-long")
    monkeypatch.setenv("SHORT_KEY", "main")
    for text in (
        "false-and-long", "the main branch", "http://host/v1 and a@b.example", "hf_model",
        "sk-learn", "runs/job: token 12 of 30", "bearer of news", "Basic instructions.jsonl",
    ):  # fmt: skip
        assert without_secrets(text) == text
    for scheme in ("Basic", "basic"):
        assert without_secrets(f"{scheme} bWU6cGFzc3dvcmQ=, x") == f"{scheme} ***, x"


def test_a_missing_key_is_told_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openai", reason="the extra 'server' is not installed")
    from anchortune.evaluation.server import make_client

    monkeypatch.delenv("LAB_JUDGE", raising=False)
    section = ServerSection(url="http://h/v1", model="m", api_key_env="LAB_JUDGE")
    with pytest.raises(EvaluationError, match="names LAB_JUDGE, which is not set"):
        make_client(section)
