"""A model's config cut to its first layers: what one layer costs is timed on such copies."""

from __future__ import annotations

import copy
from typing import Any


def shallow_config(config: Any, depth: int) -> Any:
    """A copy of a model's config with its first ``depth`` layers alone.

    Args:
        config: of transformers, of a text model or of one that holds a text model.
        depth: layers to keep.
    """
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    text.num_hidden_layers = depth
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:depth]
    return shallow
