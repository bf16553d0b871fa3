"""What is said of a model that lacks something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anchortune.config import ModelSection
from anchortune.errors import CheckpointError
from anchortune.models.load import Numbers, load_model, load_tokenizer
from tests import tiny


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    model = tiny.tiny_llama(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"there is no tokenizer in it.*save_pretrained"):
        load_tokenizer(ModelSection(path=str(model)))


def test_a_tokenizer_of_special_tokens_only_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers 5.0 makes one up for a Hub id that has no tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models

    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab={"<s>": 0, "<unk>": 1}, merges=[])),
        bos_token="<s>",
        unk_token="<unk>",
    )
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *args, **options: made
    )
    with pytest.raises(CheckpointError, match=r"org/model: there is no tokenizer in it"):
        load_tokenizer(ModelSection(path="org/model"))
    model = tiny.tiny_llama(tmp_path / "m", intermediate_size=64)
    file = tiny.tiny_gguf(tmp_path / "m.gguf", model)
    with pytest.raises(CheckpointError, match=r"m\.gguf: .* take a file that has one"):
        load_tokenizer(ModelSection(path=str(file)))


def test_in_16_bits_rotary_frequencies_stay_in_32(
    llama_base: Path, llama_adapter: Path, tmp_path: Path
) -> None:
    numbers = Numbers(torch.device("cpu"), torch.bfloat16, torch.bfloat16)
    plain = load_model(ModelSection(path=str(llama_base)), numbers)
    held = dict(plain.named_buffers())
    llama = tiny.tiny_llama(tmp_path / "m", intermediate_size=64)
    gguf = tiny.tiny_gguf(tmp_path / "m.gguf", llama)
    for section in (
        ModelSection(path=str(llama_base), adapter=str(llama_adapter)),
        ModelSection(path=str(gguf)),
    ):
        model = load_model(section, numbers)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        for name, buffer in model.named_buffers():
            assert buffer.dtype == torch.float32
            assert torch.equal(buffer, held[name])
