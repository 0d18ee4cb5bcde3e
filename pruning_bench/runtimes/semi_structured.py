"""Torch's 2:4 kernels on CUDA: half-precision linear layers of whose every four weights along the inputs two are zero.

GPUs from compute capability 8.0 on have them. Nothing was measured with them yet.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from pruning_bench.runtimes.contract import Kernel

LEAST_CAPABILITY = (8, 0)
DTYPES = (torch.float16, torch.bfloat16)
ROWS, COLUMNS = 32, 64  # multiples that the kernels take


def sparsify(model: nn.Module) -> tuple[Kernel, ...]:
    """Compresses the weights that the kernels take, in place; lists their layers.

    `nn.MultiheadAttention` reads the weights of its layers itself, so that they stay as they are.
    """
    found = []
    for path, layer in model.named_modules():
        if type(layer) is nn.Linear and fits(weight := layer.weight.detach()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says that its interface may change
                layer.weight = nn.Parameter(to_sparse_semi_structured(weight), requires_grad=False)
            found.append(Kernel(path, "2:4 linear", str(weight.dtype).removeprefix("torch.")))
    return tuple(found)


def fits(weight: Tensor) -> bool:
    """Is there a kernel for the weight, [outputs, inputs], where it lies?"""
    rows, columns = weight.shape
    takes = weight.is_cuda and weight.dtype in DTYPES and rows % ROWS == 0 and columns % COLUMNS == 0
    return takes and torch.cuda.get_device_capability(weight.device) >= LEAST_CAPABILITY and two_of_four(weight)


def two_of_four(weight: Tensor) -> bool:
    """Are at least two of every four neighbours of a row, [outputs, inputs], zero?

    Example:
        >>> two_of_four(torch.tensor([[0.0, 1.0, 2.0, 0.0]])), two_of_four(torch.tensor([[3.0, 1.0, 2.0, 0.0]]))
        (True, False)
    """
    if weight.shape[1] % 4:
        return False
    return bool(((weight.reshape(len(weight), -1, 4) != 0).sum(2) <= 2).all())
