"""AsftTrainer: TRL's SFTTrainer with the AsFT penalty."""

from __future__ import annotations

from trl import SFTTrainer

from anchortune.training.seam import AsftMixin


class AsftTrainer(AsftMixin, SFTTrainer):  # type: ignore[misc]
    """Supervised fine-tuning with the AsFT penalty; see ``AsftMixin`` for the added keywords."""
