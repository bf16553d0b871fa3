"""What is said of a model that lacks something."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchortune.config import ModelSection
from anchortune.errors import CheckpointError
from anchortune.models.load import load_tokenizer
from tests import tiny


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    model = tiny.tiny_llama(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"there is no tokenizer in it.*save_pretrained"):
        load_tokenizer(ModelSection(path=str(model)))
