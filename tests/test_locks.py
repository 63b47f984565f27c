"""The locks say what pyproject.toml does, each version with its hashes, and no index of anybody's."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUN = PROJECT["project"]["dependencies"]
WANTED = {
    "run": RUN,
    "dev": RUN + PROJECT["project"]["optional-dependencies"]["dev"],
    "supply": PROJECT["dependency-groups"]["supply"],
}
ENTRY = re.compile(r"^(?P<pin>[^\s#].*?) \\\n(?P<hashes>(?: +--hash=.*\n)+)(?P<why>(?: +#.*\n)*)", re.MULTILINE)


def entries(name: str) -> list[re.Match[str]]:
    return list(ENTRY.finditer((ROOT / "locks" / f"{name}.txt").read_text()))


def pinned(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for entry in entries(name):
        pin = Requirement(entry["pin"])
        (exactly,) = pin.specifier
        assert exactly.operator == "=="
        found.setdefault(canonicalize_name(pin.name), set()).add(exactly.version)
    return found


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_holds_what_is_asked_for_today_and_nothing_that_was(name: str) -> None:
    asked = {canonicalize_name(one.name): one for one in map(Requirement, WANTED[name])}
    direct = {
        canonicalize_name(Requirement(entry["pin"]).name)
        for entry in entries(name)
        if "(pyproject.toml" in entry["why"]
    }
    assert direct == set(asked), "run `make lock`"
    held = pinned(name)
    assert all(one.specifier.contains(version) for key, one in asked.items() for version in held[key]), (
        "run `make lock`"
    )


@pytest.mark.parametrize("name", WANTED)
def test_every_version_has_its_hash_and_no_index_is_named(name: str) -> None:
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    assert ENTRY.sub("", text) == "", "a line that is neither a version with its hashes nor a remark on it"
    assert all(re.fullmatch(r"( +--hash=sha256:[0-9a-f]{64}( \\)?\n)+", entry["hashes"]) for entry in entries(name))
    assert "://" not in text


def test_what_is_tested_is_what_is_shipped() -> None:
    dev = pinned("dev")
    assert all(dev[name] == versions for name, versions in pinned("run").items())
