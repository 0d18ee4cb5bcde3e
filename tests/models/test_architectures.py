import pytest
import torch
from torch import nn

from pruning_bench.errors import UnknownNameError
from pruning_bench.models.activations import ACTIVATIONS
from pruning_bench.models.contract import build_model
from pruning_bench.models.image_classifier import image_classifier
from pruning_bench.models.lenet5 import lenet5
from pruning_bench.models.mobilenet_v2 import mobilenet_v2
from pruning_bench.models.resnet20 import BasicBlock, resnet20
from pruning_bench.models.vit_tiny import vit_tiny

ACTIVATED = {"image_classifier": 5, "lenet5": 4, "resnet20": 19}  # how many activations there are to choose
NAMES = (*ACTIVATED, "mobilenet_v2", "vit_tiny")


def randomised(model: nn.Module) -> nn.Module:
    """The model with every parameter and buffer disturbed, so that no branch is zero and no norm the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                scale, shift = torch.rand((2, *tensor.shape), generator=generator) - 0.5
                tensor.mul_(1 + 0.3 * scale).add_(0.05 * shift)
    return model.eval()


def inputs(count: int = 3, channels: int = 1, size: int = 32) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def check_structure(build, convolutions, linears, parameters) -> None:
    model = build()
    found = [
        (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    assert found == convolutions, f"convolutions {found}, should be {convolutions}"
    found = [(layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert found == linears, f"linear layers {found}, should be {linears}"
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == parameters, f"{count} parameters, should be {parameters}"


CLASSIFIER = ([(1, 64, 3, 1), (64, 64, 3, 1), (64, 128, 3, 1), (128, 128, 3, 1)], [(2048, 512), (512, 10)], 1_313_226)
RESNET = (
    [
        *[(1, 16, 3, 1), *[(16, 16, 3, 1)] * 6],
        *[(16, 32, 3, 2), (32, 32, 3, 1), (16, 32, 1, 2), *[(32, 32, 3, 1)] * 4],
        *[(32, 64, 3, 2), (64, 64, 3, 1), (32, 64, 1, 2), *[(64, 64, 3, 1)] * 4],
    ],
    [(64, 10)],
    272_186,
)
LENET = ([(1, 6, 5, 1), (6, 16, 5, 1)], [(400, 120), (120, 84), (84, 10)], 61_706)


def mutant_wide_kernels():
    model = image_classifier()
    model.features[0] = nn.Conv2d(1, 64, 5, padding=2)
    return model


def mutant_no_projection():
    model = resnet20()
    model.stages[1][0].shortcut = nn.AvgPool2d(2)
    return model


def test_structure():
    check_structure(image_classifier, *CLASSIFIER)
    check_structure(resnet20, *RESNET)
    check_structure(lenet5, *LENET)


def check_resolution(model: nn.Module, layer: nn.Module, expected: tuple[int, ...]) -> None:
    """The layer gives features of the expected shape for one image of 32 x 32."""
    shapes: list[tuple[int, ...]] = []
    layer.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape)))
    model(inputs(1))
    assert shapes == [expected], f"features {shapes}, should be {[expected]}"


def test_the_small_images_of_mobilenet_v2_keep_4_by_4_points():
    model = mobilenet_v2()
    check_resolution(model.eval(), model.features[-1], (1, 1280, 4, 4))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 700_202, f"{count} parameters"
    mutant = mobilenet_v2()
    mutant.features[0][0].stride = (2, 2)  # as for photographs
    with pytest.raises(AssertionError, match="should be"):
        check_resolution(mutant.eval(), mutant.features[-1], (1, 1280, 4, 4))


def test_vit_tiny_sees_64_patches_and_a_class_token():
    model = vit_tiny()
    check_resolution(model.eval(), model.encoder, (1, 65, 96))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 457_834, f"{count} parameters"


@pytest.mark.parametrize(("mutant", "expected"), [(mutant_wide_kernels, CLASSIFIER), (mutant_no_projection, RESNET)])
def test_check_structure_rejects(mutant, expected):
    with pytest.raises(AssertionError, match="should be"):
        check_structure(mutant, *expected)


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_channels_are_as_asked(name):
    model = build_model(name, num_classes=7, in_channels=3)
    assert not model.training, f"{name}: training mode, should be evaluation mode"
    shape = tuple(model(inputs(2, 3)).shape)
    assert shape == (2, 7), f"{name}: logits {shape}, should be (2, 7)"


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ACTIVATED)
def test_activation_is_the_chosen_one_everywhere(name, activation):
    model = build_model(name, activation=activation)
    found = [type(layer) for layer in model.modules() if isinstance(layer, tuple(ACTIVATIONS.values()))]
    expected = [ACTIVATIONS[activation]] * ACTIVATED[name]
    assert found == expected, (
        f"{name}: {len(found)} activations {set(found)}, should be {len(expected)} of {activation}"
    )


@pytest.mark.parametrize("name", ACTIVATED)
def test_unknown_activation_names_the_closest(name):
    with pytest.raises(UnknownNameError, match="'reluu', should be 'relu'"):
        build_model(name, activation="reluu")


def calibrated(model: nn.Module) -> nn.Module:
    """The model with the statistics of some images in its batch norms, without which a deep one's signal fades."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(inputs(16))
    return model.eval()


def check_every_layer_matters(model: nn.Module) -> None:
    """Disturbing the weight of any layer changes the logits: nothing is built and left unused."""
    images = inputs(2, size=32)
    model.requires_grad_(False)
    before, generator = model(images), torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter += torch.rand(parameter.shape, generator=generator)  # a constant would vanish in a layer norm
        change = float((model(images) - before).abs().max())
        parameter.copy_(kept)
        assert change > 1e-5, f"{name} changes the logits by {change}, should matter"


def mutant_without_skip() -> nn.Module:
    model = resnet20(activation="leaky_relu")
    model.stages[1][0].__class__ = WithoutSkip
    return model


class WithoutSkip(BasicBlock):
    def forward(self, x):
        return self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))))


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_matters(name):
    options = {"activation": "leaky_relu"} if name in ACTIVATED else {}  # it never dies
    check_every_layer_matters(calibrated(randomised(build_model(name, **options))))


def test_check_every_layer_rejects_mutant_without_skip():
    with pytest.raises(AssertionError, match="should matter"):
        check_every_layer_matters(randomised(mutant_without_skip()))


def test_block_is_the_formula():
    block = randomised(BasicBlock(4, 8, 2, "relu"))
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    inner = torch.relu(block.bn1(block.conv1(x)))
    expected = torch.relu(block.bn2(block.conv2(inner)) + block.shortcut[1](block.shortcut[0](x)))
    difference = float((block(x) - expected).detach().abs().max())
    assert difference == 0, f"differs by {difference}, should be relu(f(x) + shortcut(x))"
    plain = BasicBlock(4, 4, 1, "relu")
    assert isinstance(plain.shortcut, nn.Identity), f"shortcut {plain.shortcut}, should be the identity"


@pytest.mark.parametrize("name", NAMES)
def test_exports_with_a_dynamic_batch(name):
    model = randomised(build_model(name)).requires_grad_(False)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(model, (inputs(2),), dynamic_shapes=({0: batch},))
    for count in (1, 5):
        difference = float((program.module()(inputs(count)) - model(inputs(count))).abs().max())
        assert difference < 1e-5, f"{name}: batch {count} differs by {difference}, should be the same function"
