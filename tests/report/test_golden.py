from __future__ import annotations

from pathlib import Path

import pytest

from tests.report import golden


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    golden.make(folder)
    return folder


@pytest.mark.parametrize("name", golden.MADE)
def test_the_report_is_as_it_was(made: Path, name: str) -> None:
    """If the change is wanted: ``python -m tests.report.golden``, then look at the page."""
    assert (made / name).read_text("utf-8") == (golden.FOLDER / name).read_text("utf-8")
