"""What an evaluation of other models or judges answered already, taken over into the new one.

A job whose main arm is trained again asks the reference and the plain arm nothing anew; one that
names another judge asks nobody.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchortune.evaluation.ask import ENGINES_FILE
from anchortune.evaluation.outputs import OUTPUTS_FILE, read_outputs
from anchortune.evaluation.plan import COHERENCE
from anchortune.evaluation.verdicts import VERDICTS_FILE
from anchortune.files import atomic_path
from anchortune.run_folder import IDENTITY_FILE

#: Keys of an evaluation's identity that decide what is asked, and how it is answered.
_ASKED = ("harm", "tasks", "part", "selection_frac", "seed", "generation")


def carry(old: Path, new: Path, identity: Mapping[str, Any]) -> int:
    """Copies the rows that hold for the new evaluation too; how many answers that is.

    An answer holds where its model, the prompts and the way of generating are the same; a verdict
    where the judges and the reference, whose likelihoods and answers some need, are as well.

    Args:
        old: folder of the earlier evaluation.
        new: of the new one, claimed and otherwise empty.
        identity: of the new one.
    """
    try:
        before = json.loads((old / IDENTITY_FILE).read_text(encoding="utf-8"))
        rows = read_outputs(old / OUTPUTS_FILE) if (old / OUTPUTS_FILE).is_file() else []
    except (OSError, ValueError):
        return 0
    same = [before.get(key) == identity.get(key) for key in _ASKED]
    hashes, now = before.get("sha256", {}), identity["sha256"]
    if not all(same) or hashes.get("sets") != now["sets"]:
        return 0
    kept = {
        name for name, model in now["models"].items() if hashes.get("models", {}).get(name) == model
    }
    # Redacted answers (keep: hash) cannot be judged again.
    rows = [row for row in rows if row["model"] in kept and "answer" in row]
    if not rows:
        return 0
    reference = next(iter(now["models"]))
    judged = (
        before.get("judged_by") == identity.get("judged_by")
        and next(iter(hashes["models"])) == reference
        and reference in kept
    )
    _write(new / OUTPUTS_FILE, rows)
    if judged and (old / VERDICTS_FILE).is_file():
        said = read_outputs(old / VERDICTS_FILE)
        # Coherence is said of all models of a set at once.
        said = [row for row in said if row["model"] in kept and row["judge"] != COHERENCE]
        _write(new / VERDICTS_FILE, said)
    if (old / ENGINES_FILE).is_file():
        shutil.copyfile(old / ENGINES_FILE, new / ENGINES_FILE)
    return len(rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
