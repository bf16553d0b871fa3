from __future__ import annotations

from transformers import Gemma2Config, LlamaConfig

from anchortune.models.shallow import shallow_config


def test_a_shallow_copy_has_the_first_layers_and_leaves_the_config_alone() -> None:
    config = Gemma2Config(num_hidden_layers=4, hidden_size=32)
    shallow = shallow_config(config, 1)
    assert (shallow.num_hidden_layers, len(shallow.layer_types)) == (1, 1)
    assert shallow.layer_types == config.layer_types[:1]
    assert (config.num_hidden_layers, len(config.layer_types)) == (4, 4)
    assert shallow_config(LlamaConfig(num_hidden_layers=3), 2).num_hidden_layers == 2
