"""Second-order reconstruction of one layer: columns change one after the other, and those behind make up for it.

With X what a layer's weight is multiplied with, the sum of squares by which W X changes has the Hessian H = X X^T for
each row of W. Hassibi and Stork, Second order derivatives for network pruning: optimal brain surgeon, NIPS 1992.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pruning_bench.errors import ModelError

_ROWS = 1 << 16  # inputs whose products are summed at a time in float64


def products(patches: Tensor) -> Tensor:
    """X X^T of what a weight is multiplied with, summed in float64.

    Args:
        patches: [groups, n, c], any float dtype.
    Returns:
        float64 [groups, c, c].
    Example:
        >>> products(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        tensor([[[10., 14.],
                 [14., 20.]]], dtype=torch.float64)
    """
    total = patches.new_zeros((len(patches), patches.shape[2], patches.shape[2]), dtype=torch.float64)
    for part in torch.split(patches, _ROWS, 1):
        wide = part.double()
        total += wide.transpose(1, 2) @ wide
    return total


def inverse_root(gram: Tensor, damping: float, name: str, who: str) -> tuple[Tensor, Tensor]:
    """The upper triangular U with U^T U = H^-1, and which inputs are always zero.

    Row j of U is [H_j^-1]_j / sqrt([H_j^-1]_jj), H_j being H without what stands before column j.

    Args:
        gram: X X^T, float64 [groups, c, c].
        damping: share of the mean of its diagonal that is added to it.
    Returns:
        float64 [groups, c, c]; bool [groups, c].
    Raises:
        ModelError: H is singular.
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)
    dead = diagonal == 0
    added = dead + damping * diagonal.mean(1, keepdim=True)  # of a dead input any value does: nothing hangs on it
    lower, failed = torch.linalg.cholesky_ex(gram + torch.diag_embed(added))
    if not failed.any():
        root, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed.any():
        found = f"inputs that depend on each other with damping {damping}"
        raise ModelError(who, found, "more calibration data or more damping", name)
    return root, dead


def sweep(rows: Tensor, root: Tensor, block: int, decide: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    """Settles one column after the other; those behind it make up for each change, so that W X changes least.

    A change of w_ij by d changes its row from column j on by d / [H_j^-1]_jj * [H_j^-1]_j.

    Args:
        rows: weights, float64 [groups, r, c].
        root: of `inverse_root`, [groups, c, c].
        block: columns whose changes reach those behind the block in one product; the result does not depend on it.
        decide: called as `decide(rows, at, stop)` with the weights so far, whose columns at to stop - 1 are up to date;
            returns what column `at` is to be, [groups, r].
    Returns:
        float64, shape of `rows`: equal to what was decided, to rounding.
    """
    rows = rows.clone()
    scales = root.diagonal(dim1=1, dim2=2)[:, None]
    for start in range(0, rows.shape[2], block):
        stop = min(start + block, rows.shape[2])
        errors = torch.zeros_like(rows[..., start:stop])
        for at in range(start, stop):
            errors[..., at - start] = (rows[..., at] - decide(rows, at, stop)) / scales[..., at]
            rows[..., at:stop] -= errors[..., at - start, None] * root[:, at, None, at:stop]
        rows[..., stop:] -= errors @ root[:, start:stop, stop:]
    return rows
