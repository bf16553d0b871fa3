"""Configs: strictness, error texts, precedence, round trip."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from anchortune.config import AlignConfig, TrainConfig
from anchortune.config_io import dump_yaml, load_config
from anchortune.errors import ConfigError
from anchortune.evaluation.config import EvalConfig
from anchortune.landscape.config import BasinConfig

BASE = "model: {path: m}\ndata: {path: d.json}\noutput: o\n"


@pytest.fixture
def load(tmp_path: Path):
    def loader(text: str, *overrides: str, kind=TrainConfig):
        path = tmp_path / "c.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, kind, overrides)

    return loader


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (BASE + "trainig: {}", [], "unknown key 'trainig'; did you mean 'training'?"),
        (BASE, ["training.learning_rat=3"], "learning_rat'; did you mean 'learning_rate'"),
        (BASE, ["data.formt=auto"], "unknown key 'data.0.formt'; did you mean 'format'?"),
        (BASE, ["machine.zzz=1"], "unknown key 'machine.zzz'; known here: device, dtype"),
        (BASE, ["training.learning_rate=abc"],
         "training.learning_rate: expected a number, found the text 'abc'"),
        (BASE, ["training.epochs=true"], "training.epochs: expected a number, found true"),
        (BASE, ["training.epochs=.inf"], "training.epochs: expected a finite number, found inf"),
        (BASE, ["training.learning_rate=.inf"], "training.learning_rate: expected a finite number"),
        (BASE, ["training.weight_decay=.nan"], "training.weight_decay: expected a finite number"),
        (BASE, ["penalty={anchor: a, lam: .inf}"], "penalty.lam: expected a finite number"),
        (BASE, ["seed=4294967296"], "seed: expected a number below 4294967296"),
        (BASE, ["training.batch_size=2.5"],
         "training.batch_size: expected a whole number, found the number 2.5"),
        (BASE, ["penalty.anchor=a", "penalty.lam=big"],
         "penalty.lam: expected a number or auto or null, found the text 'big'"),
        (BASE, ["penalty.lam=1"], "the key 'penalty.anchor' is missing; give a text"),
        (BASE, ["penalty={anchor: a, lam: -1}"], "penalty.lam: expected a number at least 0"),
        (BASE, ["penalty={anchor: a, off_budget: 0.1}"], "penalty: off_budget is only read with"),
        (BASE, ["defence=lisaa"], "defence.0: there is no 'lisaa'; did you mean 'lisa'?"),
        (BASE, ["defence=zz"], "defence.0: there is no 'zz'; known here: asft, asft-alt, lisa,"),
        (BASE, ["defence=lisa-base"], "there is no method 'lisa-base'; write {name: lisa, start"),
        (BASE, ["defence=[{name: none}]"], "method 'none'; write [] for no defence, or {"),
        (BASE, ["defence=[lisa, safe-lora]", "defence.1.treshold=0.1"],
         "unknown key 'defence.1.treshold'; did you mean 'threshold'?"),
        (BASE, ["defence=lisa", "defence.rho=-1"], "defence.0.rho: expected a number at least 0.0"),
        (BASE, ["defence=[{rho: 1}]"], "the key 'defence.0.name' is missing; give the name of a"),
        (BASE, ["defence=[lisa, {name: lisa, rho: 2}]"], "defence: lisa is given twice"),
        (BASE, ["defence=3"], "defence.0: expected a mapping of keys, found the number 3"),
        (BASE, ["defence={name: safe-lora, threshold: 0.1, modules: 3}"],
         "defence.0: give threshold or modules, not both"),
        (BASE, ["defence=asft"], "defence: asft needs anchor"),
        (BASE, ["defence=asft-alt", "anchor=a"], "defence: asft-alt needs harmful_anchor"),
        (BASE, ["defence=asft", "anchor=3"], "anchor: expected the place of an anchor"),
        (BASE, ["defence=asft", "anchor=a", "penalty={anchor: b}"], "one penalty at a time"),
        (BASE, ["defence=[asft, asft-alt]", "anchor=a"], "one penalty at a time"),
        (BASE, ["defence=[ptst, {name: asft-alt, lam: auto}]", "harmful_anchor=a"],
         "add steer: probe, or give lam as a number"),
        (BASE, ["defence={name: asft-alt, side: off}", "harmful_anchor=a"],
         "asft-alt has no key 'side'"),
        (BASE, ["data.format=xx"], "data.0.format: expected auto, instruction,"),
        (BASE, ["lora.dropout=1.5"], "lora.dropout: expected a number below 1.0, found 1.5"),
        (BASE, ["machine.micro_batch_size=3"], "machine.micro_batch_size (3) does not divide"),
        (BASE, ["training={schedule: step, warmup_frac: 0.1}"], "training: schedule: step has no"),
        (BASE, ["data=[]"], "data: expected at least 1 item, found none"),
        (BASE, ["preset=paper"], "the key 'penalty.anchor' is missing"),
        (BASE, ["preset=papr"], "preset: expected paper or null, found the text 'papr'"),
        ("model: 3", [], "model: expected a mapping of keys, found the number 3"),
        ("", [], "the key 'model' is missing; give a mapping of keys"),
        ("- 1", [], "expected a mapping of keys, found a list"),
        ("a: [1", [], "line 1: not valid YAML"),
        (BASE + BASE, [], "line 4: the key 'model' is given twice"),
        (BASE + "lora: {rank: 1, rank: 2}", [], "line 4: the key 'rank' is given twice"),
        ("a: !!python/object:os.system {}", [], "not valid YAML"),
        (BASE, ["seed"], "--set seed: expected key.path=value"),
        (BASE, ["seed.x=1"], "--set seed.x=1"),
        (BASE + "seed: 3\n", ["seed.x=1"],
         "--set seed.x=1: seed is the number 3, which holds no keys; set it as a whole"),
        ("data: [{path: a}]", ["data.1.path=b"],
         "data is a list of 1; '1' is not one of its positions; choose one of 0 to 0."),
    ],
)  # fmt: skip
def test_every_mistake_is_one_sentence_that_names_the_key(load, text, overrides, message) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    if text == BASE and overrides == ["seed.x=1"]:
        assert "seed: expected a whole number, found a mapping" in str(caught.value)
    else:
        assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_set_reaches_the_keys_of_a_section_that_one_text_names(load) -> None:
    config = load(
        BASE + "anchor: a\ndefence: [lox, safe-lora]\n",
        "anchor.revision=main", "defence.1.threshold=0.2",
    )  # fmt: skip
    assert (config.anchor.path, config.anchor.revision) == ("a", "main")
    assert config.defence[1].threshold == 0.2
    assert load(BASE + "defence: lisa", "defence.rho=0.5").defence[0].rho == 0.5
    basin = load(
        "model: m\nharm: {path: h}\njudge: builtin\nanchor: a\noutput: o\ntasks: [sst2]\n",
        "model.adapter=x", "judge.min_confidence=0.7", "tasks.0.max_items=3",
        kind=BasinConfig,
    )  # fmt: skip
    assert (basin.model.path, basin.model.adapter) == ("m", ["x"])
    assert (basin.judge.name, basin.judge.min_confidence) == ("builtin", 0.7)
    assert (basin.tasks[0].name, basin.tasks[0].max_items) == ("sst2", 3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{path: m, base: b}", "unknown key 'models.plain-sft.base'; known here: path,"),
        ("{path: m, adaptr: a}", "unknown key 'models.plain-sft.adaptr'; did you mean 'adapter'?"),
        ("{path: 3}", "models.plain-sft.path: expected a text or null, found the number 3"),
    ],
)
def test_a_key_below_a_name_of_the_users_own_is_named_in_full(load, model, message) -> None:
    text = f"models: {{plain-sft: {model}}}\nharm: [{{path: h}}]\njudges: [refusal]\noutput: o\n"
    with pytest.raises(ConfigError) as caught:
        load(text, kind=EvalConfig)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot read the config"):
        load_config(tmp_path / "none.yaml", TrainConfig)


def test_a_rate_without_a_dot_is_a_number(load) -> None:
    """YAML 1.1 reads 5e-5 as a text; every tutorial writes it so."""
    assert load(BASE + "training: {learning_rate: 5e-5}").training.learning_rate == 5e-5
    assert load(BASE, "training.learning_rate=1e-3").training.learning_rate == 1e-3
    assert load(BASE.replace("o\n", "1e5x\n")).output == "1e5x"


def test_precedence_default_preset_file_set(load) -> None:
    text = BASE + "preset: paper\npenalty: {anchor: a}\ntraining: {batch_size: 4}\n"
    config = load(text, "training.epochs=2")
    assert config.training.epochs == 2  # --set
    assert config.training.batch_size == 4  # the file
    assert config.training.learning_rate == 5e-5  # the preset
    assert config.training.max_grad_norm is None  # the preset
    assert load(BASE).training.max_grad_norm == 1.0
    assert load(BASE, "training.max_grad_norm=null").training.max_grad_norm is None
    assert config.penalty is not None
    assert (config.penalty.operator, config.penalty.scaled, config.penalty.lam) == (
        "gram", False, 1.0
    )  # fmt: skip
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (8, 32, 0.05)
    assert (config.training.schedule, config.training.step_decay) == ("step", 0.85)


def test_asft_in_the_chain_is_the_penalty_and_the_preset_goes_under_it(load) -> None:
    alone = load(BASE + "penalty: {anchor: a, lam: 0.5}\n")
    chained = load(BASE + "defence: {name: asft, lam: 0.5}\nanchor: a\n")
    assert chained == alone
    assert chained.science() == alone.science()
    both = load(BASE + "defence: [asft, csulora]\nanchor: a\n")
    assert (both.penalty.anchor, both.anchor.path) == ("a", "a")
    assert [section.name for section in both.defence] == ["csulora"]
    assert load(dump_yaml(both)) == both
    harmful = load(BASE + "defence: asft-alt\nharmful_anchor: {path: h, revision: r}\n")
    assert (harmful.penalty.side, harmful.penalty.anchor) == ("along", "h")
    assert harmful.penalty.revision == "r"
    steered = "defence: {name: asft-alt, lam: auto, steer: probe, probe_target: 2.0}\n"
    watched = load(BASE + "harmful_anchor: h\nprobe: {prompts: p}\n" + steered)
    assert (watched.penalty.side, watched.penalty.steer) == ("along", "probe")
    assert watched.penalty.probe_target == 2.0

    paper = load(BASE + "preset: paper\ndefence: {name: asft, lam: 2.0}\nanchor: a\n").penalty
    assert (paper.operator, paper.scaled, paper.lam, paper.anchor) == ("gram", False, 2.0, "a")
    for chain in ("lisa", "[]", "[safe-lora]"):  # another defence, and none
        assert load(BASE + f"preset: paper\ndefence: {chain}\n").penalty is None


def test_set_reaches_the_keys_of_a_defence_however_it_is_written(load) -> None:
    assert load(BASE + "defence: lisa\n", "defence.rho=0.1").defence[0].rho == 0.1
    assert load(BASE + "defence: [ptst, lisa]\n", "defence.1.rho=0.1").defence[1].rho == 0.1
    assert load(BASE, "defence=lisa", "defence.rho=0.1").defence[0].rho == 0.1
    assert load(BASE + "defence: null\n").defence == []


def test_later_set_wins_and_lists_are_indexed(load) -> None:
    text = BASE.replace("data: {path: d.json}", "data: [{path: a}, {path: b}]")
    config = load(text, "data.1.max_rows=5", "seed=1", "seed=2", "lora=null")
    assert [source.max_rows for source in config.data] == [None, 5]
    assert config.seed == 2
    assert config.lora is None


@pytest.mark.parametrize("kind", [TrainConfig, AlignConfig])
def test_the_resolved_config_reads_back(load, kind) -> None:
    config = load(BASE + "training: {learning_rate: 5e-5}\n", kind=kind)
    assert load(dump_yaml(config), kind=kind) == config


def test_machine_and_output_are_no_science(load) -> None:
    one = load(BASE)
    other = load(BASE, "machine.micro_batch_size=2", "machine.dtype=float32", "output=p")
    assert one.science() == other.science()
    assert one.science() != load(BASE, "seed=1").science()


def test_every_key_is_described() -> None:
    def walk(kind) -> None:
        for name, field in kind.model_fields.items():
            inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
            sections = [i for i in inner if hasattr(i, "model_fields")]
            assert field.description or sections, f"{kind.__name__}.{name}"
            for section in sections:
                walk(section)

    walk(TrainConfig)
    walk(AlignConfig)


def test_a_config_extends_another_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text(
        "model: {path: m}\ndata: {path: d}\ntraining: {epochs: 2, batch_size: 4}\noutput: o\n"
    )
    (tmp_path / "main.yaml").write_text("extends: below.yaml\ntraining: {epochs: 5}\n")
    config = load_config(tmp_path / "main.yaml", TrainConfig, ["training.batch_size=16"])
    assert (config.training.epochs, config.training.batch_size) == (5, 16)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "extends: nowhere.yaml",
            r"nowhere\.yaml: cannot read the config that .*main\.yaml extends",
        ),
        ("extends: main.yaml", "extends main.yaml, which extends it; take one of them out"),
        ("extends: [a, b]", "extends is the name of one file, not a list"),
    ],
)
def test_what_cannot_be_extended_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "main.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_config(tmp_path / "main.yaml", TrainConfig)


def test_off_needs_no_quotes(load) -> None:
    """YAML reads a bare ``off`` as false."""
    written = load(BASE + "penalty: {anchor: a, side: off}").penalty
    assert written.side == load(BASE, "penalty.anchor=a", "penalty.side=off").penalty.side == "off"
    with pytest.raises(ConfigError, match=r"penalty\.side: expected off, along, found true"):
        load(BASE + "penalty: {anchor: a, side: on}")


def test_what_tables_call_a_method_is_written_as_a_config_takes_it() -> None:
    from anchortune.config_defences import _WRITTEN, Defences

    taken = TypeAdapter(Defences)
    for name, written in _WRITTEN.items():
        found = re.findall(r"\[\]|\{[^}]*\}|lisa$", written)
        assert found, name
        for one in found:
            chain = taken.validate_python(yaml.safe_load(one))
            assert [section.name for section in chain] in ([], ["asft"], ["lisa"])
