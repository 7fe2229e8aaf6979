"""What is packed, and that workflows, pins, versions and the changelog agree."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import frozen_kernels as fk

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
STEPS = [
    pytest.param(step, id=f"{name}-{job}-{number}")
    for name, workflow in WORKFLOWS.items()
    for job, content in workflow["jobs"].items()
    for number, step in enumerate(content["steps"])
]


def name_of(requirement: str) -> str:
    return re.split(r"[\[=<>; ]", requirement)[0].lower().replace("_", "-")


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"([\w-]+)==([\w.]+)( *;.*)?", line) for line in lines]
    assert all(found), lines
    return {name_of(match[1]): match[2] for match in found if match}


def test_what_dev_installs_is_pinned():
    inside = re.findall(r"[\w-]+", re.findall(r"frozen-kernels\[(.*)\]", EXTRAS["dev"][0])[0])
    assert set(inside) == set(EXTRAS) - {"dev", "minilm"}
    wanted = {name_of(r) for extra in ("dev", *inside) for r in EXTRAS[extra]} - {"frozen-kernels"}
    assert wanted - set(pins()) == set()
    assert f"torch=={pins()['torch']}" in EXTRAS["dev"]


def test_an_sdist_holds_every_source_and_nothing_built(tmp_path):
    command = ["setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "-d", tmp_path]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.tar.gz")
    assert path.name == f"frozen_kernels-{fk.__version__}.tar.gz"
    with tarfile.open(path) as file:
        held = {member.name.partition("/")[2] for member in file if member.isfile()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    needed = {name for name in tracked if name.startswith(("frozen_kernels/", "csrc/"))}
    assert needed - held == set() and len(needed) > 100
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "CHANGELOG.md"} <= held
    assert not [name for name in held if name.startswith("tests/")]
    assert not [name for name in held if re.search(r"\.(so|dylib|dll|pyd|o|pyc)$", name)]


def test_the_release_notes_are_the_section_of_this_version():
    notes = subprocess.run(["make", "-s", "release-notes"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    text = (ROOT / "CHANGELOG.md").read_text()
    assert notes.strip() and notes in text and "\n## " not in notes
    assert f"## [{fk.__version__}] - " in text.partition(notes)[0].splitlines()[-1]
    wrong = subprocess.run(["make", "-s", "release-notes", "VERSION=9.9"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode and "no section 9.9" in wrong.stderr


def test_versions_of_the_changelog_have_days_and_fall():
    heads = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    found = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d|Unreleased)", head) for head in heads]
    versions = [tuple(int(part) for part in match.groups()[:3]) for match in found if match]
    assert heads and all(found) and versions == sorted(versions, reverse=True)
    assert [match[4] for match in found[1:] if match and match[4] == "Unreleased"] == []
    parts = re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(parts) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_workflows_try_the_oldest_and_the_newest_torch():
    (floor,) = (r.partition(">=")[2] for r in PROJECT["dependencies"] if name_of(r) == "torch")
    systems = WORKFLOWS["tests"]["jobs"]["systems"]
    oldest, newest = systems["strategy"]["matrix"]["torch"]
    assert oldest in (floor, f"{floor}.0") and newest == pins()["torch"]
    assert f"WHEEL_TORCHES ?= torch=={oldest}" in MAKEFILE
    assert {entry["torch"] for entry in systems["strategy"]["matrix"]["include"]} == {oldest, newest}
    assert all((ROOT / name).exists() for name in systems["env"]["TESTS"].split())


def test_workflows_build_for_every_python_that_is_claimed():
    prefix = "Programming Language :: Python :: 3."
    claimed = {f"3.{c.removeprefix(prefix)}" for c in PROJECT["classifiers"] if c.startswith(prefix)}
    jobs = WORKFLOWS["wheels"]["jobs"]
    for system in ("macos", "windows"):
        assert set(jobs[system]["strategy"]["matrix"]["python"]) == claimed
    linux = re.findall(r"/cp3(\d+)-cp3\1/", jobs["linux"]["env"]["PYTHONS"])
    assert {f"3.{minor}" for minor in linux} == claimed


@pytest.mark.parametrize("step", STEPS)
def test_a_step_names_what_exists(step):
    if "uses" in step:
        assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
        return
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    for words in re.findall(r"\bmake ((?:-\w+ )*[\w-]+)", step["run"]):
        assert words.split()[-1] in targets, words
    for module in re.findall(r"python -m (frozen_kernels[\w.]*)", step["run"]):
        assert (ROOT / module.replace(".", "/") / "__main__.py").exists()
    for file in re.findall(r"[\w/]+\.(?:py|sh)\b", step["run"]):
        assert (ROOT / file).exists(), file


def test_setup_refuses_a_compiler_without_vectors():
    program = "import setuptools; setuptools.setup = lambda **_: None; import setup; setup.compiler()"
    command, env = [sys.executable, "-c", program], {"CXX": "cl.exe", "PATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True)
    assert done.returncode and "CXX=cl.exe cannot build the kernels" in done.stderr
