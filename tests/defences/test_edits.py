"""LoX, Safe LoRA, CSULoRA and RESTA against the dense formulas that define them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.format import AnchorMetadata, ModuleInfo
from anchortune.defences.base import Anchors
from anchortune.defences.csulora import CsuLora
from anchortune.defences.lox import Lox
from anchortune.defences.resta import Resta
from anchortune.defences.safe_lora import SafeLora
from anchortune.errors import AnchorError
from anchortune.maths.factors import factorise_dense
from anchortune.maths.lowrank import LowRank, Update

NAMES = [f"model.layers.{n}.self_attn.{p}_proj" for n in range(3) for p in "qv"]
D_OUT, D_IN = 10, 8


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def deltas(names: list[str] = NAMES, seed: int = 0) -> dict[str, Tensor]:
    """dW by module, of falling spectra: the first directions stand out."""
    scale = torch.logspace(0, -2, D_IN)
    return {
        name: random(D_OUT, D_IN, seed=seed + n) * scale * (n + 1) for n, name in enumerate(names)
    }


def anchor_of(dense: dict[str, Tensor], rank: int | None = None) -> Anchor:
    return Anchor({name: factorise_dense(delta, rank=rank) for name, delta in dense.items()})


def update_of(names: list[str] = NAMES, seed: int = 100) -> Update:
    return {
        name: LowRank(random(D_OUT, 3, seed=seed + n), random(3, D_IN, seed=seed + 50 + n))
        for n, name in enumerate(names)
    }


def dense(part: LowRank) -> Tensor:
    return part.left.double() @ part.right.double()


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-5)


def dense_c(delta: Tensor, operator: str, rank: int) -> Tensor:
    """C of method.md, dense, in float64."""
    u, s, _ = torch.linalg.svd(delta.double(), full_matrices=False)
    u, s = u[:, :rank], s[:rank]
    c = s.square() / torch.linalg.matrix_norm(delta.double()) if operator == "gram" else s**0
    return u @ torch.diag(c) @ u.T


def dense_cosine(c: Tensor, x: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity((c @ x).flatten(), x.flatten(), dim=0))


@pytest.mark.parametrize("operator", ["gram", "subspace"])
def test_safe_lora_projects_where_the_cosine_is_at_or_below_the_threshold(operator: str) -> None:
    delta, update = deltas(), update_of()
    rank = 4 if operator == "subspace" else D_IN
    c = {name: dense_c(delta[name], operator, rank) for name in NAMES}
    cosines = {name: dense_cosine(c[name], dense(update[name])) for name in NAMES}
    threshold = sorted(cosines.values())[2] + 1e-6
    method = SafeLora(operator=operator, threshold=threshold, rank=rank)
    anchors = Anchors(aligned=anchor_of(delta))
    assert method.cosines(update, anchors) == pytest.approx(cosines, rel=1e-5)
    found = method.after(update, anchors)
    projected = [name for name in NAMES if found[name] is not update[name]]
    assert sorted(projected) == sorted(name for name in NAMES if cosines[name] <= threshold)
    assert len(projected) == 3
    for name in projected:
        close(dense(found[name]), c[name] @ dense(update[name]))
        assert torch.equal(found[name].right, update[name].right)
        assert found[name].rank == 3


def test_safe_lora_by_number_takes_exactly_the_lowest() -> None:
    anchors, update = Anchors(aligned=anchor_of(deltas())), update_of()
    cosines = SafeLora().cosines(update, anchors)
    lowest = sorted(NAMES, key=lambda name: cosines[name])[:2]
    found = SafeLora(modules=2).after(update, anchors)
    assert sorted(n for n in NAMES if found[n] is not update[n]) == sorted(lowest)


def test_safe_lora_takes_ten_where_nothing_is_said() -> None:
    names = [f"layers.{n}.q_proj" for n in range(12)]
    anchors, update = Anchors(aligned=anchor_of(deltas(names))), update_of(names)
    found = SafeLora().after(update, anchors)
    assert sum(found[name] is not update[name] for name in names) == 10


def test_safe_lora_leaves_out_what_has_not_moved() -> None:
    anchors, update = Anchors(aligned=anchor_of(deltas())), update_of()
    still = NAMES[0]
    update[still] = LowRank(torch.zeros(D_OUT, 3), update[still].right)
    found = SafeLora(modules=len(NAMES) - 1).after(update, anchors)
    assert [name for name in NAMES if found[name] is update[name]] == [still]


def test_safe_lora_in_every_module_is_the_projection_onto_the_subspace() -> None:
    delta, update = deltas(), update_of()
    found = SafeLora(operator="subspace", threshold=1, rank=2).after(
        update, Anchors(aligned=anchor_of(delta))
    )
    for name in NAMES:
        close(dense(found[name]), dense_c(delta[name], "subspace", 2) @ dense(update[name]))


def test_safe_lora_goes_by_a_threshold_or_a_number() -> None:
    with pytest.raises(ValidationError, match="threshold or modules, not both"):
        SafeLora(threshold=0.5, modules=3)


@pytest.mark.parametrize("rank", [2, None])
def test_lox_is_alpha_times_the_leading_part(rank: int | None) -> None:
    delta = deltas()
    edit = Lox(rank=rank, alpha=1.25).before(Anchors(aligned=anchor_of(delta)))
    assert list(edit) == NAMES
    for name in NAMES:
        u, s, vh = torch.linalg.svd(delta[name].double(), full_matrices=False)
        k = rank or D_IN
        close(dense(edit[name]), 1.25 * u[:, :k] @ torch.diag(s[:k]) @ vh[:k])
        assert edit[name].rank == k


def test_csulora_shrinks_by_the_shares_of_the_dense_parts() -> None:
    delta, update = deltas(), update_of()
    found = CsuLora(rank=3, strength=4).after(update, Anchors(aligned=anchor_of(delta)))
    for name in NAMES:
        u, _, vh = torch.linalg.svd(delta[name].double(), full_matrices=False)
        pu, pv = u[:, :3] @ u[:, :3].T, vh[:3].T @ vh[:3]
        x = dense(update[name])
        inside = pu @ x @ pv
        one_sided = pu @ x + x @ pv - 2 * inside
        outside = x - inside - one_sided
        total = x.square().sum()
        wanted = inside + sum(
            part / (1 + 4 * part.square().sum() / total) for part in (one_sided, outside)
        )
        close(dense(found[name]), wanted)
        assert found[name].rank <= 6


@pytest.mark.parametrize("vector", ["base", "harmful"])
def test_resta_adds_the_vector_in_every_module_of_its_anchor(vector: str) -> None:
    aligned, harmful = deltas(), deltas(seed=30)
    update = update_of(NAMES[:4])
    method = Resta(gamma=0.5, vector=vector, rank=2)
    anchors = Anchors(anchor_of(aligned), anchor_of(harmful))
    found = method.after(update, anchors)
    assert list(found) == NAMES
    source, sign = (aligned, 1) if vector == "base" else (harmful, -1)
    for name in NAMES:
        u, s, vh = torch.linalg.svd(source[name].double(), full_matrices=False)
        wanted = sign * 0.5 * u[:, :2] @ torch.diag(s[:2]) @ vh[:2]
        if name in update:
            wanted = wanted + dense(update[name])
            assert found[name].rank == 5
        close(dense(found[name]), wanted)


def test_what_each_needs() -> None:
    assert Resta().needed() == {"anchor"}
    assert Resta(vector="harmful").needed() == {"harmful_anchor"}
    for method in (SafeLora(), CsuLora(), Lox()):
        assert method.needed() == {"anchor"}


AFTER = [SafeLora(), CsuLora(), Resta()]


@pytest.mark.parametrize("method", AFTER, ids=lambda method: method.label)
def test_modules_that_the_anchor_lacks_are_named(method: SafeLora | CsuLora | Resta) -> None:
    anchors = Anchors(aligned=anchor_of(deltas(NAMES[:4])))
    with pytest.raises(AnchorError, match=r"2 of 6 modules .*layers\.2\.self_attn\.q_proj, .*v_p"):
        method.after(update_of(), anchors)


@pytest.mark.parametrize("method", AFTER, ids=lambda method: method.label)
def test_another_shape_is_told(method: SafeLora | CsuLora | Resta) -> None:
    update = update_of()
    update[NAMES[1]] = LowRank(torch.ones(4, 1), torch.ones(1, D_IN))
    with pytest.raises(AnchorError, match=r"0\.self_attn\.v_proj is 4 × 8 .* but 10 × 8 in"):
        method.after(update, Anchors(aligned=anchor_of(deltas())))


@pytest.mark.parametrize("method", [*AFTER, Resta(vector="harmful")], ids=str)
def test_without_an_anchor_nothing_is_done(method: SafeLora | CsuLora | Resta) -> None:
    with pytest.raises(AnchorError, match=f"{method.label} needs an? .*anchor and was given none"):
        method.after(update_of(), Anchors())
    with pytest.raises(AnchorError, match="lox needs an anchor"):
        Lox().before(Anchors())


def test_a_rank_that_was_cut_off_is_not_taken_for_all() -> None:
    anchors = Anchors(aligned=anchor_of(deltas(), rank=2))
    with pytest.raises(AnchorError, match="rank 3 is asked for and the anchor holds 2"):
        CsuLora(rank=3).after(update_of(), anchors)
    with pytest.raises(AnchorError, match="rank 6 is asked for"):
        Lox().before(anchors)


def test_names_of_other_leading_components_are_the_same_modules() -> None:
    delta = deltas()
    short = {name.removeprefix("model."): value for name, value in delta.items()}
    update = update_of(NAMES[:2])
    wanted = Resta(rank=2).after(update, Anchors(aligned=anchor_of(delta)))
    found = Resta(rank=2).after(update, Anchors(aligned=anchor_of(short)))
    assert list(found) == NAMES
    for name in NAMES:
        close(dense(found[name]), dense(wanted[name]))


def test_a_weight_stored_the_other_way_round_is_turned() -> None:
    delta, update = deltas(), update_of()
    straight = anchor_of(delta)
    turned = {name: factorise_dense(value.T.contiguous()) for name, value in delta.items()}
    info = {name: ModuleInfo.of(factors, transposed=True) for name, factors in turned.items()}
    metadata: AnchorMetadata = anchor_of(delta).metadata.model_copy(update={"modules": info})
    conv1d = Anchor(turned, metadata)
    for method in AFTER:
        wanted = method.after(update, Anchors(aligned=straight))
        found = method.after(update, Anchors(aligned=conv1d))
        for name in NAMES:
            close(dense(found[name]), dense(wanted[name]))


def test_nothing_that_was_given_is_changed() -> None:
    update, anchor = update_of(), anchor_of(deltas())
    before = {name: (part.left.clone(), part.right.clone()) for name, part in update.items()}
    held = {name: replace(factors) for name, factors in anchor.modules.items()}
    for method in AFTER:
        method.after(update, Anchors(aligned=anchor))
    for name, part in update.items():
        assert torch.equal(part.left, before[name][0])
        assert torch.equal(part.right, before[name][1])
        assert torch.equal(anchor.modules[name].left, held[name].left)
