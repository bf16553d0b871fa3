"""Fixtures every test may use; the network is closed by pytest-socket and offline mode."""

from __future__ import annotations

import gc
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face import
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Before torch: on tiny tensors more threads gain nothing, and on busy cores they spin on each other
# until a test of seconds takes minutes. `make full`, whose slow tests gain, asks for all cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import tiny

# Whether a test passes is not to depend on how busy the machine is.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


_frozen = 0


def pytest_runtest_setup() -> None:
    """What imports have left is taken out of the garbage collector's sight.

    It is a million objects that nobody frees, and the collector would look at each of them in every
    collection: accelerate asks for a whole one after every training, and an evaluation for one
    after every model, which is a third of the time that a tiny one takes.
    """
    global _frozen
    if len(sys.modules) > _frozen + 50:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same state of torch's global generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is unpacked lies with the session's files, not with the user's."""
    os.environ.setdefault("ANCHORTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder under which the session's checkpoints lie; read only."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def llama_base(tiny_root: Path) -> Path:
    """A tiny Llama with a tokenizer, in two or more bf16 shards. Do not write into it."""
    return tiny.tiny_llama(tiny_root / "llama-base", seed=1, tokenizer=True)


@pytest.fixture(scope="session")
def llama_aligned(tiny_root: Path) -> Path:
    """Another tiny Llama of the same shapes: the aligned side. Do not write into it."""
    return tiny.tiny_llama(tiny_root / "llama-aligned", seed=2, tokenizer=True)


@pytest.fixture(scope="session")
def llama_adapter(tiny_root: Path, llama_base: Path) -> Path:
    """A LoRA adapter (q_proj, v_proj, r 4) on ``llama_base``. Do not write into it."""
    return tiny.tiny_adapter(tiny_root / "llama-adapter", llama_base, seed=3)
