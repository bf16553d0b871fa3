"""The documentation names what the code has: operators, log keys, options, config keys."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer

from anchortune.config import AlignConfig, TrainConfig
from tests.pages.runner import site_hook

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text("utf-8")


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """The mkdocs hook that fills in the tables of config keys."""
    return site_hook("generate_config_reference")


def test_every_operator_and_log_key_is_explained() -> None:
    from anchortune.maths.operators import OPERATORS
    from anchortune.training import pull, seam

    method = page("method")
    assert all(f"| `{operator}` |" in method for operator in OPERATORS)
    keys = set(
        re.findall(r'"(asft/\w+)"', inspect.getsource(seam) + inspect.getsource(pull.Pull.logs))
    )
    assert len(keys) >= 7
    assert keys == set(re.findall(r"`(asft/\w+)`", method))


def test_every_keyword_of_attach_is_explained() -> None:
    from anchortune import attach

    names = set(inspect.signature(attach).parameters) - {"trainer"}
    assert all(f"| `{name}` |" in page("trainers") for name in names)


def test_every_option_of_anchor_build_is_explained() -> None:
    from anchortune.cli.anchor import app

    build = typer.main.get_command(app).commands["build"]  # type: ignore[attr-defined]
    options = {flag for p in build.params for flag in p.opts if flag.startswith("--")}
    assert "--target-modules" in options
    assert not [o for o in options - {"--output"} if f"`{o}`" not in page("anchors")]


def test_every_config_key_is_in_its_table(hook: ModuleType) -> None:
    text = hook.fill(page("training"))
    assert "<!--" not in text
    for kind in (TrainConfig, AlignConfig):
        for name, field in kind.model_fields.items():
            assert f"| `{name}` |" in text
            section = hook._section(field.annotation)
            for key, inner in (section.model_fields if section else {}).items():
                assert f"| `{key}` |" in text
                assert inner.description is None or inner.description in text
    assert text.count("| `beta` |") == 2  # of dpo and of grpo
    assert text.count("| `learning_rate` |") == 1
    assert "| `training.learning_rate` | `5e-05` |" in text


def test_a_key_without_a_description_is_an_error(hook: ModuleType) -> None:
    from pydantic import BaseModel

    class Bare(BaseModel):
        key: int = 1

    with pytest.raises(ValueError, match=r"Bare\.key has no description"):
        hook.render(Bare)


def test_links_between_pages_lead_to_headings() -> None:
    for source in DOCS.glob("*.md"):
        for name, anchor in re.findall(r"\]\((\w+)\.md(?:#([\w-]+))?\)", source.read_text("utf-8")):
            target = page(name)
            slugs = {  # as the site makes them: letters that are not ASCII are left out
                re.sub(r"[^\w\s-]", "", line.lstrip("# ").lower(), flags=re.ASCII)
                .strip()
                .replace(" ", "-")
                for line in target.splitlines()
                if line.startswith("#")
            }
            assert not anchor or anchor in slugs, f"{source.name}: {name}.md#{anchor}"


def test_every_key_of_an_evaluation_is_in_its_table(hook: ModuleType) -> None:
    from anchortune.evaluation.config import (
        CandidateSection,
        EvalConfig,
        JudgeSection,
        PromptSetSection,
        ServerSection,
        TaskSection,
    )

    text = hook.fill(page("evaluation"))
    assert "<!--" not in text
    for kind in (
        EvalConfig, CandidateSection, JudgeSection, PromptSetSection, ServerSection, TaskSection
    ):  # fmt: skip
        for name, field in kind.model_fields.items():
            assert f"| `{name}` |" in text
            assert field.description is None or field.description.split("|")[0] in text
    assert "| `models` | section `models` for each name | *required* |" in text
    assert "| `judge` | section `server` |" in text  # of a task; its table stands under server
    assert text.count("| `concurrency` |") == 1


def test_every_kind_of_measure_is_explained() -> None:
    from typing import get_args

    from anchortune.evaluation.results import Kind

    assert all(f"| `{kind}` |" in page("evaluation") for kind in get_args(Kind))


def test_every_key_of_a_job_is_in_its_table(hook: ModuleType) -> None:
    from anchortune.jobs.config import AnchorSection, BaseSection, JobConfig
    from anchortune.report.gate import Limits

    text = hook.fill(page("jobs"))
    assert "<!--" not in text
    own = {name for name in JobConfig.model_fields if name not in TrainConfig.model_fields}
    for name in (*own, *AnchorSection.model_fields, *BaseSection.model_fields):
        assert f"| `{name}` |" in text
    assert all(f"| `{name}` |" in text for name in Limits.model_fields)
    shared = set(JobConfig.model_fields) - own
    assert all(f"`{name}`" in text for name in shared)


def test_every_key_of_a_mix_is_in_its_table(hook: ModuleType) -> None:
    from anchortune.config_mix import MixSection, MixSource

    text = hook.fill(page("data-mixes"))
    assert "<!--" not in text
    assert all(
        f"| `{name}` |" in text for name in (*MixSection.model_fields, *MixSource.model_fields)
    )
    assert r'`"\n\nAssistant:"`' in text


def test_the_site_is_built_strict() -> None:
    """With ``--quiet`` mkdocs counts no warning, and ``--strict`` lets everything through."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    [build] = [line for line in makefile.splitlines() if "mkdocs build" in line]
    assert "--strict" in build
    assert "--quiet" not in build
