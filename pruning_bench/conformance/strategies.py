"""Small models and awkward numbers for property tests: shipped, so that a user's own method meets them too."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_bench.contracts import Context
from pruning_bench.datasets.contract import Tensors
from pruning_bench.graphs import at_least_two

LEVELS = (0.0, 0.1, 0.29, 0.5, 0.9, 0.999)


@dataclass(frozen=True)
class Subject:
    """A model to test a method on, with what its forward takes.

    Args:
        name: for messages.
        model: in eval mode; checks never change it.
        example_inputs: positional arguments, batch first.
    """

    name: str
    model: nn.Module
    example_inputs: tuple[Tensor, ...]

    def context(self, seed: int = 0, batches: int = 2) -> Context:
        """A context whose generator, calibration batches and labelled examples (of two classes) follow from `seed`."""
        noise = torch.Generator().manual_seed(seed)
        calibration = [other_inputs(self.example_inputs, noise) for _ in range(batches)]
        values = tuple(torch.cat(parts) for parts in zip(*calibration, strict=True))
        train = Tensors(values, torch.arange(len(values[0])) % 2)
        return Context(self.example_inputs, torch.Generator().manual_seed(seed), calibration, train, seed=seed)


def other_inputs(example_inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Standard normal inputs of the shapes and types of the given ones; of integers the given examples moved on by one.

    Of a single example the last dimension is moved instead, in all integer inputs alike.
    """

    def other(value: Tensor) -> Tensor:
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator).to(value)
        return value.roll(1, 0 if len(value) > 1 else -1) if value.dim() else value

    return tuple(other(value) for value in example_inputs)


def levels() -> st.SearchStrategy[float]:
    """Sparsities in [0, 1): round ones, awkward ones, close to 1."""
    return st.sampled_from(LEVELS) | st.floats(0, 1, exclude_max=True, allow_subnormal=False)


@st.composite
def score_tensors(draw: st.DrawFn, most: int = 40) -> Tensor:
    """Float32 tensors with ties and zeros, of one to three dimensions, from a single element on."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).filter(lambda sizes: math.prod(sizes) <= most))
    count = math.prod(shape)
    few = st.sampled_from([0.0, 0.0, 1.0, -1.0, 2.0, 1e-30])  # mostly ties
    many = st.floats(-100, 100, width=32)
    values = draw(st.lists(draw(st.sampled_from([few, many])), min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


BLOCKS = ("conv", "residual", "projected", "depthwise", "pool", "concat", "gate", "grouped", "attention")
HEADS = ("flatten", "average", "hidden")


@dataclass(frozen=True)
class GraphSpec:
    """All that decides a random small network; `build` makes it.

    Args:
        blocks: from `BLOCKS`, in order; each with its width.
        head: "flatten" into a linear layer, "average" over places first, "hidden" with a linear layer in between.
        in_channels, size: of the input images, [batch, in_channels, size, size].
        norm, bias: batch norm after convolutions; convolutions with biases.
        classes: outputs.
    """

    blocks: tuple[tuple[str, int], ...]
    head: str = "flatten"
    in_channels: int = 2
    size: int = 8
    norm: bool = True
    bias: bool = False
    classes: int = 3

    def build(self, seed: int = 0) -> Subject:
        """The network with every parameter and buffer randomised, in eval mode."""
        model = randomise(GraphNet(self), (torch.zeros(4, self.in_channels, self.size, self.size),), seed)
        images = torch.randn(4, self.in_channels, self.size, self.size, generator=torch.Generator().manual_seed(seed))
        return Subject(repr(self), model, (images,))


def graph_specs(most_blocks: int = 4) -> st.SearchStrategy[GraphSpec]:
    """Specifications of networks with residual adds, batch norm, pooling, concatenation, groups and attention."""
    blocks = st.lists(st.tuples(st.sampled_from(BLOCKS), st.integers(2, 6)), min_size=1, max_size=most_blocks)
    return st.builds(
        GraphSpec,
        blocks.map(tuple),
        st.sampled_from(HEADS),
        st.integers(1, 3),
        st.just(8),
        st.booleans(),
        st.booleans(),
        st.integers(2, 4),
    )


class GraphNet(nn.Module):
    """The network of a `GraphSpec`; leaky activations, so that one channel alone never dies."""

    def __init__(self, spec: GraphSpec) -> None:
        super().__init__()
        self.stem = _unit(spec, spec.in_channels, spec.blocks[0][1])
        width, size, blocks = spec.blocks[0][1], spec.size, []
        for kind, wish in spec.blocks:
            block = Block(spec, kind, width, wish, shrinks=kind == "pool" and size > 2)
            width, size = block.width, size // 2 if block.shrinks else size
            blocks.append(block)
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1 if spec.head == "average" else 2)
        features = width if spec.head == "average" else width * 4
        self.hidden = nn.Linear(features, 5) if spec.head == "hidden" else nn.Identity()
        self.classifier = nn.Linear(5 if spec.head == "hidden" else features, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, in_channels, size, size] -> [batch, classes]."""
        features = torch.flatten(self.pool(self.blocks(self.stem(images))), 1)
        logits: Tensor = self.classifier(nn.functional.leaky_relu(self.hidden(features), 0.2))
        return logits


class Block(nn.Module):
    """One block of a `GraphNet`; `width` is the number of channels that it gives."""

    def __init__(self, spec: GraphSpec, kind: str, width: int, wish: int, *, shrinks: bool) -> None:
        super().__init__()
        self.kind, self.shrinks = kind, shrinks
        keeps = kind in ("residual", "depthwise", "pool", "gate", "attention")
        made = width if keeps else 2 * wish if kind == "grouped" else wish
        self.width = made + width if kind == "concat" else made
        self.first = _unit(spec, width, made, width if kind == "depthwise" else 1)
        second = _unit(spec, made, made, 2 if kind == "grouped" else 1)
        self.second = nn.Identity() if kind in ("gate", "attention") else second
        self.mix = Attention(width, wish) if kind == "attention" else nn.Identity()
        self.shortcut = _unit(spec, width, wish, kernel=1) if kind == "projected" else nn.Identity()
        self.gate = nn.Conv2d(width, width, 1) if kind == "gate" else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels, h, w] -> [batch, width, h or h / 2, w or w / 2]."""
        made: Tensor = self.first(features)
        if self.kind in ("residual", "projected"):
            return nn.functional.leaky_relu(self.second(made) + self.shortcut(features), 0.2)
        if self.kind == "concat":
            return torch.cat([features, self.second(made)], dim=1)
        if self.kind == "gate":
            return made * torch.sigmoid(self.gate(features.mean((2, 3), keepdim=True)))
        if self.kind == "attention":
            mixed: Tensor = self.mix(made.flatten(2).transpose(1, 2))
            return made + mixed.transpose(1, 2).reshape(made.shape)
        made = self.second(made)
        return nn.functional.max_pool2d(made, 2) if self.shrinks else made


class Attention(nn.Module):
    """Attention between places, in one head whose values have `inner` channels."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, size) for size in (4, 4, inner))
        self.out = nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, places, width] -> the same."""
        mixed = nn.functional.scaled_dot_product_attention(self.query(tokens), self.key(tokens), self.value(tokens))
        out: Tensor = self.out(mixed)
        return out


def _unit(spec: GraphSpec, read: int, made: int, groups: int = 1, kernel: int = 3) -> nn.Sequential:
    layers = [nn.Conv2d(read, made, kernel, padding=kernel // 2, groups=groups, bias=spec.bias)]
    return nn.Sequential(*layers, *([nn.BatchNorm2d(made)] if spec.norm else []), nn.LeakyReLU(0.1))


def small_subjects(seed: int = 0) -> list[Subject]:
    """A plain and a residual network, each in a blink: what `check_method` uses when it is given no models."""
    plain = GraphSpec((("pool", 6),), head="hidden", norm=False, bias=True)
    residual = GraphSpec((("residual", 6), ("projected", 8), ("concat", 3)), head="average")
    return [replace(spec.build(seed), name=name) for name, spec in (("plain", plain), ("residual", residual))]


def normed_subject(seed: int = 0) -> Subject:
    """The smallest network with every kind of state: parameters, and the statistics of batch norms."""
    return replace(GraphSpec((("conv", 6),)).build(seed), name="normed")


def tied(subject: Subject) -> Subject:
    """The subject with weights rounded to halves: most of them equal another one, many are zero."""
    model = copy.deepcopy(subject.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((2 * parameter).round() / 2)
    return Subject(f"{subject.name}, tied weights", model, subject.example_inputs)


@torch.no_grad()
def randomise(model: nn.Module, example_inputs: tuple[Tensor, ...], seed: int) -> nn.Module:
    """A copy with every parameter and floating-point buffer random, through which the input's signal still comes.

    Weights of two or more dimensions are drawn with variance 2 / fan-in, vectors are disturbed; statistics of batch
    norms come from a forward pass in training mode and are then disturbed. Zero-initialised heads and tiny layer scales
    would make an equality of outputs say nothing, and so would invented statistics.
    """
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    for parameter in changed.parameters():
        if parameter.dim() > 1:
            parameter.copy_(normal(parameter) * (2 / max(1, parameter[0].numel())) ** 0.5)
        else:  # gains around one, biases around zero: both get a spread, so that no two channels are alike
            parameter.copy_(parameter.clamp(-1, 1).round() + 0.2 * normal(parameter))
    momenta = {}
    for module in changed.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            momenta[module] = module.momentum
            module.momentum = 1.0
            module.train()
    probe = tuple(value if not value.is_floating_point() else normal(value) for value in at_least_two(example_inputs))
    changed(*probe)
    for module, momentum in momenta.items():
        module.momentum = momentum
    changed.eval()
    for name, buffer in changed.named_buffers():
        if not buffer.is_floating_point():
            continue
        if name.endswith("running_var"):
            buffer.mul_(1 + 0.2 * normal(buffer).clamp(-2, 2)).add_(0.01)
        else:
            buffer.add_(0.1 * normal(buffer))
    return changed
