"""The how-to pages run as they stand, on a tiny model.

A page makes its files itself, in an empty folder beside two checkpoints: a block of YAML or Python
by its first line (``# name.yaml``), data by ``title="name"``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.pages import runner

#: Pages that run as they stand on a tiny model. Not these: ``qlora`` needs CUDA, ``many-gpus``
#: several devices and machines, ``index`` installs a package.
RUN = ["own-data", "own-judge", "own-task", "mend", "existing-script", "ci", "service"]
#: Four prompts are too few for a gate.
ENDS_IN = {"anchortune gate runs/release": 4}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the jobs of `service` load the real judge
@pytest.mark.parametrize("page", RUN)
def test_a_page_runs_from_an_empty_folder(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A script of the page starts the command as one does in an environment that is active.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    for seed, name in enumerate(("base-model", "aligned-model")):
        # Wide enough that an anchor of the default rank leaves something off it.
        tiny.tiny_llama(Path(name), seed=seed, tokenizer=True, hidden_size=128)
    printed = runner.run_page(f"docs/howto/{page}.md", files=True, codes=ENDS_IN)
    assert not any("bad data" in text for text in printed)
