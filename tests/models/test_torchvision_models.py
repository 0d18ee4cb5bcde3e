"""torchvision's models by name: the same weights every time, pretrained ones from a file that is what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pruning_bench import cli
from pruning_bench.cases import RANDOM, Case, parse_id, ready_pairs
from pruning_bench.datasets.contract import load_dataset
from pruning_bench.discover import discover
from pruning_bench.errors import CheckpointError, UnknownNameError
from pruning_bench.measuring import FAMILIES, measure_footprint
from pruning_bench.models import torchvision_models as module
from pruning_bench.models.contract import build_model
from pruning_bench.models.torchvision_models import find, load_pretrained, names, weights_of
from pruning_bench.registry import MODELS
from pruning_bench.workbench import Workbench

SMALL = "torchvision:shufflenet_v2_x0_5"
CASE = Case(SMALL, RANDOM, "dense", "eager")


@pytest.fixture(autouse=True)
def _discovered() -> None:
    discover()


def test_the_name_goes_everywhere_that_a_models_name_goes() -> None:
    assert parse_id(str(CASE)) == CASE, str(CASE)
    assert ready_pairs([SMALL, "resnet20", SMALL]) == [(SMALL, RANDOM)], "once, and only what brings its weights"
    model = build_model(SMALL)
    assert type(model).__name__ == "ShuffleNetV2", type(model)
    assert SMALL not in list(MODELS), "a family's names are in no grid"


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, other = (find("shufflenet_v2_x0_5").ready() for _ in range(2))
    assert torch.equal(torch.rand(1), expected), "the global generator was used"
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), f"{name} differs"
    assert not one.training, "a model to be measured is in eval mode"


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(name: str) -> None:
    model = build_model(f"torchvision:{name}", **find(name).options)
    heads = [path for path, _ in model.named_parameters() if path.lower().startswith("aux")]
    assert not heads, f"{heads} only help in training"


def test_the_images_are_noise_of_the_models_size() -> None:
    data = load_dataset(RANDOM)
    inputs = data.train.inputs(slice(0, 2))
    assert inputs.shape == (2, 3, 224, 224), inputs.shape
    assert abs(float(inputs.mean())) < 0.5, f"mean {float(inputs.mean())}, should be normalised"
    assert torch.equal(inputs, load_dataset(RANDOM).train.inputs(slice(0, 2))), "other noise every time"
    assert not torch.equal(inputs[0], inputs[1]), "every image should be another"


def test_quality_is_left_out_and_the_rest_is_measured() -> None:
    covered = [family for family, each in FAMILIES.items() if each.covers(CASE)]
    assert covered == ["footprint", "latency"], f"{covered}: noise has no right answers"
    found = {m.metric: m for m in measure_footprint(Workbench(cache=None), CASE)}
    about = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.meta
    assert found["params"].value == about["num_params"], found["params"]
    assert round(found["macs"].value / 1e9, 2) == round(about["_ops"], 2), found["macs"]
    assert found["macs"].fingerprint, "it should say what it depends on"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet5", "'resnet50'"),
        ("Resnet50", "'resnet50'"),
        ("", "pruning-bench list"),
        ("fasterrcnn_resnet50_fpn", "pruning-bench list"),
        ("resnet50:imagenet1k", "'imagenet1k_v2' or 'imagenet1k_v1'"),
        ("resnet50:", "imagenet1k_v1"),
        ("vit_b_16:imagenet1k_swag_e2e_v1", "imagenet1k_swag_linear_v1"),  # it takes 384 x 384
    ],
)
def test_unknown_names_show_the_closest(name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        MODELS[f"torchvision:{name}"]
    message = str(caught.value)
    assert says in message, message
    assert len(message) < 300, f"{len(message)} characters are no clear line: {message}"
    assert cli.main(["compress", f"torchvision:{name}", "magnitude:0.5", "-o", "small.safetensors"]) == 2
    assert capsys.readouterr().err == f"pruning-bench: {message}\n", "one line"


def test_a_missing_download_names_file_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = weights_of("resnet18")["imagenet1k_v1"].url.rpartition("/")[2]
    output = tmp_path / "small.safetensors"
    assert cli.main(["compress", "torchvision:resnet18:imagenet1k_v1", "magnitude:0.5", "-o", str(output)]) == 2
    error = capsys.readouterr().err
    for words in (file, str(tmp_path / "hub" / "checkpoints")):
        assert words in error, f"{words!r} is not in {error}"
    assert len(error.splitlines()) == 1, error
    assert not output.exists(), "something was written"


def downloaded(folder: Path, state: object, prefix: str = "") -> str:
    """A file as torchvision's downloads are: its digest begins as its name says. Returns the address it came from."""
    plain = folder / "plain.pth"
    torch.save(state, plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    plain.rename(folder / f"net-{prefix or digest[:8]}.pth")
    return f"https://example.org/models/net-{prefix or digest[:8]}.pth"


def test_pretrained_weights_are_read(tmp_path: Path) -> None:
    model, other = (nn.Sequential(nn.Linear(3, 2)) for _ in range(2))
    url = downloaded(tmp_path, {**other.state_dict(), "aux1.weight": torch.zeros(1)})
    load_pretrained(model, "net", url, left_out=("aux1.",), folder=tmp_path)
    assert torch.equal(model[0].weight, other[0].weight), "other weights than those of the file"


def test_densenets_old_names_are_understood(tmp_path: Path) -> None:
    model = build_model("torchvision:densenet121")
    pattern = r"\1.\2"
    old = {module.re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", pattern, n): t for n, t in model.state_dict().items()}
    assert set(old) != set(model.state_dict()), "no old name"
    load_pretrained(build_model("torchvision:densenet121"), "net", downloaded(tmp_path, old), folder=tmp_path)


class Harmful:
    """What a pickle can do: run something when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.file), "w")


def test_a_harmful_pickle_is_not_run(tmp_path: Path) -> None:
    """Mutant of reading tensors alone: a plain `torch.load` runs it."""
    trap = tmp_path / "trap"
    url = downloaded(tmp_path, {"0.weight": Harmful(trap)})
    with pytest.raises(CheckpointError, match="other content"):
        load_pretrained(nn.Sequential(nn.Linear(3, 2)), "net", url, folder=tmp_path)
    assert not trap.exists(), "the pickle was run"
    torch.load(tmp_path / url.rpartition("/")[2], weights_only=False)["0.weight"].close()
    assert trap.exists(), "the trap does not work"


@pytest.mark.parametrize(
    ("state", "prefix", "says"),
    [
        ({"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(2)}, "00000000", "sha256"),
        ({"0.weight": torch.zeros(2, 3)}, "", "0.bias"),
        ({"0.weight": torch.zeros(9, 3), "0.bias": torch.zeros(2)}, "", "size mismatch"),
        ([1, 2], "", "other content"),
    ],
    ids=["digest", "missing", "shape", "no state"],
)
def test_a_file_that_is_something_else_is_refused(
    state: dict[str, Tensor], prefix: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        load_pretrained(nn.Sequential(nn.Linear(3, 2)), "net", downloaded(tmp_path, state, prefix), folder=tmp_path)
    assert "\n" not in str(caught.value), str(caught.value)


def test_compress_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "small.safetensors")
    assert cli.main(["compress", SMALL, "magnitude:0.5", "-o", file]) == 0, capsys.readouterr().err
    assert "MACs" in capsys.readouterr().out
    assert cli.main(["compare", SMALL, file, "--no-time", "--runtime", "eager"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "no accuracy: the images are noise" in shown, shown
    assert "top-1" not in shown, shown
    assert "fewer" in shown, shown


def test_another_data_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-o", str(tmp_path / "small.safetensors"), "--dataset", "fashion_mnist"]
    assert cli.main(["compress", SMALL, "magnitude:0.5", *words]) == 2
    assert "--dataset fashion_mnist, should be random" in capsys.readouterr().err
    assert cli.main(["compare", SMALL, "resnet20", "--no-time"]) == 2
    assert "resnet20-random" in capsys.readouterr().err


def test_every_model_has_its_definition() -> None:
    missing = [name for name in names() if find(name).ready is None]
    assert not missing, f"{missing} without weights"
