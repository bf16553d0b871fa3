"""Models of the guards' own classes that say what they are told to, whatever they are asked.

Every layer's output is zeroed, so the next token depends on the last one alone; embeddings and
head are set so that the words of a script follow each other. Loading, rendering and generating are
the real thing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests import tiny

VOCAB = 288
#: What every class needs to be small.
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 16384,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def tokenizer(folder: Path, words: list[str], chat_template: str | None = None) -> Any:
    """The byte tokenizer, with ``words`` as tokens of their own."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tiny.tiny_tokenizer(folder, chat_template)
    made = AutoTokenizer.from_pretrained(folder)
    made.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    made.save_pretrained(folder)
    return made


def scripted(
    folder: Path,
    config: Any,
    script: list[str],
    *,
    rival: str | None = None,
    margin: float = 1.0,
    chat_template: str | None = None,
    more: tuple[str, ...] = (),
) -> Path:
    """A model of ``config`` that writes ``script`` and ends.

    Args:
        folder: where it is saved.
        config: of a causal model of transformers, made with ``SMALL``.
        script: words, each a token of its own; they differ from each other.
        rival: a word that is next to likeliest wherever the script's first word is likeliest.
        margin: by how much the first word's logit is above the rival's.
        chat_template: of the tokenizer.
        more: further words that are to be tokens.
    """
    from transformers import AutoModelForCausalLM

    words = [*script, *([rival] if rival else []), *more]
    ids = tokenizer(folder, words, chat_template).convert_tokens_to_ids(words)
    known = dict(zip(words, ids, strict=True))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        embed = model.get_input_embeddings().weight
        embed.zero_()
        embed[:, 0] = 1.0
        for place, word in enumerate(script, start=1):
            embed[known[word]] = torch.nn.functional.one_hot(torch.tensor(place), embed.shape[1])
        # What the head is shown after each kind of token, normed as the class does it.
        after = [_hidden(model, i) for i in (10, *(known[word] for word in script))]
        head = model.get_output_embeddings().weight
        head.zero_()
        for hidden, following in zip(after, [*(known[w] for w in script), 2], strict=True):
            head[following] += 20 * hidden / hidden.square().sum()
        if rival:
            hidden = after[0]
            head[known[rival]] += (20 - margin) * hidden / hidden.square().sum()
    model.save_pretrained(folder)
    return folder


def _hidden(model: Any, token: int) -> torch.Tensor:
    with torch.inference_mode():
        output = model(torch.tensor([[token]]), output_hidden_states=True)
    return output.hidden_states[-1][0, -1].clone()
