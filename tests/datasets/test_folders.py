import pytest

from pruning_bench.datasets.folders import VARIABLE, find_folder, look_for
from pruning_bench.errors import DataError


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Folders by role, each with the data; nothing set, an empty cache."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("given", "variable", "usual"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "mark").touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


def no_download(folder):
    raise AssertionError(f"download into {folder}, should not be called")


def fake_download(folder):
    (folder / "mark").touch()


def find(places, folder=None, usual=("usual",), download=no_download):
    usual = [str(places / name) for name in usual]
    return find_folder("d", folder, markers=("mark", "mark.gz"), inside=("inner",), usual=usual, download=download)


@pytest.mark.parametrize(
    ("folder", "variable", "expected"),
    [
        ("given", "variable", "given"),
        ("given", None, "given"),
        (None, "variable", "variable"),
        (None, "", "usual"),
        (None, None, "usual"),
    ],
)
def test_the_first_that_is_given_wins(places, monkeypatch, folder, variable, expected):
    if variable is not None:
        monkeypatch.setenv(VARIABLE, variable and str(places / variable))
    found, source = find(places, folder and places / folder)
    assert found == places / expected / "inner", f"{found} ({source}), should be the folder {expected!r}"


@pytest.mark.parametrize("wrong", ["empty", "nowhere"])
def test_a_given_folder_without_data_is_an_error_not_a_search(places, monkeypatch, wrong):
    with pytest.raises(DataError, match=wrong):
        find(places, places / wrong)
    monkeypatch.setenv(VARIABLE, str(places / wrong))
    with pytest.raises(DataError, match=f"{VARIABLE} .*{wrong}"):
        find(places)


def test_the_data_may_lie_in_the_folder_itself(places):
    found, _ = find(places, places / "given" / "inner")
    assert found == places / "given" / "inner", f"{found}, should be the folder itself"


def test_downloads_once_when_nothing_is_found(places):
    found, source = find(places, usual=("nowhere",), download=fake_download)
    assert (found, source) == (places / "cache/pruning_bench/d", "download"), f"{found} {source}, should be the cache"
    again, _ = find(places, usual=(), download=no_download)
    assert again == found, f"{again}, should be {found}, filled before"


def failing(error):
    def download(folder):
        raise error

    return download


@pytest.mark.parametrize(
    ("download", "said"),
    [
        (failing(OSError("no route to host")), "no route to host"),
        (failing(RuntimeError("File not found or corrupted.")), "corrupted"),
        (lambda folder: None, "no mark in the download"),
    ],
)
def test_a_failed_download_is_one_clear_line(places, download, said):
    with pytest.raises(DataError, match=said) as caught:
        find(places, usual=(), download=download)
    assert "\n" not in str(caught.value), f"{caught.value}, should be one line"


def test_other_errors_of_a_download_are_not_hidden(places):
    with pytest.raises(TypeError):
        find(places, usual=(), download=failing(TypeError("a defect")))


def look(places, usual=()):
    usual = [str(places / name) for name in usual]
    return look_for("d", markers=("mark", "mark.gz"), inside=("inner",), usual=usual)


def test_looking_finds_what_is_there_and_starts_no_download(places, monkeypatch):
    assert look(places) is None, f"{look(places)}, should be nothing"
    assert look(places, ("usual",))[0] == places / "usual" / "inner", f"{look(places, ('usual',))}"
    find(places, usual=(), download=fake_download)
    assert look(places) == (places / "cache/pruning_bench/d", "download"), f"{look(places)}, should be the cache"
    monkeypatch.setenv(VARIABLE, str(places / "variable"))
    assert look(places) == (places / "variable" / "inner", VARIABLE), f"{look(places)}, should be the variable's"
    monkeypatch.setenv(VARIABLE, str(places / "empty"))
    with pytest.raises(DataError, match="empty"):
        look(places)
