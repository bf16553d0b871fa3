"""Each harness on its seeds and on a few hundred changed ones: no exception but our own."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.harnesses import HARNESSES
from tests.fuzz.seeds import mutated, seeds

SEEDS = seeds()
ROUNDS = {"config": 40, "records": 100, "gguf": 200}


def test_every_harness_has_seeds() -> None:
    assert SEEDS.keys() == HARNESSES.keys()


@pytest.mark.parametrize("name", HARNESSES)
def test_no_exception_but_our_own(name: str) -> None:
    source = random.Random(name)
    for seed in SEEDS[name]:
        HARNESSES[name](seed)
    for _ in range(ROUNDS.get(name, 150)):
        data = mutated(source.choice(SEEDS[name]), source)
        try:
            HARNESSES[name](data)
        except Exception as error:
            raise AssertionError(f"{name} fails on {data[:2000]!r}") from error
