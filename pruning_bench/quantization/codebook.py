"""Codebooks: few values that the elements of a weight share, one of them zero; k-means in one dimension.

Han et al., Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding,
ICLR 2016, arXiv 1510.00149.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning_bench.errors import ModelError

MOST_ROUNDS = 1000  # of k-means; it stops by itself when nothing moves


def choose_codebook(values: Tensor, entries: int, who: str = "codebook") -> Tensor:
    """The shared values: k-means from equally spaced centres over the range, one of which is zero and stays so.

    Values are sorted once, so that every round assigns all of them exactly; in float64. Fewer entries come back where
    some would be equal.

    Args:
        values: any float dtype and shape, finite, at least one.
        entries: at least 2.
    Returns:
        float32 [at most entries], ascending, zero among them.
    Raises:
        ModelError: a value that is not finite.
    Example:
        >>> choose_codebook(torch.tensor([-1.0, -0.8, 0.0, 0.0, 0.5]), 3)
        tensor([-0.9000,  0.0000,  0.5000])
    """
    ordered = values.detach().double().flatten().sort().values
    if not torch.isfinite(ordered).all():
        bad = int((~torch.isfinite(ordered)).sum())
        raise ModelError(who, f"{bad} non-finite weights", "finite weights")
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    lowest, highest = min(float(ordered[0]), 0.0), max(float(ordered[-1]), 0.0)
    centres = torch.linspace(lowest, highest, entries, dtype=torch.float64)
    zero = int(centres.abs().argmin())
    centres[zero] = 0.0
    for _ in range(MOST_ROUNDS):
        ends = torch.searchsorted(ordered, _borders(centres), right=True)
        ends = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([len(ordered)])])
        counts, totals = ends.diff(), sums[ends].diff()
        moved = torch.where(counts > 0, totals / counts.clamp(min=1), centres)
        moved[zero] = 0.0
        if torch.equal(moved, centres):
            break
        centres = moved
    distinct: Tensor = centres.float().unique()  # type: ignore[no-untyped-call]
    return distinct


def nearest(values: Tensor, table: Tensor) -> Tensor:
    """Index of the entry nearest to each value, of two equally near ones the lower; int64, the shape of `values`.

    Args:
        table: ascending, as `choose_codebook` gives it.
    Example:
        >>> nearest(torch.tensor([[-9.0, 0.1], [0.25, 0.3]]), torch.tensor([-1.0, 0.0, 0.5]))
        tensor([[0, 1],
                [1, 2]])
    """
    return torch.searchsorted(_borders(table.double()), values.detach().double().contiguous())


def _borders(centres: Tensor) -> Tensor:
    """What lies in the middle between two neighbours, [entries - 1]; a value on a border belongs to the lower one."""
    return (centres[1:] + centres[:-1]) / 2
