"""No page and no command is forgotten."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages.runner import NOT_RUN, ROOT, parts

#: Pages whose commands are run elsewhere, by what.
ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "docs/trainers.md": "tests/training/test_trainers_page.py",
}
#: Pages of which no test runs the commands, and why. Those of ours are held against their parser,
#: the files that they name against their schema: tests/test_docs_commands.py.
NOT_HERE = {
    "docs/howto/qlora.md": "CUDA",
    "docs/howto/many-gpus.md": "several devices and machines",
    "docs/quickstart.md": "`make quickstart` in `make full`; with another seed half an hour more",
    "experiments/builtin-judge/README.md": "data sets that are fetched, and an hour",
}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [
        *ROOT.glob("docs/**/*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
        *ROOT.glob("examples/*/README.md"),
        *ROOT.glob("experiments/*/README.md"),
    ]
)
SOURCES = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_pages_*.py"))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_with_commands_is_run_or_on_a_list(page: str) -> None:
    commands = [text for kind, _, text in parts(ROOT / page) if kind == "command"]
    left = [text for text in commands if not text.startswith(tuple(NOT_RUN))]
    run = f'"{page}"' in SOURCES or (
        page.startswith("docs/howto/") and f'"{Path(page).stem}"' in SOURCES
    )
    listed = page in ELSEWHERE or page in NOT_HERE
    assert not left or run or listed, f"{page}: {left}"


def test_what_runs_pages_elsewhere_is_there() -> None:
    assert all((ROOT / name).is_file() for name in ELSEWHERE.values())
    assert set(ELSEWHERE) | set(NOT_HERE) <= set(PAGES)
    assert len(re.findall(r"run_page\(", SOURCES)) >= 10
