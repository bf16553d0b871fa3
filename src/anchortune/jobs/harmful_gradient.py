"""The direction of steepest descent on harmful answers, of a model that is loaded for it."""

from __future__ import annotations

from anchortune.config import ModelSection
from anchortune.maths.factors import Factors
from anchortune.models.load import Numbers, load_model, load_tokenizer
from anchortune.progress import Progress
from anchortune.training.batches import TokenisedData
from anchortune.training.gradient import descent as descent_of


def descent(
    start: ModelSection, numbers: Numbers, modules: list[str], data: TokenisedData, rank: int
) -> dict[str, Factors]:
    """The factors of ``-∇L`` by module; see ``anchortune.training.gradient``.

    Args:
        start: the model.
        numbers: device and dtypes.
        modules: of the checkpoint, by name.
        data: the rows.
        rank: singular triplets to keep.

    Raises:
        CheckpointError: the model cannot be loaded.
        AnchorError: a module is not in it, or its gradient is zero or no number.
    """
    model, tokenizer = load_model(start, numbers), load_tokenizer(start)
    with Progress("gradient", len(data.rows)) as tell:
        return descent_of(model, tokenizer, numbers, modules, data.rows, rank, tell)
