"""Promises about the repository itself: its layout, its locks, what it packs and what it names."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = (
    "requirements.lock",
    "requirements-dev.lock",
    "requirements-build.lock",
    "requirements-tools.lock",
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sources() -> Iterator[Path]:
    """Every file of the repository, committed or about to be; a copy without git is walked."""
    if (ROOT / ".git").exists():
        listed = run("git", "ls-files", "-co", "--exclude-standard", "-z").split("\0")
        yield from (ROOT / name for name in listed if name and (ROOT / name).is_file())
        return
    ignored = {"build", "dist", "__pycache__"}
    for directory, names, files in os.walk(ROOT):
        names[:] = [
            name
            for name in names
            if name not in ignored and (not name.startswith(".") or name == ".ci")
        ]
        yield from (Path(directory, name) for name in files)


class TestLayout:
    """Two source roots on ``sys.path``: neither they nor the tests are packages themselves."""

    @pytest.mark.parametrize("directory", ["gateway", "operator"])
    def test_a_source_root_is_no_package(self, directory: str) -> None:
        assert not (ROOT / directory / "__init__.py").exists()

    def test_no_package_among_the_tests(self) -> None:
        assert list((ROOT / "tests").rglob("__init__.py")) == []

    @pytest.mark.parametrize(
        "start",
        [("-S", "-c"), ("-c",), ("-m", "timeit", "-n1", "-r1")],
        ids=["bare", "command", "module"],
    )
    def test_pythons_own_operator_is_found_from_the_root(self, start: tuple[str, ...]) -> None:
        program = "import operator; print(operator.__file__, operator.itemgetter)"
        printed = run(sys.executable, *start, program)
        assert str(ROOT / "operator") not in printed
        assert "<class 'operator.itemgetter'>" in printed

    def test_a_script_in_the_root_gets_it_too(self, tmp_path: Path) -> None:
        (tmp_path / "operator").symlink_to(ROOT / "operator", target_is_directory=True)
        script = tmp_path / "script.py"
        script.write_text("import operator, tollhouse_operator; print(operator.itemgetter)")
        assert "<class 'operator.itemgetter'>" in run(sys.executable, script, cwd=tmp_path)


class TestLocks:
    @pytest.mark.parametrize("name", LOCKS)
    def test_no_address(self, name: str) -> None:
        text = (ROOT / name).read_text()
        assert not re.search(r"://|^\s*-(?!-hash=)|\s@\s", text, re.MULTILINE)

    @pytest.mark.parametrize("name", LOCKS)
    def test_every_requirement_is_pinned_and_hashed(self, name: str) -> None:
        blocks = re.split(r"^(?=[A-Za-z0-9])", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]
        assert blocks
        for block in blocks:
            assert re.match(r"[a-z0-9.\-]+==[^ ]+ ", block), block.splitlines()[0]
            assert "--hash=sha256:" in block, block.splitlines()[0]

    def test_they_hold_what_the_project_asks_for(self) -> None:
        extras = PROJECT["project"]["optional-dependencies"]
        runtime = PROJECT["project"]["dependencies"] + extras["operator"]
        development = [line for line in extras["dev"] if not line.startswith("tollhouse[")]
        building = PROJECT["dependency-groups"]["build"] + PROJECT["build-system"]["requires"]
        assert missing(runtime, "requirements.lock") == []
        assert missing(runtime + development, "requirements-dev.lock") == []
        assert missing(building, "requirements-build.lock") == []
        inspecting = PROJECT["dependency-groups"]["tools"]
        assert missing(inspecting, "requirements-tools.lock") == []

    def test_the_development_lock_has_the_runtime_locks_versions(self) -> None:
        assert locked("requirements.lock").items() <= locked("requirements-dev.lock").items()


def locked(name: str) -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    text = (ROOT / name).read_text()
    for project, version in re.findall(r"^([a-z0-9.\-]+)==(\S+) ", text, re.MULTILINE):
        versions.setdefault(project, set()).add(version)
    return versions


def missing(wanted: list[str], name: str) -> list[str]:
    """The requirements of ``wanted`` that no version in the lock satisfies."""
    versions = locked(name)
    return [
        line
        for line in wanted
        if not any(
            Requirement(line).specifier.contains(version)
            for version in versions.get(canonicalize_name(Requirement(line).name), ())
        )
    ]


class TestNames:
    """Nothing in the repository says where, or with whose tools, it was written."""

    def test_no_path_of_this_machine(self) -> None:
        private = [str(ROOT)] if len(ROOT.parts) > 2 else []
        # Root's home is the same everywhere, so naming it betrays nobody.
        private += [str(Path.home())] if Path.home() != Path("/root") else []
        assert mentions(private) == []

    def test_no_private_package_index(self) -> None:
        environ = os.environ.items()
        settings = [text for name, text in environ if re.match(r"(PIP|UV)_.*INDEX", name)]
        hosts = {urlsplit(url).hostname for text in settings for url in text.split()}
        assert mentions([host for host in hosts if host and not host.endswith("pypi.org")]) == []


def mentions(words: list[str]) -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for path in sources()
        if any(word.encode() in path.read_bytes() for word in words)
    ]


class TestPackaging:
    def test_the_wheel_made_from_the_sdist_holds_both_packages(self, tmp_path: Path) -> None:
        run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path)
        [sdist] = tmp_path.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(tmp_path, filter="data")
        unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=unpacked)
        [wheel] = tmp_path.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        modules = {name for name in names if name.endswith(".py")}
        assert modules == {
            str(path.relative_to(root))
            for root in (ROOT / "gateway", ROOT / "operator")
            for path in root.rglob("*.py")
        }
        assert {"tollhouse/py.typed", "tollhouse_operator/py.typed"} <= set(names)
        assert any(name.endswith("entry_points.txt") for name in names)
        assert any(name.endswith("LICENSE") for name in names)
