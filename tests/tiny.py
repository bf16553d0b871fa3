"""Tiny random checkpoints and a byte tokenizer, made on the fly: no download, seconds, seeded.

Every ``tiny_*`` model writer makes an ordinary Hugging Face folder (two shards, bf16) and returns its path;
pass ``dtype=torch.float32`` or ``shard="1GB"`` for another kind, and config fields as keywords.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCAB = 264
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(path: str | Path, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """A byte-level fast tokenizer (256 bytes, pad, im_start, im_end = eos) saved into ``path``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(["<pad>", "<|im_start|>", "<|im_end|>"])}
    vocab |= {symbol: len(vocab) + index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    return folder


def save_model(
    config: Any,
    path: str | Path,
    *,
    seed: int,
    dtype: torch.dtype = torch.bfloat16,
    shard: str = "40KB",
    tokenizer: bool = False,
) -> Path:
    """A randomly initialised causal model of ``config`` saved into ``path`` in shards."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(dtype)
        for parameter in model.parameters():  # biases and norms too, or a mix-up would not show
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    folder = Path(path)
    model.save_pretrained(folder, max_shard_size=shard)
    if tokenizer:
        tiny_tokenizer(folder)
    return folder


def _common(overrides: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.1,
    } | overrides


def _split(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options.pop(name) for name in ("dtype", "shard", "tokenizer") if name in options}


def tiny_llama(path: str | Path, seed: int = 0, **overrides: Any) -> Path:
    """A 2-layer Llama (hidden 32, MLP 48, 4 heads, 2 of keys); ``tie_word_embeddings`` is off."""
    from transformers import LlamaConfig

    saving = _split(overrides)
    return save_model(LlamaConfig(**_common(overrides)), path, seed=seed, **saving)


def tiny_qwen2(path: str | Path, seed: int = 0, **overrides: Any) -> Path:
    """A 2-layer Qwen2, whose q, k and v carry biases."""
    from transformers import Qwen2Config

    saving = _split(overrides)
    return save_model(Qwen2Config(**_common(overrides)), path, seed=seed, **saving)


def tiny_gemma2(path: str | Path, seed: int = 0, **overrides: Any) -> Path:
    """A 2-layer Gemma 2, whose head is tied to its embeddings."""
    from transformers import Gemma2Config

    saving = _split(overrides)
    config = Gemma2Config(**_common({"head_dim": 8, "sliding_window": 64} | overrides))
    return save_model(config, path, seed=seed, **saving)


def tiny_phi3(path: str | Path, seed: int = 0, **overrides: Any) -> Path:
    """A 2-layer Phi-3, whose attention is one fused ``qkv_proj``."""
    from transformers import Phi3Config

    saving = _split(overrides)
    return save_model(Phi3Config(**_common(overrides)), path, seed=seed, **saving)


def tiny_gpt2(path: str | Path, seed: int = 0, **overrides: Any) -> Path:
    """A 2-layer GPT-2, whose ``Conv1D`` weights are stored (d_in, d_out)."""
    from transformers import GPT2Config

    saving = _split(overrides)
    options = {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 48,
        "n_positions": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.1,
    }
    return save_model(GPT2Config(**(options | overrides)), path, seed=seed, **saving)


def tiny_adapter(path: str | Path, base: str | Path, seed: int = 0, **lora: Any) -> Path:
    """A LoRA adapter on ``base`` whose A and B are both random, saved by PEFT into ``path``."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | lora
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(0.1 * torch.randn_like(parameter))
    wrapped.save_pretrained(path)
    return Path(path)
