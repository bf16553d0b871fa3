"""The environment looked at: every finding a line with its mend, and whether anything can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchortune.setup import machine, packages, places
from anchortune.setup.finding import Finding, looked_at

#: Of what one finding says is ``bad``: the same as of a gate that fails.
EXIT_BAD = 3


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        findings: in the order in which they were looked at.
    """

    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """0, or 3 where something has to be mended before anything can be run."""
        return EXIT_BAD if any(one.state == "bad" for one in self.findings) else 0

    def lines(self) -> list[str]:
        """For people: a line a finding, and one that counts them."""
        wide = max(len(one.name) for one in self.findings)
        counts = [
            f"{sum(one.state == state for one in self.findings)} {state}"
            for state in ("ok", "warn", "bad")
        ]
        return [*(one.line(wide) for one in self.findings), ", ".join(counts)]

    def summary(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "exit_code": self.exit_code,
            "findings": [one.summary() for one in self.findings],
        }


def examine(model: str | None = None, output: Path | None = None) -> Examination:
    """Everything looked at: Python, packages, torch, device, memory, threads, places, the Hub.

    Args:
        model: a folder, ``.gguf`` file, Hub id or LoRA adapter to be looked at besides; of a Hub
            id its files are fetched.
        output: the folder that runs are to be written to; None is ``runs`` here.
    """
    folder = Path("runs") if output is None else output
    checks = {
        "python": packages.python,
        "packages": packages.required,
        "imports": packages.imports,
        "torch": machine.torch_build,
        "compute": machine.compute,
        "memory": machine.memory,
        "threads": machine.threads,
        "open files": machine.open_files,
        "output": lambda: places.output(folder),
        "hub cache": places.hub,
        "cache": places.cache,
        "optional": packages.optional,
        "variables": places.variables,
    }
    found = [finding for name, check in checks.items() for finding in looked_at(name, check)]
    if model is not None:
        found += looked_at("model", lambda: _model(model))
    return Examination(found)


def _model(name: str) -> list[Finding]:
    """Whether a model can be read, and held here."""
    from anchortune.errors import AnchortuneError, sentence
    from anchortune.setup.model import look_at_model

    try:
        facts = look_at_model(name)
    except AnchortuneError as error:
        told = sentence(error)
        return [Finding("model", "bad", told, "see what the sentence names")]
    found = [Finding("model", "ok", facts.line())]
    found += [Finding("chat", "ok", facts.chat_line())]
    needs, free = facts.held_bytes, facts.free_bytes
    told = (
        f"its weights take {needs / machine.GIB:.1f} GiB in {facts.dtype}, and "
        f"{free / machine.GIB:.1f} GiB are free on {facts.device}"
    )
    if needs > free:
        mend = "take a smaller model or a larger machine"
        if facts.device == "cuda":
            mend = "set lora.qlora, which takes about a quarter, or take a smaller model"
        return [*found, Finding("fits", "bad", told, mend)]
    if needs > 0.6 * free:
        mend = "set machine.micro_batch_size: 1 and machine.gradient_checkpointing: true"
        return [*found, Finding("fits", "warn", told, mend)]
    return [*found, Finding("fits", "ok", told)]
