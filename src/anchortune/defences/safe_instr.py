"""SafeInstr (arXiv 2309.07875): safe refusals mixed into the user's data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from anchortune.config_defences import SafeInstrSection
from anchortune.defences.base import Curriculum, Defence, Need, Schedule
from anchortune.defences.refusals import dose, pick, unordered, users_rows

if TYPE_CHECKING:
    from anchortune.data.conversations import Conversation


class SafeInstr(SafeInstrSection, Defence):
    """SafeInstr: ``share · n`` (halves up) different refusals on top of the user's n rows.

    Its authors add 100 to 2,000 refusals to some 20,000 instructions and state no share for other
    sizes; 5 % is ours, in the middle of theirs. The run grows by the same share of steps, so that
    the user's rows are seen as often as without it.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"refusals"})
    source: ClassVar[str] = "2309.07875"

    def curriculum(
        self,
        given: Curriculum,
        refusals: Sequence[Conversation],
        schedule: Schedule,
        tokenizer: Any,
    ) -> Curriculum:
        """The rows with the refusals after them.

        Raises:
            DataError: the share is of no row, or there are too few refusals.
            TrainingError: another defence has fixed the order already.
        """
        unordered(given, self.label)
        count = dose(self.share, users_rows(given), self.label)
        added = pick(refusals, count, schedule.seed, self.label)
        return Curriculum([*given.rows, *added], None, {**given.added, self.label: count})
