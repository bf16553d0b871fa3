"""Imported by the server of `tests.warm`, and by nobody else: what takes long to import."""

import torch

# A fork has none of its parent's threads, and OpenMP in it would wait for them for ever. So there
# are none: nothing that an import computes may start one. Each child gets its number in `warm`.
torch.set_num_threads(1)

# ruff: noqa: E402
import datasets
import matplotlib.pyplot
import peft
import transformers.models.llama.modeling_llama
import trl

import anchortune.cli.app
import anchortune.evaluation.evaluate
import anchortune.jobs.run
import anchortune.jobs.sweep
import anchortune.training.stage

# Loaded when first asked for, by the packages' own design.
LAZY = [
    datasets.Dataset,
    matplotlib.pyplot.figure,
    peft.PeftModel,
    transformers.AutoModelForCausalLM,
    transformers.AutoTokenizer,
    transformers.PreTrainedTokenizerFast,
    transformers.Trainer,
    trl.SFTTrainer,
    anchortune.cli.app,
    anchortune.evaluation.evaluate,
    anchortune.jobs.run,
    anchortune.jobs.sweep,
    anchortune.training.stage,
]
