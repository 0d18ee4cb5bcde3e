"""The pytest plug-in: from `pytest benchmarks/` to a verdict; inert where no suite case is collected, no torch at load.

A benchmark asks for one of the fixtures `quality_case`, `footprint_case`, `latency_case`; the plug-in parametrizes it
with the ids of the profile's cases. Records are written before anything is judged.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pruning_bench.errors import PruningBenchError, UnavailableError, describe, one_line

if TYPE_CHECKING:
    from pruning_bench.records import CaseState
    from pruning_bench.suite import Suite

SUFFIX = "_case"
DEFAULT_STORAGE = "file://./.benchmarks"
STATE: pytest.StashKey[Suite] = pytest.StashKey()
FOUND: pytest.StashKey[set[str]] = pytest.StashKey()
PROBLEM: pytest.StashKey[str] = pytest.StashKey()
SUITE_FOLDER: pytest.StashKey[bool] = pytest.StashKey()
FOLDERS = ("--pb-results", "--pb-data", "--pb-checkpoints")
FAMILIES = ("quality", "footprint", "latency")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the suite's options."""
    group = parser.getgroup("pruning_bench", "compressed-model benchmarks")
    several: dict[str, Any] = {"action": "append", "default": None}
    group.addoption(
        "--pb-suite", action="store_true", help="measure this repository's own models, instead of running its tests"
    )
    group.addoption("--pb-profile", default=None, metavar="NAME", help="smoke (default), ci or nightly")
    group.addoption("--pb-model", metavar="MODEL", **several, help="only this model; repeatable")
    group.addoption(
        "--pb-recipe", metavar="RECIPE", **several, help="these recipes instead of the profile's; repeatable"
    )
    group.addoption("--pb-runtime", metavar="RUNTIME", **several, help="only this runtime; repeatable")
    group.addoption(
        "--pb-require", metavar="RUNTIME", **several, help="fail where this runtime is not here; repeatable"
    )
    group.addoption("--pb-threads", metavar="N", type=int, **several, help="these thread counts; repeatable")
    group.addoption("--pb-device", default="cpu", choices=["cpu", "cuda"], help="device of every case")
    group.addoption("--pb-dataset", metavar="NAME", **several, help="only models trained on this data set; repeatable")
    group.addoption("--pb-data", default=None, metavar="DIR", help="folder of the full data; it is then trained on")
    group.addoption(
        "--pb-checkpoints", default=None, metavar="DIR", help="your own trained models instead of the shipped"
    )
    group.addoption("--pb-results", default=None, metavar="DIR", help="results folder (default: ROOT/results)")
    group.addoption("--pb-no-confirm", action="store_true", help="do not re-measure suspected slow-downs")
    group.addoption("--pb-no-cache", action="store_true", help="compress every model anew; see pruning-bench cache")


def results_folder(config: pytest.Config) -> Path:
    """Where baselines, runs and reports lie; the same from every working directory."""
    chosen = config.getoption("pb_results")
    return Path(chosen).absolute() if chosen else config.rootpath / "results"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Takes its place for the end, and catches `--benchmark-compare PATH`: the path would be taken for a run's id."""
    config.pluginmanager.register(Finish(), "pruning_bench_finish")
    taken = config.getoption("benchmark_compare", [])
    if isinstance(taken, str) and Path(taken).exists() and not taken.endswith(".json"):
        raise pytest.UsageError(
            f"--benchmark-compare: the path {taken!r}, should be a run id or nothing "
            f"[write the path first: pytest {taken} --benchmark-compare]"
        )
    if config.getoption("pb_suite"):
        if config.args_source is pytest.Config.ArgsSource.ARGS:
            raise pytest.UsageError(
                f"--pb-suite: {config.args[0]!r}, should be alone: choose cases by -k or --pb-model"
            )
        _refuse_moved_root(config)
        config.args[:] = [str(config.rootpath)]
        use_suite_storage(config)


def _refuse_moved_root(config: pytest.Config) -> None:
    """Raises `UsageError` for a folder elsewhere, an argument of its own: pytest looks for its root there.

    It does so before it knows the options of plug-ins, so that the folder is to it what tests are collected from.
    """
    if config.getoption("rootdir") or config.getoption("inifilename"):
        return
    here, words = config.invocation_params.dir.resolve(), list(map(str, config.invocation_params.args))
    for option, word in pairwise(words):
        path = (here / word).resolve()
        if option in FOLDERS and path.exists() and not path.is_relative_to(here):
            where = f"pytest took it for a folder of tests, and {config.rootpath} for its root"
            raise pytest.UsageError(f"{option}: {word!r} as a word of its own, should be {option}={word} [{where}]")


@pytest.hookimpl(tryfirst=True)
def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """With `--pb-suite`, the suite's benchmarks in place of what lies in the root folder."""
    if not parent.config.getoption("pb_suite") or path != parent.config.rootpath:
        return None
    made: pytest.Collector = SuiteFolder.from_parent(parent, path=path)
    return made


class SuiteFolder(pytest.Directory):
    """The root folder of a user's repository, which holds the suite's benchmarks and nothing else."""

    def collect(self) -> Iterator[pytest.Collector]:
        """The one module."""
        yield SuiteModule.from_parent(self, path=Path(__file__).with_name("suite_cases.py"), nodeid="pruning_bench")


class SuiteModule(pytest.Module):
    """The benchmarks of the installed package."""

    def _getobj(self) -> Any:
        return import_module("pruning_bench.suite_cases")

    def funcnamefilter(self, name: str) -> bool:
        """Its tests, whatever the repository's own are called."""
        return name.startswith("test_")


def use_suite_storage(config: pytest.Config) -> None:
    """Lets pytest-benchmark save every run under the results folder; call it from the suite's `conftest.py`."""
    config.stash[SUITE_FOLDER] = True
    if parallel := _in_parallel(config):
        raise pytest.UsageError(str(parallel))
    if config.getoption("benchmark_storage", None) is None:
        expected = "there: latencies are recorded through it"
        raise pytest.UsageError(f"pytest: no pytest-benchmark (-p no:benchmark?), should be {expected}")
    _let_benchmark_warn(config)
    if config.getoption("benchmark_storage", None) == DEFAULT_STORAGE:
        config.option.benchmark_storage = f"file://{results_folder(config) / 'runs' / 'pytest-benchmark'}"
        if not (config.getoption("benchmark_autosave") or config.getoption("benchmark_save")):
            config.option.benchmark_autosave = "suite"


def _let_benchmark_warn(config: pytest.Config) -> None:
    """What pytest-benchmark warns of costs no run, even where a project turns warnings into errors."""
    from pytest_benchmark.logger import PytestBenchmarkWarning

    kind = PytestBenchmarkWarning
    warnings.filterwarnings("default", category=kind)  # while plug-ins are configured, and ...
    config.addinivalue_line("filterwarnings", f"default::{kind.__module__}.{kind.__name__}")  # ... from then on


def _in_parallel(config: pytest.Config) -> PruningBenchError | None:
    """What is wrong where pytest-xdist shares the tests out: by `-n`, or by `--dist` to what `--tx` starts."""
    count = config.getoption("numprocesses", None)
    started = config.getoption("tx", None) and config.getoption("dist", "no") != "no"
    if not (count or started or hasattr(config, "workerinput")):
        return None
    option = "-n" if count else "--tx"  # -n sets --tx too
    return PruningBenchError(f"pytest {option}", "several processes", "one: what runs in parallel cannot be timed")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrizes the suite's fixtures with case ids."""
    for fixture in metafunc.fixturenames:
        family = fixture.removesuffix(SUFFIX)
        if fixture == f"{family}{SUFFIX}" and family in FAMILIES:
            metafunc.config.stash.setdefault(FOUND, set()).add(family)
            metafunc.parametrize(fixture, _params(metafunc.config, family), indirect=True)


def _params(config: pytest.Config, family: str) -> list[Any]:
    try:
        suite = _suite(config)
    except PruningBenchError as problem:
        config.stash[PROBLEM] = str(problem)  # raised once everything is collected, where pytest prints one line of it
        return []
    return [pytest.param(case_id, id=case_id, marks=suite.marks(family, case_id)) for case_id in suite.ids(family)]


@contextmanager
def warnings_stay_warnings() -> Iterator[None]:
    """A library's new warning must not cost a run, even where a project's tests turn warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


@contextmanager
def traces_kept_out() -> Iterator[None]:
    """Keeps what torch traces for its own files out of pytest's logs, which newer versions of pytest would show."""
    logger = logging.getLogger("torch.__trace")
    theirs = [handler for handler in logger.handlers if type(handler).__module__.startswith("_pytest.")]
    for handler in theirs:
        logger.removeHandler(handler)
    try:
        yield
    finally:
        for handler in theirs:
            logger.addHandler(handler)


def _suite(config: pytest.Config) -> Suite:
    if STATE not in config.stash:
        if parallel := _in_parallel(config):
            raise parallel
        with warnings_stay_warnings():
            from pruning_bench.suite import Options, Suite
        chosen = {name: config.getoption(f"pb_{name}") for name in Options.NAMES}
        part = any(config.getoption(f"benchmark_{name}", False) for name in ("only", "skip"))
        with warnings_stay_warnings():
            config.stash[STATE] = Suite(Options(results_folder(config), config.rootpath, part=part, **chosen))
    return config.stash[STATE]


class BoundCase:
    """A case and its family, as a benchmark sees it."""

    def __init__(self, suite: Suite, family: str, case_id: str) -> None:
        self.suite, self.family, self.case_id = suite, family, case_id

    def measure(self) -> None:
        """Measures and records the case; a case that cannot be built fails in one line."""
        try:
            with traces_kept_out():
                self.suite.measure(self.family, self.case_id)
        except UnavailableError as problem:
            self.suite.unavailable.add((self.family, self.case_id))
            pytest.skip(str(problem))
        except PruningBenchError as problem:
            raise pytest.fail.Exception(str(problem), pytrace=False) from None  # chained, both would be printed

    def replay(self, benchmark: Any) -> None:
        """Gives the recorded times of one call to pytest-benchmark, round by round."""
        times = self.suite.times_of(self.case_id)
        replay = self.suite.replays[self.case_id]
        replay.load(times)
        benchmark.extra_info["case"] = self.case_id
        benchmark.pedantic(replay.nothing, rounds=len(times), iterations=1)


def _bound(request: pytest.FixtureRequest, family: str) -> BoundCase:
    return BoundCase(_suite(request.config), family, request.param)


@pytest.fixture
def quality_case(request: pytest.FixtureRequest) -> BoundCase:
    """A case whose accuracy, agreement and flips are to be measured."""
    return _bound(request, "quality")


@pytest.fixture
def footprint_case(request: pytest.FixtureRequest) -> BoundCase:
    """A case whose parameters, bytes and MACs are to be measured."""
    return _bound(request, "footprint")


@pytest.fixture
def latency_case(request: pytest.FixtureRequest) -> BoundCase:
    """A case that is to be timed next to its anchor."""
    return _bound(request, "latency")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Notes which cases were selected."""
    if PROBLEM in session.config.stash:
        raise pytest.UsageError(session.config.stash[PROBLEM])
    if STATE in session.config.stash:
        config = session.config
        found = config.stash.setdefault(FOUND, set())
        config.stash[STATE].select(dict(_selected(session.items)), found, _everything(config))


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """How long a long run will take, before it starts."""
    if STATE not in config.stash or _runs_nothing(config):
        return None
    suite = config.stash[STATE]
    _watch(suite, config)
    return suite.expected([test for _, test in _selected(items)])


def _runs_nothing(config: pytest.Config) -> bool:
    """Whether tests are collected or set up and not called, so that there is nothing to record."""
    return any(config.getoption(name, False) for name in ("collectonly", "setuponly", "setupplan"))


def _watch(suite: Suite, config: pytest.Config) -> None:
    """Lets the suite say on a terminal what it is building; a file gets no such words."""
    reporter, capturing = map(config.pluginmanager.get_plugin, ("terminalreporter", "capturemanager"))
    isatty = getattr(reporter, "isatty", False)  # a value, or in newer versions of pytest a function
    if not (isatty() if callable(isatty) else isatty):
        return
    from pruning_bench.progress import StatusLine

    writer = config.get_terminal_writer()

    def write(words: str) -> None:
        with capturing.global_and_fixture_disabled() if capturing else nullcontext():  # tests are captured meanwhile
            writer.write_raw(words, flush=True)

    suite.watch(StatusLine(write, lambda: writer.fullwidth - writer.width_of_current_line - 1))


NARROWING = ("ignore", "ignore_glob", "lf", "pyargs")


def _everything(config: pytest.Config) -> bool:
    """Whether the folders of the suite were collected as a whole; what was left out case by case is known otherwise."""
    if any(config.getoption(name, None) for name in NARROWING):
        return False
    if config.getoption("pb_suite"):
        return True
    plugins = config.pluginmanager.get_plugins()
    folders = [
        Path(p.__file__).resolve().parent
        for p in plugins
        if getattr(p, "use_suite_storage", None) is use_suite_storage and Path(p.__file__).name == "conftest.py"
    ]
    named = [(config.invocation_params.dir / argument).resolve() for argument in config.args]
    return bool(folders) and all(any(folder.is_relative_to(path) for path in named) for folder in folders)


def _selected(items: Iterable[pytest.Item]) -> Iterator[tuple[str, tuple[str, str]]]:
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        for fixture, value in params.items():
            family = fixture.removesuffix(SUFFIX)
            # A family without a case has one test without an id, which pytest skips.
            if family in FAMILIES and fixture.endswith(SUFFIX) and isinstance(value, str):
                yield item.nodeid, (family, value)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Notes what became of a case, and how long it took."""
    if STATE in item.config.stash:
        item.config.stash[STATE].spent(item.nodeid, call.duration)
    if STATE in item.config.stash and (call.when == "call" or call.excinfo):
        problem = call.excinfo.value if call.excinfo else None
        skipped = isinstance(problem, pytest.skip.Exception)
        state: CaseState = "ran" if problem is None else "skipped" if skipped else "error"
        reason = str(problem).splitlines()[0] if str(problem) else repr(problem)
        item.config.stash[STATE].note(item.nodeid, state, reason)


class Finish:
    """The end of a run. Registered after all plug-ins but the terminal's: around what they save, inside its summary."""

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Iterator[None]:
        """Writes the records before anything else can fail, then judges; an interrupted run is not judged."""
        suite = session.config.stash.get(STATE, None)
        if suite is None or _runs_nothing(session.config) or not suite.reports_something():
            return (yield)
        interrupted = exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        written = suite.write(interrupted)
        try:
            yield
        except Exception as problem:  # another plug-in's, whose files are not what the verdict hangs on
            suite.problems.append(one_line(problem) if isinstance(problem, OSError) else describe(problem))
        if written and not interrupted:
            session.exitstatus = _judged(suite) or exitstatus
        if suite.problems:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        return None


def _judged(suite: Suite) -> int:
    """The exit status by the verdict; a problem on the way is kept for the summary."""
    try:
        with warnings_stay_warnings():
            return suite.judge()
    except (PruningBenchError, OSError) as problem:
        suite.problems.append(one_line(problem))
        return pytest.ExitCode.USAGE_ERROR
    except KeyboardInterrupt:
        suite.interrupt()
        return pytest.ExitCode.INTERRUPTED


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the table and the verdict."""
    if STATE in config.stash:
        suite = config.stash[STATE]
        lines = suite.summary()
        if lines:
            terminalreporter.section("pruning_bench", sep="=")
            for line in lines:
                terminalreporter.write_line(line)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, str] | None:
    """What must match for times to be comparable, instead of everything about the machine; for suite runs only."""
    if SUITE_FOLDER not in config.stash:
        return None
    from pruning_bench.environment import current

    return dict(current(device=config.getoption("pb_device")).must_match)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_benchmark_compare_machine_info(
    config: pytest.Config, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    """Says in one line what differs.

    pytest-benchmark's own comparison, which runs after this, crashes when its storage lies outside the working
    directory, so that it is shown equal information; its table informs, the verdict is the suite's.
    """
    if SUITE_FOLDER not in config.stash:
        return
    then = compared_benchmark["machine_info"]
    keys = [key for key in sorted({**machine_info, **then}) if str(machine_info.get(key)) != str(then.get(key))]
    if keys:
        text = f"pytest-benchmark compares with a run from another environment ({', '.join(keys)} differ)"
        config.get_terminal_writer().line(text)  # no warning: a project may turn warnings into errors
    compared_benchmark["machine_info"] = machine_info
