"""Pure tuning, safe testing (arXiv 2402.18540): the safety prompt only at inference."""

from __future__ import annotations

from typing import Any, ClassVar

from anchortune.config_defences import PtstSection
from anchortune.defences.base import Defence


class Ptst(PtstSection, Defence):
    """PTST: trained without a safety prompt, asked with one."""

    source: ClassVar[str] = "2402.18540"

    def system_prompt(self, tokenizer: Any) -> str | None:
        """The safety prompt."""
        return self.system
