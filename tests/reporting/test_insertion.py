"""Only what stands between the marks is replaced, and a file without its marks stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pruning_bench.errors import RecordError
from pruning_bench.records import write_atomically
from pruning_bench.reporting.insertion import marks, put_between_marks

BEGIN, END = marks()
OTHER_BEGIN, OTHER_END = marks("other")
Put = Callable[[Path, str], None]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r<"), max_size=30)


def put_over_all(path: Path, body: str) -> None:
    write_atomically(path, f"{BEGIN}\n\n{body.strip()}\n\n{END}")


def put_at_the_last_mark(path: Path, body: str) -> None:
    text = path.read_text()
    head, tail = text[: text.index(BEGIN)], text[text.rindex("-->") + 3 :]
    write_atomically(path, f"{head}{BEGIN}\n\n{body.strip()}\n\n{END}{tail}")


def check_neighbours(put: Put, folder: Path, head: str, body: str, tail: str) -> None:
    path = folder / "page.md"
    other = f"{OTHER_BEGIN}\nkept\n{OTHER_END}"
    path.write_text(f"{head}{BEGIN}old{END}{tail}{other}", encoding="utf-8", newline="")
    put(path, body)
    found = path.read_bytes().decode()
    expected = f"{head}{BEGIN}\n\n{body.strip()}\n\n{END}{tail}{other}"
    assert found == expected, f"{found!r}, should be {expected!r}"


@given(head=TEXT, body=TEXT, tail=TEXT)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_neighbours_stay(tmp_path: Path, head: str, body: str, tail: str) -> None:
    check_neighbours(put_between_marks, tmp_path, head, body, tail)


@pytest.mark.parametrize("mutant", [put_over_all, put_at_the_last_mark])
def test_mutants_that_lose_a_neighbour_are_seen(mutant: Put, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="should be"):
        check_neighbours(mutant, tmp_path, "head", "body", "tail")


@pytest.mark.parametrize(
    "text",
    [
        "",
        BEGIN,
        END,
        END + BEGIN,
        BEGIN + BEGIN + END,
        BEGIN + END + END,
        OTHER_BEGIN + OTHER_END,
        BEGIN + OTHER_BEGIN + END + OTHER_END,
    ],
)
def test_without_its_marks_a_file_stays(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"no such section, should be .* once each.*page\.md"):
        put_between_marks(path, "body")
    assert path.read_text() == text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no such file, should be one with .*page\.md"):
        put_between_marks(tmp_path / "page.md", "body")
    assert not list(tmp_path.iterdir()), "a file was made"
