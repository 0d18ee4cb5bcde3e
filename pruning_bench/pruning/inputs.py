"""What the weights of a model are multiplied with, for methods that weigh them by their inputs.

A weight [outputs, inputs, ...] is seen as one matrix [outputs, columns], or `groups` of them below each other in a
grouped convolution; its columns are its own elements in their order, and what it is multiplied with are the unfolded
patches of its input. The weight of a transposed convolution is seen with its inputs second (`patterns.inputs_second`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

from pruning_bench.errors import ModelError, one_line
from pruning_bench.pruning.masks import transposed

See = Callable[[str, Tensor], None]
_ATEN = torch.ops.aten
_PRODUCTS = {_ATEN.mm.default: (0, 1), _ATEN.addmm.default: (1, 2)}
_CHUNK = 1 << 24  # elements of patches that exist at a time


def watch_inputs(
    model: nn.Module, batches: Sequence[tuple[Tensor, ...]], names: Collection[str], see: See, who: str
) -> None:
    """Runs the model in eval mode and shows `see(name, patches)` all that the named weights are multiplied with.

    Args:
        model: not changed; batches go to its device.
        names: parameters.
        see: called with float32 patches [groups, n, columns], as often as it takes.
    Raises:
        ModelError: a batch that does not fit the model, a weight that is used in another way than by a whole linear
            layer or a convolution.
    """
    work = copy.deepcopy(model).eval()
    weights = {_storage(work.get_parameter(name)): (name, work.get_parameter(name)) for name in names}
    watch = _Watch(weights, transposed(work), see, who)
    device = next((p.device for p in work.parameters()), torch.device("cpu"))
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), watch:
            for number, batch in enumerate(batches):
                try:
                    work(*(value.to(device, copy=True) for value in batch))  # it may work in place on them
                except (RuntimeError, TypeError, IndexError) as error:
                    found = f"a batch that does not run ({one_line(error)})"
                    raise ModelError(who, found, "inputs of the model", f"calibration batch {number}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    if missing := [name for name in names if name not in watch.seen]:
        raise ModelError(who, "a weight that no linear layer or convolution used", "one used in forward", missing[0])


def watch_call(call: Callable[[], object], name: str, weight: Tensor, see: See, who: str) -> None:
    """Makes one call and shows `see(name, patches)` what the weight is multiplied with in it; see `watch_inputs`."""
    with torch.no_grad(), _Watch({_storage(weight): (name, weight)}, {}, see, who):
        call()


class _Watch(TorchDispatchMode):
    """Shows the inputs of watched weights, whatever module or function multiplies them."""

    def __init__(
        self, weights: Mapping[int, tuple[str, Tensor]], turned: Mapping[str, int], see: See, who: str
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights, self.turned, self.see, self.who = weights, turned, see, who
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            rows, factor = (args[at] for at in _PRODUCTS[func])
            if found := self.weights.get(_storage(factor)):
                name, weight = found
                whole = weight.t()
                if (factor.shape, factor.stride()) != (whole.shape, whole.stride()):  # transposed if it is square
                    raise ModelError(self.who, "a weight of which parts are multiplied", "one used as a whole", name)
                self._show(name, rows[None])
        elif func is _ATEN.convolution.default and (found := self.weights.get(_storage(args[1]))):
            name, weight = found
            images, _, _, stride, padding, dilation, turned, more, groups = args
            if self.turned.get(name) != (groups if turned else None):
                layer = f"a {'transposed' if turned else 'plain'} convolution of {groups} groups that shares its weight"
                raise ModelError(self.who, layer, "one of the same kind as the layer that has it", name)
            if turned:
                parts = unfold_transposed(images, weight, stride, padding, dilation, more, groups)
            else:
                parts = unfold(images, weight, stride, padding, dilation, groups)
            for patches in parts:
                self._show(name, patches)
        return func(*args, **(kwargs or {}))

    def _show(self, name: str, patches: Tensor) -> None:
        self.seen.add(name)
        self.see(name, patches.float())


def unfold(
    images: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Iterator[Tensor]:
    """The patches that a convolution of any dimension multiplies its weight with, some images at a time.

    Args:
        images: [N, C, ...].
        weight: [outputs, C / groups, ...kernel].
    Returns:
        [groups, n, C / groups * kernel elements] each.
    Example:
        >>> [patches.shape for patches in unfold(torch.ones(2, 4, 5), torch.ones(6, 2, 3), [1], [0], [1], 2)]
        [torch.Size([2, 6, 6])]
    """
    kernel, dims = weight.shape[2:], images.dim() - 2
    edges = [amount for size in reversed(padding) for amount in (size, size)]
    thinned: tuple[Any, ...] = (..., *(slice(None, None, step) for step in dilation))
    each = max(1, _CHUNK // max(1, images[0].numel() * kernel.numel()))
    for part in torch.split(images, each):
        part = pad(part, edges)
        for at in range(dims):
            part = part.unfold(at + 2, dilation[at] * (kernel[at] - 1) + 1, stride[at])
        part = part[thinned]
        count, channels = part.shape[:2]  # [N, C, ...places, ...kernel]
        part = part.reshape(count, groups, channels // groups, -1, kernel.numel())
        yield part.permute(1, 0, 3, 2, 4).reshape(groups, -1, channels // groups * kernel.numel())


def unfold_transposed(
    images: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    more: Sequence[int],
    groups: int,
) -> Iterator[Tensor]:
    """The patches that a transposed convolution multiplies its weight with, seen with its inputs second.

    It is a plain convolution of the images with stride - 1 zeros between their elements, the kernel turned round.

    Args:
        images: [N, C, ...].
        weight: [C, outputs / groups, ...kernel].
        more: places that the output has besides, at its ends.
    Returns:
        [groups, n, C / groups * kernel elements] each.
    Example:
        >>> [patches] = unfold_transposed(torch.tensor([[[5.0, 7.0]]]), torch.ones(1, 1, 2), [2], [0], [1], [0], 1)
        >>> patches.tolist()
        [[[5.0, 0.0], [0.0, 5.0], [7.0, 0.0], [0.0, 7.0]]]
    """
    kernel, places = weight.shape[2:], images.shape[2:]
    reached = [(size - 1) * step + 1 for size, step in zip(places, stride, strict=True)]
    apart = images.new_zeros([*images.shape[:2], *(size + end for size, end in zip(reached, more, strict=True))])
    taken: tuple[Any, ...] = (..., *(slice(0, size, step) for size, step in zip(reached, stride, strict=True)))
    apart[taken] = images
    edges = [step * (size - 1) - less for size, step, less in zip(kernel, dilation, padding, strict=True)]
    for patches in unfold(apart, weight, [1] * len(kernel), edges, dilation, groups):
        yield patches.reshape(*patches.shape[:2], -1, kernel.numel()).flip(3).flatten(2)


def _storage(tensor: Tensor) -> int:
    """The same for a tensor and its views."""
    return int(tensor.untyped_storage()._cdata)
