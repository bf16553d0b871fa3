"""Fine-tune an aligned LLM without losing its safety.

The public names are loaded when they are first used, so that ``import anchortune`` costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anchortune._version import __version__
from anchortune.errors import AnchortuneError

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor
    from anchortune.anchor.penalty import Penalty
    from anchortune.training.activations import attach_activations
    from anchortune.training.probe import Probe
    from anchortune.training.probing import attach_probe
    from anchortune.training.refusal_direction import RefusalDirection
    from anchortune.training.seam import AsftMixin, attach
    from anchortune.training.trainer import AsftTrainer
    from anchortune.training.watch import attach_health

_HOMES = {
    "Anchor": "anchortune.anchor.anchor",
    "AsftMixin": "anchortune.training.seam",
    "AsftTrainer": "anchortune.training.trainer",
    "Penalty": "anchortune.anchor.penalty",
    "Probe": "anchortune.training.probe",
    "RefusalDirection": "anchortune.training.refusal_direction",
    "attach": "anchortune.training.seam",
    "attach_activations": "anchortune.training.activations",
    "attach_health": "anchortune.training.watch",
    "attach_probe": "anchortune.training.probing",
}

__all__ = [
    "Anchor",
    "AnchortuneError",
    "AsftMixin",
    "AsftTrainer",
    "Penalty",
    "Probe",
    "RefusalDirection",
    "__version__",
    "attach",
    "attach_activations",
    "attach_health",
    "attach_probe",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'anchortune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
