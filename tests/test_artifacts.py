"""Files of compressed models: what goes in comes out, and what is wrong is said in one line."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruning_bench import compress, load, save
from pruning_bench.artifacts import file_sizes
from pruning_bench.datasets.contract import Split
from pruning_bench.discover import discover
from pruning_bench.errors import CheckpointError
from pruning_bench.models.contract import build_model

OPTIONS = {"num_classes": 10, "in_channels": 1}
RECIPES = ["dense", "magnitude:0.9", "l1_filter:0.5", "static:w8a8", "l1_filter:0.5+static:w8a8"]


@pytest.fixture(scope="module")
def data() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 1, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (16,), generator=generator), torch.tensor([0.5]), torch.tensor([0.25]))


def made(name: str, recipe: str, data: Split) -> Any:
    discover()
    torch.manual_seed(0)
    model = build_model(name, **OPTIONS)
    return compress(model, recipe, example_inputs=(data.inputs(slice(0, 1)),), calibration=[(data.inputs(),)])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["resnet20", "image_classifier"])
def test_a_saved_model_computes_the_same_when_loaded(name: str, recipe: str, data: Split, tmp_path: Path) -> None:
    compressed = made(name, recipe, data)
    file = tmp_path / "model.safetensors"
    save(compressed, file, model=name, options=OPTIONS)
    loaded = load(file)
    with torch.no_grad():
        got, expected = loaded.model(data.inputs()), compressed.model(data.inputs())
    assert torch.equal(got, expected), f"differs by {(got - expected).abs().max().item():.2e}"
    assert str(loaded.recipe) == recipe, f"recipe {loaded.recipe}"
    assert file.stat().st_size == file_sizes(compressed)[0], "file_sizes does not tell the size of the file"


def test_a_model_that_is_not_registered_loads_into_the_users_own(data: Split, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    compressed = compress(net, "l1_filter:0.5", example_inputs=(torch.zeros(1, 8),))
    save(compressed, tmp_path / "net.safetensors")
    loaded = load(tmp_path / "net.safetensors", model=net)
    assert loaded.model[0].out_features == 8, str(loaded.model)
    assert net[0].out_features == 16, "load changed the model it was given"
    with pytest.raises(CheckpointError, match="names no model"):
        load(tmp_path / "net.safetensors")


def _spoil_bytes(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps({"weight": 1}, protocol=2))


def _remove_card(file: Path) -> None:
    file.with_suffix(".json").unlink()


def _empty_card(file: Path) -> None:
    file.with_suffix(".json").write_text("{}")


def _other_model(file: Path) -> None:
    card = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps({**card, "model": "image_classifier"}))


@pytest.mark.parametrize("spoil", [_spoil_bytes, _truncate, _pickle, _remove_card, _empty_card, _other_model])
def test_a_spoilt_file_is_one_clear_error(spoil: Any, data: Split, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save(made("resnet20", "l1_filter:0.5", data), file, model="resnet20", options=OPTIONS)
    spoil(file)
    with pytest.raises(CheckpointError, match="should be") as caught:
        load(file)
    assert "\n" not in str(caught.value), str(caught.value)


def test_quantized_weights_are_stored_as_single_bytes(data: Split) -> None:
    dense, quantized = (file_sizes(made("resnet20", recipe, data))[0] for recipe in ("dense", "static:w8a8"))
    assert dense / quantized > 3.4, f"{dense} bytes dense, {quantized} quantized"
