"""Errors a user can mend: one sentence that names the culprit and the mend, never a traceback."""

from __future__ import annotations

#: Characters of a sentence that are shown; a longer one carries somebody's data with it.
LONGEST = 1000


class AnchortuneError(Exception):
    """A mistake in what was given (file, column, shape, flag); the command line exits with 2."""

    exit_code = 2


class ConfigError(AnchortuneError):
    """A config file or ``--set`` that cannot be used: unknown key, wrong type or value."""


class CheckpointError(AnchortuneError):
    """A checkpoint that cannot be read safely or does not hold what was asked for."""


class PairError(CheckpointError):
    """Two checkpoints that do not belong together: family, shapes, names or identical weights."""


class AnchorError(AnchortuneError):
    """An anchor file that is broken, of another version, or does not fit the model."""


class DataError(AnchortuneError):
    """A data file whose format, columns or rows cannot be used."""


class TrainingError(AnchortuneError):
    """A training set-up in which the penalty cannot be honoured."""


class EvaluationError(AnchortuneError):
    """An evaluation that cannot be trusted or made: no judge, an empty set, a server that fails."""


class JobError(AnchortuneError):
    """A job that cannot be run as it stands: its folder is in use, or its parts do not agree."""


def sentence(error: BaseException | str) -> str:
    """What an error says, on one line, fit for a terminal.

    Names of files, columns and tensors come from whoever made the file: what no terminal should
    print (codes, line breaks, marks that turn the writing round) is written out as an escape, and
    the middle of a long text is left out.
    """
    text = str(error) or type(error).__name__
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    line = " ".join(text.split())
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in line)
