from pathlib import Path

import pytest

from bench import tables
from bench.errors import BenchError
from bench.recipe import RecipeFile
from bench.workload import WorkloadFile

GOOD = """
summary = "s"
shared_tokens = 100
[session]
turns = 3
turn_tokens = 50
output_tokens = 10
"""


def read(tmp_path: Path, text: str, into: type = WorkloadFile) -> object:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return tables.read(path, into)[0]


def test_a_file_becomes_its_dataclass(tmp_path: Path) -> None:
    made = read(tmp_path, GOOD)
    assert isinstance(made, WorkloadFile)
    assert made.session.turns == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("turns = 3", "turns = 3\nturms = 4"), "session: unknown key 'turms'"),
        (("shared_tokens = 100", "shared_tokens = -5"), "shared_tokens is -5: it cannot be negative"),
        (("turns = 3", "turns = 'many'"), "turns should be a whole number, not 'many'"),
        (("turns = 3", "turns = true"), "turns should be a whole number"),
        (("turns = 3", "turns = 0"), "at least one turn"),
        (("turns = 3", "turns = { min = 5, max = 2 }"), "min 5 is above max 2"),
        (("turns = 3", "turns = { mean = 5, min = 1, max = 9 }"), "mean and std go together"),
        (("output_tokens = 10", "output_tokens = 60"), "must be above output_tokens"),
        (("turns = 3", ""), "the key 'turns' is missing"),
        (("[session]", "[session"), "not a TOML file"),
        (("[session]", "[arrivals]\nstart = 'maybe'\n[session]"), "start should be one of together, spread"),
    ],
)
def test_a_bad_file_is_refused_by_file_and_key(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    with pytest.raises(BenchError) as caught:
        read(tmp_path, GOOD.replace(*change))
    assert says in caught.value.message
    assert "mine.toml" in caught.value.message


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(BenchError) as caught:
        tables.find("workloads", "nothing")
    assert "coding-agent" in caught.value.hint


def test_a_path_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "coding-agent.toml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert tables.find("workloads", "coding-agent.toml") == Path("coding-agent.toml")
    assert tables.find("workloads", "coding-agent") != Path("coding-agent.toml")


@pytest.mark.parametrize("folder", ["workloads", "launch"])
def test_all_shipped_files_are_whole(folder: str) -> None:
    kind = {"workloads": WorkloadFile, "launch": RecipeFile}[folder]
    names = tables.shipped(folder)
    assert names
    for name in names:
        assert tables.read(tables.find(folder, name), kind)[0]
