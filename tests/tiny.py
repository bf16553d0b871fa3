"""Tiny random checkpoints and a byte tokenizer, made on the fly: no download, seconds, seeded.

Every ``tiny_*`` of a model makes an ordinary Hugging Face folder (two shards, bf16); pass
``dtype=torch.float32`` or ``shard="1GB"`` for another kind, and config fields as keywords.
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


def tiny_gguf(path: str | Path, source: str | Path, kind: str = "Q8_0") -> Path:
    """A Llama folder written as GGUF the way llama.cpp does it, its matrices held as ``kind``.

    Row lengths must be multiples of 32 for ``Q8_0``: pass ``intermediate_size=64`` to `tiny_llama`.
    """
    import json

    import gguf
    import numpy as np
    from safetensors.torch import load_file

    config = json.loads((Path(source) / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for shard in sorted(Path(source).glob("*.safetensors")):
        for name, tensor in load_file(shard).items():
            value = tensor.float().numpy()
            for part, n in (("q_proj", heads), ("k_proj", kv_heads)):
                if name.endswith(f"{part}.weight"):
                    halves = value.reshape(n, 2, value.shape[0] // n // 2, -1)
                    value = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))
            short = names.get_name(name, try_suffixes=(".weight",))
            dtype = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
            data = gguf.quants.quantize(value, dtype)
            writer.add_tensor(short, data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)
