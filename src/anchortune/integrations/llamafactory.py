"""AsFT in LLaMA-Factory: its own training, started here with one section more in its YAML.

    python -m anchortune.integrations.llamafactory train.yaml

    anchortune:
      anchor: anchor.safetensors
      lam: 1.0

LLaMA-Factory has no plug-ins, and its callbacks are called after clipping and are not given the
trainer. So the trainer class that its workflow calls is replaced, while it runs, by one that
attaches the penalty to the trainer it has made. Nothing else of anchortune imports it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from anchortune.anchor.anchor import Anchor
from anchortune.config import ModelSection
from anchortune.errors import AnchortuneError, ConfigError, sentence
from anchortune.integrations.section import penalty_section
from anchortune.training.anchored import check_start, open_anchor, settings
from anchortune.training.seam import attach

logger = logging.getLogger(__name__)

#: Where the workflow of a stage takes its trainer from, and what that is called there.
TRAINERS = {
    "pt": ("workflow", "CustomTrainer"),
    "sft": ("workflow", "CustomSeq2SeqTrainer"),
    "dpo": ("trainer", "CustomDPOTrainer"),
    "kto": ("workflow", "CustomKTOTrainer"),
}

#: Keys with which another trainer runs, or weights move where no penalty can be added to them.
REFUSED = {
    "galore_layerwise": "it steps while the gradients come, before a penalty can be added",
    "apollo_layerwise": "it steps while the gradients come, before a penalty can be added",
    "use_badam": "it trains another block every few steps",
    "use_mca": "it trains with Megatron's own loop",
    "use_hyper_parallel": "it trains with a loop of its own",
    "use_kt": "it keeps weights outside the model",
}


def run_exp(args: dict[str, Any] | None = None, callbacks: list[Any] | None = None) -> None:
    """LLaMA-Factory's ``run_exp`` with the penalty that the section ``anchortune`` asks for.

    Args:
        args: LLaMA-Factory's config with that section; None: from the command line, a YAML file
            and then ``key=value`` as LLaMA-Factory reads them.
        callbacks: as LLaMA-Factory's.

    Raises:
        ConfigError: there is no section, it is of no use, or LLaMA-Factory would train in a way
            that leaves no room for a penalty.
        AnchorError: there is no such anchor, it is broken, or was made from other weights.
        TrainingError: the engine or optimizer cannot honour the penalty.
    """
    from llamafactory.extras.misc import is_env_enabled
    from llamafactory.hparams import read_args
    from llamafactory.train import tuner

    config = read_args(args)
    if not isinstance(config, dict):
        raise ConfigError("LLaMA-Factory's settings are to be in a file: name its .yaml first.")
    config = dict(config)
    missing = "LLaMA-Factory's config has no section anchortune"
    section = penalty_section(config.pop("anchortune", None), missing, "LLaMA-Factory")
    check_config(config)
    if is_env_enabled("USE_RAY"):
        raise ConfigError(
            "USE_RAY trains in processes that know of no penalty; unset it, and use torchrun."
        )
    anchor = open_anchor(section.anchor, section.revision, "anchortune.revision")
    check_start(anchor, section, start_of(config))
    with penalised(str(config.get("stage", "sft")), anchor, settings(section)):
        tuner.run_exp(config, callbacks)


def check_config(config: dict[str, Any]) -> None:
    """Refuses what leaves no room for a penalty.

    Args:
        config: LLaMA-Factory's.

    Raises:
        ConfigError: the stage has a loop of its own, or a key of ``REFUSED`` is on.
    """
    stage = config.get("stage", "sft")
    if stage not in TRAINERS:
        raise ConfigError(
            f"stage: {stage} does not go with the penalty; take {', '.join(TRAINERS)}."
        )
    for key, reason in REFUSED.items():
        if config.get(key):
            raise ConfigError(f"{key} does not go with the penalty: {reason}; leave it out.")


def start_of(config: dict[str, Any]) -> ModelSection:
    """The model that LLaMA-Factory starts from: its path, and the one adapter on it.

    Raises:
        ConfigError: no model is named, or several adapters are.
    """
    path, adapters = config.get("model_name_or_path"), config.get("adapter_name_or_path")
    if not path:
        raise ConfigError("LLaMA-Factory's config names no model; set model_name_or_path.")
    if isinstance(adapters, list):
        adapters = ",".join(adapters)
    if adapters and "," in adapters:
        raise ConfigError(
            f"adapter_name_or_path names several adapters ({adapters}), and an anchor is of one "
            "model; merge them with llamafactory-cli export, and start from that."
        )
    return ModelSection(
        path=str(path), revision=config.get("model_revision"), adapter=adapters or None
    )


@contextlib.contextmanager
def penalised(stage: str, anchor: Anchor, options: dict[str, Any]) -> Iterator[None]:
    """While it is open, the trainers that LLaMA-Factory makes for ``stage`` have the penalty.

    Args:
        stage: a key of ``TRAINERS``.
        anchor: of the model that is trained.
        options: the keywords of ``attach``.

    Raises:
        ConfigError: this version of LLaMA-Factory has no such trainer.
    """
    where, name = TRAINERS[stage]
    module = importlib.import_module(f"llamafactory.train.{stage}.{where}")
    own = getattr(module, name, None)
    if own is None:
        raise ConfigError(
            f"this version of LLaMA-Factory has no {name} in {module.__name__}; make its trainer "
            "in a script and call attach(trainer, anchor)."
        )

    @functools.wraps(own, updated=())
    def made(*args: Any, **kwargs: Any) -> Any:
        trainer = attach(own(*args, **kwargs), anchor, **options)
        logger.warning("AsFT penalty attached to %s", name)
        return trainer

    setattr(module, name, made)
    try:
        yield
    finally:
        setattr(module, name, own)


def main() -> None:
    """``run_exp`` from the command line; a mistake is one sentence and exit code 2."""
    try:
        run_exp()
    except AnchortuneError as error:
        sys.stderr.write(f"error: {sentence(error)}\n")
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
