"""Files of compressed models: what goes in comes out, and what is wrong is said in one line."""

import errno
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pruning_bench import compress, load, save
from pruning_bench.artifacts import file_sizes
from pruning_bench.datasets.contract import Split
from pruning_bench.discover import discover
from pruning_bench.errors import CheckpointError, ModelError
from pruning_bench.models.checkpoints import load_checkpoint
from pruning_bench.models.contract import build_model
from pruning_bench.pruning.masks import current_masks, keep_pruned

OPTIONS = {"num_classes": 10, "in_channels": 1}
RECIPES = [
    "dense",
    "magnitude:0.9",
    "l1_filter:0.5",
    "static:w8a8",
    "l1_filter:0.5+static:w8a8",
    "rtn:w3,group=32",
    "magnitude:0.9+rtn:w4",
]


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
@pytest.mark.parametrize("name", [pytest.param("resnet20", marks=pytest.mark.slow), "image_classifier"])
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


def _card(**changes: Any) -> Any:
    """Damage that changes entries of the card."""

    def change(file: Path) -> None:
        card = json.loads(file.with_suffix(".json").read_text())
        file.with_suffix(".json").write_text(json.dumps({**card, **changes}))

    return change


def _ranges(**changes: list[Any] | None) -> Any:
    """Damage that changes ranges of the card, or leaves them out."""

    def change(file: Path) -> None:
        ranges = {**json.loads(file.with_suffix(".json").read_text())["ranges"], **changes}
        _card(ranges={name: entry for name, entry in ranges.items() if entry is not None})(file)

    return change


def _card_text(text: str) -> Any:
    return lambda file: file.with_suffix(".json").write_text(text)


SPOILT = {
    "one bit": _spoil_bytes,
    "truncated": _truncate,
    "empty": lambda file: file.write_bytes(b""),
    "pickle": _pickle,
    "missing": lambda file: file.unlink(),
    "folder": lambda file: file.unlink() or file.mkdir(),
    "no card": _remove_card,
    "empty card": _card_text("{}"),
    "cut card": _card_text('{"model": "resn'),
    "list for a card": _card_text("[1, 2]"),
    "other model": _card(model="image_classifier"),
    "unknown model": _card(model="resnet21"),
    "number for a model": _card(model=20),
    "list for options": _card(options=[10, 1]),
    "other options": _card(options={"depth": 20}),
    "text for an option": _card(options={"num_classes": "ten", "in_channels": 1}),
    "number for a digest": _card(sha256=1),
    "foreign recipe": _card(recipe="l1_filter:0.5++"),
    "number for a recipe": _card(recipe=3),
    "number for inputs": _card(inputs=3),
    "one number for inputs": _card(inputs=[1]),
    "text for a shape": _card(inputs=[["many", "float32"]]),
    "negative shape": _card(inputs=[[[-1, 1, 32, 32], "float32"]]),
    "unknown type": _card(inputs=[[[1, 1, 32, 32], "float31"]]),
    "no type": _card(inputs=[[[1, 1, 32, 32], "nn"]]),
    "no inputs": _card(inputs=[]),
    "list for ranges": _card(ranges=[1, 2]),
    "short range": _card(ranges={"fc.weight": [0]}),
    "range of no tensor": _card(ranges={"fc.nothing": [0, 255, None]}),
    "text for a range": _card(ranges={"fc.weight": ["low", "high", 0]}),
}


@pytest.fixture(scope="module")
def sparse(data: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a masked model."""
    file = tmp_path_factory.mktemp("sparse") / "model.safetensors"
    save(made("resnet20", "magnitude:0.9", data), file, model="resnet20", options=OPTIONS)
    return file


SPOILT_SPARSE = {
    "one bit": _spoil_bytes,
    "no shapes": lambda file: _card(sparse={})(file),
    "list for shapes": _card(sparse=[1]),
    "text for a shape": _card(sparse={"fc.weight": "10x64"}),
    "negative shape": _card(sparse={"stages.0.0.conv1.weight": [-16, 16, 3, 3]}),
    "shape of no tensor": _card(sparse={"fc.nothing": [10, 64]}),
    "a dense tensor's shape": _card(sparse={"fc.bias": [10]}),
}
SPOILT_MASKS = {"text": "fc.weight", "no parameter": ["fc.nothing"], "a number": [3]}


@pytest.mark.parametrize("spoilt", SPOILT_SPARSE)
def test_a_spoilt_file_of_a_masked_model_is_one_clear_error(spoilt: str, sparse: Path, tmp_path: Path) -> None:
    file = tmp_path / sparse.name
    for part in (sparse, sparse.with_suffix(".json")):
        shutil.copy(part, tmp_path)
    SPOILT_SPARSE[spoilt](file)
    for read in (load, load_checkpoint):
        with pytest.raises(CheckpointError, match="should be") as caught:
            read(file)
        assert "\n" not in str(caught.value), str(caught.value)
        assert str(file.with_suffix("")) in str(caught.value), f"{caught.value} should name the file"


@pytest.mark.parametrize("spoilt", SPOILT_MASKS)
def test_masks_of_no_parameter_are_one_clear_error(spoilt: str, sparse: Path, tmp_path: Path) -> None:
    file = tmp_path / sparse.name
    for part in (sparse, sparse.with_suffix(".json")):
        shutil.copy(part, tmp_path)
    _card(masked=SPOILT_MASKS[spoilt])(file)
    with pytest.raises(CheckpointError, match=r"load: masked .*, should be names of the model's parameters \["):
        load(file)


@pytest.mark.parametrize("recipe", ["magnitude:0.9", "magnitude:0.5+l1_filter:0.5", "magnitude:0.9+cast:bf16"])
def test_masks_come_back_and_hold(recipe: str, data: Split, tmp_path: Path) -> None:
    saved = made("resnet20", recipe, data)
    save(saved, tmp_path / "model.safetensors", model="resnet20", options=OPTIONS)
    loaded = load(tmp_path / "model.safetensors")
    found, expected = current_masks(loaded.plans), current_masks(saved.plans)
    assert found.keys() == expected.keys(), f"masks of {sorted(found)}, should be of {sorted(expected)}"
    for name, mask in expected.items():
        assert torch.equal(found[name], mask), f"{name}: {int((found[name] != mask).sum())} entries differ"
    model = loaded.float_model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with keep_pruned(model, loaded.plans, optimizer):
        model(data.inputs()).square().sum().backward()
        optimizer.step()
    alive = sum(int(value[~expected[name]].any()) for name, value in model.named_parameters() if name in expected)
    assert not alive, f"pruned weights of {alive} layers are alive"


def test_models_without_masks_have_none(data: Split, tmp_path: Path) -> None:
    for number, recipe in enumerate(("dense", "l1_filter:0.5", "magnitude:0.9+rtn:w4")):
        save(made("resnet20", recipe, data), tmp_path / f"{number}.safetensors", model="resnet20", options=OPTIONS)
        assert load(tmp_path / f"{number}.safetensors").plans == (), recipe


@pytest.mark.parametrize("name", ["net_0.25", "net", "net.json", "net.bin"])
def test_files_end_in_safetensors_so_that_no_card_lands_on_another_file(name: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    compressed = compress(net, "l1_filter:0.5", example_inputs=(torch.zeros(1, 8),))
    with pytest.raises(CheckpointError, match="should be"):
        save(compressed, tmp_path / name)
    assert not list(tmp_path.iterdir()), f"{list(tmp_path.iterdir())} left behind"


@pytest.mark.parametrize("entry", ["recipe", "masked", "sparse", "sha256"])
def test_what_is_written_about_a_model_hides_nothing_of_its_card(entry: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    compressed = compress(net, "magnitude:0.5", example_inputs=(torch.zeros(1, 8),))
    file = tmp_path / "net.safetensors"
    with pytest.raises(CheckpointError, match=f"save: about with {entry}, should be names that the card has no entry"):
        save(compressed, file, about={"author": "me", entry: []})
    assert not file.exists(), "written nevertheless"
    assert save(compressed, file, about={"author": "me"})["author"] == "me", "what is further said is lost"


UNWRITABLE = {
    "a tensor": {"top1": torch.tensor(0.9)},
    "a number of numpy": {"epochs": np.int64(3)},
    "a tuple for a name": {(1, 2): 3},
    "a tuple for a name inside": {"top1": {(1, 2): 3}},
}


@pytest.mark.parametrize("about", UNWRITABLE)
def test_a_card_that_is_no_json_leaves_the_old_files_whole(about: str, tmp_path: Path) -> None:
    """Mutant: the tensors are written before the text of the card is made."""
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    first, second = (compress(net, recipe, example_inputs=(torch.zeros(1, 8),)) for recipe in ("dense", "rtn:w4"))
    file = tmp_path / "net.safetensors"
    save(first, file)
    entry = next(iter(UNWRITABLE[about]))
    with pytest.raises(CheckpointError, match=re.escape(f"an entry {entry!r} (")) as caught:
        save(second, file, about=UNWRITABLE[about])  # type: ignore[arg-type]
    assert "\n" not in str(caught.value), str(caught.value)
    with pytest.raises(CheckpointError, match="card whose model is None, should be text"):
        save(second, file, model=None)  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 2, f"{list(tmp_path.iterdir())} left behind"
    assert str(load(file, model=net).recipe) == "dense", "the file that was there is another one now"


@pytest.mark.parametrize("kind", ["below a file", "card is a folder", "name too long", "no room"])
def test_files_that_cannot_be_written_are_one_clear_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    made, other = (compress(net, recipe, example_inputs=(torch.zeros(1, 8),)) for recipe in ("dense", "rtn:w4"))
    file = tmp_path / "net.safetensors"
    if kind == "below a file":
        (tmp_path / "plain").write_text("plain")
        file = tmp_path / "plain" / "net.safetensors"
    elif kind == "card is a folder":
        file.with_suffix(".json").mkdir()
    elif kind == "name too long":
        file = tmp_path / f"{'n' * 300}.safetensors"
    else:
        save(made, file)
        whole = Path.write_bytes

        def full(path: Path, content: bytes) -> int:
            if ".json" in path.name:
                raise OSError(errno.ENOSPC, "No space left on device")
            return whole(path, content)

        monkeypatch.setattr(Path, "write_bytes", full)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="should be") as caught:
        save(other, file)
    assert "\n" not in str(caught.value), str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before, f"{sorted(tmp_path.rglob('*'))}, should be {before}"
    if kind == "no room":
        assert str(load(file, model=net).recipe) == "dense", "the file that was there is another one now"


def test_a_class_is_no_model_to_load_into(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 4))
    save(compress(net, "dense", example_inputs=(torch.zeros(1, 8),)), tmp_path / "net.safetensors")
    with pytest.raises(ModelError, match=r"load: a model of type type, should be a torch.nn.Module, .* \[Linear\]"):
        load(tmp_path / "net.safetensors", model=nn.Linear)  # type: ignore[arg-type]


class Remembers(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}


def test_a_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(Remembers(8, 16), nn.ReLU(), nn.Linear(16, 4))
    compressed = compress(net, "magnitude:0.5", example_inputs=(torch.zeros(1, 8),))
    with pytest.raises(CheckpointError, match=r"save: a state of type dict, by get_extra_state, .*\[0._extra_state\]"):
        save(compressed, tmp_path / "net.safetensors")


def test_masked_models_are_small_on_disk_and_come_back_bit_by_bit(data: Split, tmp_path: Path) -> None:
    dense, masked = made("resnet20", "dense", data), made("resnet20", "magnitude:0.9", data)
    ratio = file_sizes(dense)[0] / file_sizes(masked)[0]
    assert ratio > 6, f"{ratio:.2f} times smaller with 90 % zeros, should be 1 / (1/32 + 0.1) but for headers and norms"
    save(masked, tmp_path / "model.safetensors", model="resnet20", options=OPTIONS)
    expected = masked.model.state_dict()
    for read in (load, load_checkpoint):
        found = read(tmp_path / "model.safetensors")
        for name, tensor in getattr(found, "model", found).state_dict().items():
            assert torch.equal(tensor, expected[name]), f"{name} differs after {read.__name__}"
    assert file_sizes(made("resnet20", "magnitude:0.01", data))[0] == file_sizes(dense)[0], "not dense at 1 %"


@pytest.fixture(scope="module")
def whole(data: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a quantized model."""
    file = tmp_path_factory.mktemp("whole") / "model.safetensors"
    save(made("resnet20", "l1_filter:0.5+static:w8a8", data), file, model="resnet20", options=OPTIONS)
    return file


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_spoilt_file_is_one_clear_error(spoilt: str, whole: Path, tmp_path: Path) -> None:
    file = tmp_path / whole.name
    for part in (whole, whole.with_suffix(".json")):
        shutil.copy(part, tmp_path)
    SPOILT[spoilt](file)
    with pytest.raises(CheckpointError, match="should be") as caught:
        load(file)
    assert "\n" not in str(caught.value), str(caught.value)
    assert str(file.with_suffix("")) in str(caught.value), f"{caught.value} should name the file"


SPOILT_RANGES = {
    "no range for a weight": (_ranges(**{"classifier.weight": None}), "ranges without classifier.weight"),
    "no range for an activation": (_ranges(**{"activation:input": None}), "ranges without activation:input"),
    "range below the codes": (
        _ranges(**{"classifier.weight": [-7, 7, 0]}),
        "classifier.weight from -7 to 7, codes from -127 to 127",
    ),
    "range below the zero point": (
        _ranges(**{"activation:input": [0, 1, None]}),
        "activation:input from 0 to 1, codes from",
    ),
    "a type beside scales": (_card(dtype="bf16", ranges={}), "ranges without"),
    "format of another version": (_card(format=99), "a card of format 99, should be 1, "),
    "text for a format": (_card(format="1"), "a card of format '1', should be 1, "),
}


@pytest.mark.parametrize("spoilt", SPOILT_RANGES)
def test_a_card_that_would_read_codes_otherwise_is_refused(spoilt: str, whole: Path, tmp_path: Path) -> None:
    file = tmp_path / whole.name
    for part in (whole, whole.with_suffix(".json")):
        shutil.copy(part, tmp_path)
    spoil, message = SPOILT_RANGES[spoilt]
    spoil(file)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(file)
    assert "\n" not in str(caught.value), str(caught.value)
    assert str(file.with_suffix(".json")) in str(caught.value), f"{caught.value} should name the card"


SPOILT_NARROW = {
    "one bit": _spoil_bytes,
    "no entries": lambda file: _card(narrow={})(file),
    "list for entries": _card(narrow=[1]),
    "entry of no tensor": _card(narrow={"fc.nothing": [-7, 7, [10, 64]]}),
    "a byte's range": _card(narrow={"fc.weight": [-127, 127, [10, 64]]}),
    "the scale's entry": _card(narrow={"fc.weight:scale": [-7, 7, [10]]}),
}


@pytest.mark.parametrize("spoilt", SPOILT_NARROW)
def test_a_spoilt_file_of_few_bits_is_one_clear_error(spoilt: str, data: Split, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save(made("image_classifier", "rtn:w4", data), file, model="image_classifier", options=OPTIONS)
    SPOILT_NARROW[spoilt](file)
    with pytest.raises(CheckpointError, match="should be") as caught:
        load(file)
    assert "\n" not in str(caught.value), str(caught.value)


def test_zeros_and_bits_of_codes_are_packed(data: Split) -> None:
    """Of a bit for each weight and so many for each that is left there is hardly more than headers and scales.

    Scales, biases and headers are 10 kB, 4 % of the smallest of these files.
    """
    dense, w8, w4, w3, pruned = (
        file_sizes(made("image_classifier", recipe, data))[0]
        for recipe in ("dense", "rtn:w8", "rtn:w4", "rtn:w3", "magnitude:0.9+rtn:w4")
    )
    least = {"w8": dense / w8 / 4, "w4": dense / w4 / 8, "w3": dense / w3 * 3 / 32, "pruned": dense / pruned * 1.4 / 32}
    assert min(least.values()) > 0.95, f"{least} of what bits alone would take, should be nearly all"


def test_quantized_weights_are_stored_as_single_bytes(data: Split) -> None:
    dense, quantized = (file_sizes(made("resnet20", recipe, data))[0] for recipe in ("dense", "static:w8a8"))
    assert dense / quantized > 3.4, f"{dense} bytes dense, {quantized} quantized"


class Tied(torch.nn.Module):
    """An embedding and an output layer of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.mid = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 20, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.mid(self.emb(ids)).relu())
        return logits


@pytest.mark.parametrize("recipe", ["static:w8a8", "rtn:w4", "gptq:w4", "codebook:w3", "dynamic:w8a8", "fp8:w8a8"])
def test_a_weight_tied_to_an_embedding_comes_back(recipe: str, tmp_path: Path) -> None:
    """The embedding is read in float: only the layer rounds."""
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (16, 5))
    compressed = compress(Tied().eval(), recipe, example_inputs=(ids[:1],), calibration=[(ids,)])
    save(compressed, tmp_path / "tied.safetensors")
    loaded = load(tmp_path / "tied.safetensors", model=Tied())
    assert torch.equal(loaded.model(ids), compressed.model(ids)), f"{recipe}: another output after loading"
