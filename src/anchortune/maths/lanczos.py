"""The leading singular triplets of a large matrix by block Lanczos, in few passes over it.

What it costs is products with ``dW`` and with its transpose. So every product is kept, and the
triplets are the best that the whole Krylov space of them holds (Golub and Van Loan, *Matrix
Computations*, 10.4; Musco and Musco, arXiv 1504.05477), where subspace iteration keeps the last
product alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SETTLED_FRAC = 0.05
"""The step is the last one that follows one which left at most this share to be gained."""
OVERSAMPLE = 16
"""How many columns the space has at least beyond those that are kept."""

_WIDEST = 32

_SKETCH_ROWS = 256
_SKETCH_STEPS = 4
_EXACT_FRAC = 1e-2
_LITTLE_FRAC = 1e-4
_NOTHING_FRAC = 1e-5
_PASS_ROWS = 128


class Triplets(NamedTuple):
    """Singular triplets, descending, in float64.

    Attributes:
        left: orthonormal columns, (d_out, k).
        sigma: (k,), with ``delta @ right = left * sigma``.
        right: orthonormal columns, (d_in, k).
    """

    left: Tensor
    sigma: Tensor
    right: Tensor


def leading_triplets(
    delta: Tensor, limit: int, *, target: float = math.inf, most: int, seed: int = 0
) -> Triplets | None:
    """The leading triplets of ``delta``, or None where the space would grow past ``most``.

    With ``V`` an orthonormal basis of the space, ``X = delta·V`` is known, and from its SVD
    ``X = U S Wᵀ`` come the triplets ``(U, S, V·W)``: ``delta·(V·W) = U·S`` holds as it stands,
    converged or not. How far they may improve is measured, not assumed: ``‖deltaᵀU‖² - ΣS²`` is
    what the next half step gains. Where that is at most `SETTLED_FRAC` of ``ΣS²`` one step more
    is taken, without its way back, and is the last. What is then still missing of the best
    ``Σσ²`` was 0.7 % of ``‖dW‖_F²`` or less on planted spectra and on ``i^-p``, p from 0.3 to 1,
    and where there is nothing but noise.

    Args:
        delta: (d_out, d_in), float32, finite, on any device.
        limit: how many triplets to return at most.
        target: with as few as reach this ``Σσ²``, where fewer than ``limit`` do; the space grows
            until it does reach it.
        most: columns that the space may have, at most ``min(delta.shape)``.
        seed: of the sketch; the same seed gives the same triplets.
    """
    generator = torch.Generator().manual_seed(seed)
    block = _start(delta, min(min(limit, _WIDEST) + OVERSAMPLE, most), generator)
    basis, images = block[:, :0], delta[:, :0]
    returns = basis
    while basis.shape[1] + block.shape[1] <= most:
        if _settled(images, returns, limit, target, block.shape[1]):
            last = _beside(images, delta @ block)
            return _ritz(_beside(basis, block), last, limit)
        image, back = there_and_back(delta, block)
        basis = _beside(basis, block)
        images, returns = _beside(images, image), _beside(returns, back)
        block = _orthonormal(back, basis, generator)
    return None


def there_and_back(delta: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """``delta·block`` and ``deltaᵀ·delta·block`` in one pass, by rows while they are in cache."""
    rows = _PASS_ROWS if delta.device.type == "cpu" else len(delta)
    image = delta.new_empty(len(delta), block.shape[1])
    back = delta.new_zeros(block.shape[1], delta.shape[1])
    for some, part in zip(torch.split(delta, rows), torch.split(image, rows), strict=True):
        torch.mm(some, block, out=part)
        back.addmm_(part.T, some)
    return image, back.T


def _start(delta: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """The leading right singular vectors of a sketch: rows with random signs, summed by turns.

    A sum costs one addition for an element of ``delta``, a product with random numbers one for
    each of its columns.
    """
    signs = torch.randint(0, 2, (len(delta), 1), generator=generator)
    signs = signs.mul_(2).sub_(1).to(delta)
    rows = max(_SKETCH_ROWS, columns)
    sketch = delta.new_zeros(rows, delta.shape[1])
    for some, turn in zip(torch.split(delta, rows), torch.split(signs, rows), strict=True):
        sketch[: len(some)].addcmul_(some, turn)
    gram = sketch @ sketch.T
    some = torch.randn(rows, columns, generator=generator).to(delta)
    for _ in range(_SKETCH_STEPS):
        some = torch.linalg.qr(gram @ some)[0]
    block: Tensor = torch.linalg.qr((sketch.T @ some).double())[0]
    return block.float().contiguous()


def _orthonormal(block: Tensor, basis: Tensor, generator: torch.Generator) -> Tensor:
    """An orthonormal basis of what ``block`` adds to ``basis``; twice, where once is not exact.

    Columns that add nothing but rounding are replaced by random ones, so that a space which cannot
    grow by itself (equal singular values, a rank below its width) still grows. What is that little
    is told apart in float64: sums over a column of one value are off by 1e-5 in float32.
    """
    found, added = _beyond(block, basis)
    least = float(added.min())
    if least > _LITTLE_FRAC:
        return (found if least > _EXACT_FRAC else _beyond(found, basis)[0]).contiguous()
    basis = basis.double()
    found, added = _beyond(block.double(), basis)
    noise = torch.randn(block.shape, generator=generator) / math.sqrt(len(block))
    found = torch.where(added > _NOTHING_FRAC, found, noise.to(found))
    return _beyond(found, basis)[0].float().contiguous()


def _beyond(block: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """What ``block`` adds, orthonormal; and how much each column does, of the largest."""
    size = torch.linalg.vector_norm(block, dim=0).max()
    found, triangle = torch.linalg.qr(block - basis @ (basis.T @ block))
    return found, triangle.diagonal().abs() / size


def _settled(images: Tensor, returns: Tensor, limit: int, target: float, step: int) -> bool:
    """Whether the triplets that are wanted are all there, and the next half step gains little."""
    if images.shape[1] == 0:
        return False
    squares, vectors = torch.linalg.eigh(images.T @ images)
    squares = squares.flip(0).double().clamp_min(0.0)
    reached = int((squares.cumsum(0) < target).sum()) + 1
    held = len(squares)
    count = min(limit, reached)
    if count > held or count + OVERSAMPLE > held + step:
        return False
    wanted = squares[:count]
    backs = returns @ vectors.flip(1)[:, :count]
    scale = wanted.clamp_min(torch.finfo(torch.float32).eps * float(squares[0]))
    after = float((torch.linalg.vector_norm(backs, dim=0).double().square() / scale).sum())
    caught = float(wanted.sum())
    return caught > 0.0 and after - caught <= SETTLED_FRAC * caught


def _ritz(basis: Tensor, images: Tensor, limit: int) -> Triplets:
    """The leading triplets that the space holds; exact in float64 for the columns chosen."""
    _, turns = torch.linalg.eigh(images.T @ images)
    chosen = turns.flip(1)[:, :limit]
    right, image = (basis @ chosen).cpu().double(), (images @ chosen).cpu().double()
    sizes, vectors = torch.linalg.eigh(right.T @ right)
    whiten = (vectors / sizes.sqrt())[:, sizes > 0.5]
    left, sigma, turn = torch.linalg.svd(image @ whiten, full_matrices=False)
    return Triplets(left, sigma, right @ (whiten @ turn.T))


def _beside(columns: Tensor, more: Tensor) -> Tensor:
    return torch.cat([columns, more], dim=1)
