"""Safety layers frozen (arXiv 2408.17003): the layers that tell harmful from harmless prompts."""

from __future__ import annotations

from typing import ClassVar

from anchortune.config_defences import SafeLayersSection
from anchortune.defences.base import Defence
from anchortune.errors import TrainingError


class SafeLayers(SafeLayersSection, Defence):
    """The layers from ``first`` to ``last`` are not trained, all others are.

    The paper finds a contiguous block below the middle, model by model, by scaling layers and
    watching over-refusal. That search is not made here: unset, the block is from a sixth to two
    fifths of the way up (layers 5 to 12 of 32), near those that it reports; set both for a model
    whose block is known.
    """

    source: ClassVar[str] = "2408.17003"

    def frozen(self, layers: int) -> range:
        """The numbers of the frozen layers, of ``layers``.

        Raises:
            TrainingError: they are none, or beyond the model's.
        """
        first = layers // 6 if self.first is None else self.first
        last = max(first, 2 * layers // 5) if self.last is None else self.last
        if last >= layers or first >= layers:
            raise TrainingError(
                f"safe-layers: layers {first} to {last} are to be frozen, but the model has "
                f"{layers} (0 to {layers - 1}); lower safe-layers.first and last."
            )
        if first > last:
            raise TrainingError(
                f"safe-layers: first ({first}) lies above last ({last}), so nothing would be "
                "frozen; set safe-layers.last to at least first."
            )
        return range(first, last + 1)

    def trained_layers(self, layers: int) -> list[int] | None:
        """All but the frozen ones.

        Raises:
            TrainingError: none is left, or the block does not fit the model.
        """
        frozen = self.frozen(layers)
        left = [number for number in range(layers) if number not in frozen]
        if not left:
            raise TrainingError(
                f"safe-layers: layers {frozen[0]} to {frozen[-1]} are all that the model has, so "
                "nothing would be trained; freeze fewer with safe-layers.first and last."
            )
        return left
