"""Where files go: room and rights at the output and in the caches, the Hub, what is set."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from anchortune.setup.finding import Finding, State, has_locks, standing, why_not_written

GIB = 2**30
#: A disk with less is filled by one small run; with less than the other, by a model of billions.
_LEAST_BYTES, _FEW_BYTES = GIB // 2, 10 * GIB
#: What the Hub's client takes for yes, in capitals.
_TRUE = ("1", "ON", "YES", "TRUE")
#: Variables that hold secrets: told as set or not, never shown.
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY")


def _place(name: str, place: Path, mend: str) -> Finding:
    """Room and rights of one place.

    Args:
        name: of the finding.
        place: a folder, which need not exist yet.
        mend: how to take another.
    """
    why = why_not_written(place)
    if why is not None:
        return Finding(name, "bad", f"{place}: nothing can be written there ({why})", mend)
    free = shutil.disk_usage(standing(place)).free
    told = f"{place}: {free / GIB:.1f} GiB free"
    if free < _LEAST_BYTES:
        return Finding(name, "bad", told, f"free some, or {mend}")
    if free < _FEW_BYTES:
        return Finding(name, "warn", told, f"enough for a small model; else {mend}")
    return Finding(name, "ok", told)


def output(folder: Path) -> list[Finding]:
    """Room, rights and locks where runs are written.

    Args:
        folder: of the runs; need not exist.
    """
    found = _place("output", folder, "name another folder with --output")
    if found.state == "bad" or has_locks(folder):
        return [found]
    mend = "let no two processes write there; what a killed one left stays"
    return [found, Finding("locks", "warn", f"{folder}: this disk has no flock", mend)]


def hub() -> list[Finding]:
    """The Hub's cache, whether it may be asked, and whether there is a token."""
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    place = _place("hub cache", cache, "set HF_HOME to a folder on another disk")
    held = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    place = Finding(place.name, place.state, f"{place.text}, {held} models in it", place.mend)
    state, asked, mend = _asked(constants.HF_HUB_OFFLINE)
    if os.environ.get("HF_ENDPOINT"):
        asked += ", at the address of HF_ENDPOINT"
    try:
        token = get_token() is not None
    except Exception:  # a token file that cannot be read
        token = False
    told = f"{asked}; token {'set' if token else 'not set'}"
    return [place, Finding("hub", state, told, mend)]


def _asked(offline: bool) -> tuple[State, str, str]:
    """(state, whether the Hub is asked and why not, mend).

    Its client heeds the first of the two variables that is not empty, a 0 in it too.
    """
    given = {name: os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    said = [name for name, value in given.items() if value.upper() in _TRUE]
    first = next((name for name, value in given.items() if value), "")
    if offline:
        why = f"{first} is {given[first]}" if first in said else "a program says so"
        return "ok", f"not asked, for {why}: only what is in the cache", ""
    if said:
        text = f"may be asked, though {said[0]} is {given[said[0]]}: HF_HUB_OFFLINE goes before it"
        return "warn", text, "set HF_HUB_OFFLINE to 1, or unset both"
    if os.environ.get("HF_DATASETS_OFFLINE", "").upper() in _TRUE:
        return "ok", "may be asked, but for data sets, for HF_DATASETS_OFFLINE is set", ""
    return "ok", "may be asked", ""


def cache() -> list[Finding]:
    """Where small GGUF files are unpacked."""
    from anchortune.models.unpacked import VARIABLE, cache_folder

    folder = cache_folder()
    if folder is None:
        return [Finding("cache", "ok", f"none, by {VARIABLE} or for want of a home folder")]
    found = _place("cache", folder, f"set {VARIABLE} to another folder")
    if found.state == "bad":  # files are read as they are then
        return [Finding("cache", "warn", found.text, found.mend)]
    return [found]


def variables() -> list[Finding]:
    """What the environment says that changes how a run goes; secrets as set or not."""
    found = []
    told = ", ".join(f"{key} {'set' if os.environ.get(key) else 'not set'}" for key in SECRETS)
    found.append(Finding("keys", "ok", told))
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        text = f"WORLD_SIZE is {os.environ['WORLD_SIZE'][:20]}, and the commands run in one process"
        mend = "unset it; for several processes call attach(trainer, anchor) in your own script"
        found.append(Finding("processes", "bad", text, mend))
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        text = "ACCELERATE_USE_DEEPSPEED is set, and DeepSpeed steps inside its own backward"
        mend = "unset it; FSDP2 does the same work"
        found.append(Finding("deepspeed", "bad", text, mend))
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    if encoding not in ("utf8", "utf8sig", "cp65001"):
        text = f"the terminal's encoding is {sys.stdout.encoding}, which has no λ"
        found.append(Finding("encoding", "warn", text, "export PYTHONIOENCODING=utf-8"))
    return found
