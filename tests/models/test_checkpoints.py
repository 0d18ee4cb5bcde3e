import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning_bench.datasets.contract import load_dataset
from pruning_bench.discover import discover
from pruning_bench.errors import CheckpointError
from pruning_bench.models.checkpoints import (
    SHIPPED,
    checkpoint_path,
    load_checkpoint,
    read_card,
    read_tensors,
    save_checkpoint,
    shipped_path,
)
from pruning_bench.registry import MODELS
from pruning_bench.training.evaluation import evaluate

NAMES = ("image_classifier", "resnet20")


@pytest.fixture(autouse=True)
def tiny():
    """A registered model of a few weights, with batch norm: floats, and an integer buffer."""
    from pruning_bench.models.contract import ReferenceModel

    discover()

    def build(*, num_classes=10, in_channels=1):
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels, num_classes), nn.BatchNorm1d(num_classes))

    with MODELS.temporarily("tiny", ReferenceModel("tiny", build)):
        yield build


CARD = {"model": "tiny", "dataset": "invented", "options": {"num_classes": 3, "in_channels": 4}}


@pytest.fixture
def saved(tiny, tmp_path):
    """A model and where it was saved."""
    model = tiny(**CARD["options"])
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) + 2)
    path = checkpoint_path("tiny", "invented", tmp_path)
    save_checkpoint(model, CARD, path)
    return model, path


def check_round_trip(load, saved) -> None:
    model, path = saved
    loaded = load(path)
    assert not loaded.training, "training mode, should be evaluation mode"
    for name, value in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert torch.equal(found, value), f"{name}: {found}, should be {value}"
        assert found.dtype == value.dtype, f"{name}: {found.dtype}, should be {value.dtype}"


def mutant_forgets_buffers(path: Path) -> nn.Module:
    model = load_checkpoint(path)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.reset_running_stats()
    return model


def mutant_half_precision(path: Path) -> nn.Module:
    return load_checkpoint(path).half()


def test_round_trip(saved):
    check_round_trip(load_checkpoint, saved)


@pytest.mark.parametrize("mutant", [mutant_forgets_buffers, mutant_half_precision])
def test_check_round_trip_rejects(saved, mutant):
    with pytest.raises(AssertionError, match="should be"):
        check_round_trip(mutant, saved)


def test_saving_leaves_nothing_else(saved):
    _, path = saved
    found = sorted(file.name for file in path.parent.iterdir())
    assert found == ["tiny-invented.json", "tiny-invented.safetensors"], f"{found}, should be weights and card"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def edit_card(**changes):
    def damage(path: Path) -> None:
        card = {**json.loads(path.with_suffix(".json").read_text()), **changes}
        kept = {key: value for key, value in card.items() if value is not None}
        path.with_suffix(".json").write_text(json.dumps(kept))

    return damage


DAMAGE = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-5]), "sha256"),
    "empty": (lambda path: path.write_bytes(b""), "sha256"),
    "one_bit": (flip_a_bit, "sha256"),
    "other_digest": (edit_card(sha256="0" * 64), "0000000000000000... as on its card"),
    "no_weights": (lambda path: path.unlink(), "No such file"),
    "no_card": (lambda path: path.with_suffix(".json").unlink(), "no card"),
    "card_cut": (lambda path: path.with_suffix(".json").write_text('{"model": "tin'), "unreadable card"),
    "card_is_a_list": (lambda path: path.with_suffix(".json").write_text("[]"), "card without"),
    "card_without_digest": (edit_card(sha256=None), "card without sha256"),
    "other_shapes": (edit_card(options={"num_classes": 5, "in_channels": 4}), "size mismatch"),
    "other_options": (edit_card(options={"depth": 5}), "options"),
    "card_is_deep": (lambda path: path.with_suffix(".json").write_text("[" * 100_000), "unreadable card"),
    "card_is_no_text": (lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe{}"), "unreadable card"),
    "card_is_a_folder": (
        lambda path: path.with_suffix(".json").unlink() or path.with_suffix(".json").mkdir(),
        "unreadable card",
    ),
    "model_is_a_number": (edit_card(model=20), "card whose model is 20, should be text"),
    "options_are_a_list": (edit_card(options=[3, 4]), "card whose options is [3, 4], should be an object"),
    "digest_is_a_number": (edit_card(sha256=7), "card whose sha256 is 7, should be text"),
    "no_model": (edit_card(model=""), "names no model"),
    "unknown_model": (edit_card(model="tiniest"), "should be 'tiny'"),
    "folder": (lambda path: path.unlink() or path.mkdir(), "directory"),
}


def check_refuses(load, saved, case: str) -> None:
    damage, said = DAMAGE[case]
    _, path = saved
    damage(path)
    try:
        load(path)
    except CheckpointError as error:
        text = str(error)
    else:
        raise AssertionError(f"{case} was loaded, should be refused")
    assert said in text, f"{case}: {text!r}, should say {said!r}"
    assert "\n" not in text, f"{case}: {text!r}, should be one line"
    assert path.stem in text, f"{case}: {text!r}, should name the file"


def mutant_no_digest(path: Path) -> nn.Module:
    return MODELS["tiny"].build(**{**CARD["options"], "num_classes": 3})


@pytest.mark.parametrize("case", DAMAGE)
def test_refuses(saved, case):
    check_refuses(load_checkpoint, saved, case)


def test_check_refuses_rejects_mutant_no_digest(saved):
    with pytest.raises(AssertionError, match="should be refused"):
        check_refuses(mutant_no_digest, saved, "one_bit")


@pytest.mark.parametrize(
    "content", [b"", b"hello", (99).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]"]
)
def test_foreign_files_without_a_digest_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="unreadable"):
        read_tensors(path)


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def write_pickle(kind: str, folder: Path, trap: Path) -> Path:
    path = folder / {"pickle": "w.safetensors", "torch": "w.safetensors"}.get(kind, f"w{kind}")
    if kind == "torch":
        torch.save({"weight": torch.zeros(2), "trap": Trap(trap)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(trap), protocol=2))
    path.with_suffix(".json").write_text(json.dumps({**CARD, "sha256": ""}))
    return path


def check_never_unpickles(load, kind: str, folder: Path) -> None:
    trap = folder / "sprung"
    path = write_pickle(kind, folder, trap)
    text = ""
    try:
        load(path)
    except CheckpointError as error:
        text = str(error)
    assert not trap.exists(), f"{kind}: the pickle ran, should never be read"
    assert "pickles can run code" in text, f"{kind}: {text!r}, should be refused as a pickle"


def mutant_torch_load(path: Path) -> object:
    try:
        return torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    except (RuntimeError, pickle.UnpicklingError):
        return pickle.loads(path.read_bytes())


def mutant_tries_and_reports(path: Path) -> object:
    raise CheckpointError("checkpoint", "unreadable", "a whole safetensors file", str(path))


@pytest.mark.parametrize("load", [load_checkpoint, read_tensors])
@pytest.mark.parametrize("kind", ["pickle", "torch", ".pt", ".pth", ".PT", ".ckpt", ".bin", ".pkl"])
def test_never_unpickles(tmp_path, load, kind):
    check_never_unpickles(load, kind, tmp_path)


@pytest.mark.parametrize("kind", ["torch", ".pt"])
@pytest.mark.parametrize("mutant", [mutant_torch_load, mutant_tries_and_reports])
def test_check_never_unpickles_rejects(tmp_path, mutant, kind):
    with pytest.raises(AssertionError, match="should"):
        check_never_unpickles(mutant, kind, tmp_path)


def test_never_writes_under_a_pickle_name(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="pickles can run code"):
        save_checkpoint(tiny(), CARD, tmp_path / "w.pt")
    found = list(tmp_path.iterdir())
    assert not found, f"{found}, should be nothing"


def test_never_writes_over_a_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (Path(), tmp_path):
        with pytest.raises(CheckpointError, match="a directory, should be the name of a file"):
            save_checkpoint(tiny(), CARD, path)
    assert not list(tmp_path.iterdir()), f"{list(tmp_path.iterdir())}, should be nothing"


def test_a_reference_that_does_not_ship_names_those_that_do():
    with pytest.raises(CheckpointError, match=r"no checkpoint resnet20-cifar10.*resnet20-fashion_mnist"):
        shipped_path("resnet20", "cifar10")


@pytest.mark.parametrize("name", NAMES)
def test_shipped_cards_keep_their_word(name):
    card = read_card(checkpoint_path(name, "fashion_mnist"))
    assert card["test_top1"] >= 0.93, f"{name}: test top-1 {card['test_top1']:.2%}, should be at least 93 %"
    assert card["train_examples"] == 55_000, f"{name}: trained on {card['train_examples']}, should be 55,000"
    confusion = torch.tensor(card["test_confusion"])
    right = int(confusion.diagonal().sum()) / int(confusion.sum())
    assert right == card["test_top1"], f"{name}: {right} by the confusion matrix, should be {card['test_top1']}"
    assert int(confusion.sum()) == 10_000, f"{name}: tested on {int(confusion.sum())}, should be 10,000"
    assert not list(SHIPPED.glob("*.state.*")), "a state of training, should not ship"


def check_accuracy(model: nn.Module, promised: float) -> None:
    """On 1,000 selection images; four standard deviations of a binomial are 3.3 points."""
    part = load_dataset("fashion_mnist").selection.sample(1_000, torch.Generator().manual_seed(0))
    found = evaluate(model, part).top1
    assert abs(found - promised) < 0.033, f"top-1 {found:.2%} on the sample, should be near {promised:.2%}"


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_do_what_their_card_says(name):
    promised = read_card(checkpoint_path(name, "fashion_mnist"))["selection_top1"]
    check_accuracy(load_checkpoint(shipped_path(name, "fashion_mnist")), promised)


def test_check_accuracy_rejects_mutant_weak_classifier():
    model = load_checkpoint(shipped_path("image_classifier", "fashion_mnist"))
    with torch.no_grad():
        model.features[0].weight[:48] = 0
    with pytest.raises(AssertionError, match="should be near"):
        check_accuracy(model, read_card(checkpoint_path("image_classifier", "fashion_mnist"))["selection_top1"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_repeat_their_test_accuracy(name):
    promised = read_card(checkpoint_path(name, "fashion_mnist"))["test_top1"]
    found = evaluate(load_checkpoint(shipped_path(name, "fashion_mnist")), load_dataset("fashion_mnist").test).top1
    assert abs(found - promised) <= 0.0003, f"{name}: test top-1 {found}, should be {promised} up to rounding"
