"""The folder source: every way in which people and machines change files, on a real folder."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from support.gateway import caller, mock, route, write
from tollhouse.errors import ConfigError
from tollhouse.source import Update
from tollhouse.source import folder as source
from tollhouse.source.folder import FolderSource

SECONDS = 10.0


class Following:
    """A running FolderSource, what it handed over and what it reported."""

    def __init__(self, path: Path) -> None:
        self.source = FolderSource(path, {})
        self.updates: list[Update] = []
        self.reports: list[tuple[bool, str | None]] = []
        self.refuse: str | None = None
        self._changed = asyncio.Event()

    @property
    def models(self) -> list[str]:
        """The models of the snapshot in force."""
        return _models(self.updates[-1]) if self.updates else []

    @property
    def synced(self) -> bool:
        return bool(self.reports) and self.reports[-1][0]

    @property
    def problem(self) -> str:
        return (self.reports[-1][1] or "") if self.reports else ""

    def apply(self, update: Update) -> None:
        if self.refuse is not None:
            raise ConfigError(self.refuse)
        self.updates.append(update)
        self._changed.set()

    def report(self, synced: bool, problem: str | None) -> None:
        self.reports.append((synced, problem))
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_models(self, *models: str) -> None:
        await self.until(lambda: self.models == list(models) and self.synced)


def _models(update: Update) -> list[str]:
    return sorted(model for found in update.snapshot.routes.values() for model in found.models)


def _save(folder: Path, *models: str, name: str = "routes.yaml") -> Path:
    """A file with a route per model, put in place in one step."""
    return write(folder, *(route(model, [model], "mock") for model in models), name=name)


@contextlib.asynccontextmanager
async def _following(folder: Path) -> AsyncIterator[Following]:
    following = Following(folder)
    task = asyncio.create_task(following.source.run(following.apply, following.report))
    try:
        yield following
        assert not task.done(), "the source ended by itself"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as logs:
        yield logs
    assert "PLANTED" not in repr(logs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    write(folder, mock(), caller(), name="base.yaml")
    _save(folder, "one")
    return folder


class TestChanges:
    async def test_what_is_there_is_served_at_once(self, folder: Path) -> None:
        async with _following(folder) as following:
            await following.until_models("one")
            assert following.updates[0].snapshot.key_count() == 1
            assert following.reports == [(True, None)]

    async def test_an_edit_in_place(self, folder: Path) -> None:
        content = _save(folder, "two").read_text()
        file = _save(folder, "one")
        async with _following(folder) as following:
            await following.until_models("one")
            file.write_text(content)
            await following.until_models("two")

    async def test_an_atomic_rename(self, folder: Path) -> None:
        async with _following(folder) as following:
            await following.until_models("one")
            _save(folder, "two")
            await following.until_models("two")

    async def test_files_that_come_and_go_in_folders_that_come_and_go(self, folder: Path) -> None:
        async with _following(folder) as following:
            await following.until_models("one")
            _save(folder / "below", "two", name="more.yaml")
            await following.until_models("one", "two")
            _save(folder / "below", "two", "three", name="more.yaml")
            await following.until_models("one", "three", "two")
            shutil.rmtree(folder / "below")
            await following.until_models("one")
            (folder / "routes.yaml").unlink()
            await following.until_models()

    async def test_a_mounted_config_map(self, tmp_path: Path) -> None:
        """The kubelet writes a new directory and swaps the ``..data`` link to it."""
        mount = tmp_path / "mount"

        def update(number: int, *models: str) -> None:
            version = mount / f"..2026_{number}"
            write(version, mock(), *(route(m, [m], "mock") for m in models))
            fresh = mount / "..data_tmp"
            fresh.symlink_to(version.name)
            fresh.rename(mount / "..data")

        update(1, "one")
        (mount / "all.yaml").symlink_to("..data/all.yaml")
        async with _following(mount) as following:
            await following.until_models("one")
            update(2, "two")
            shutil.rmtree(mount / "..2026_1")
            await following.until_models("two")
            update(3, "three")
            await following.until_models("three")
            assert [_models(found) for found in following.updates] == [["one"], ["two"], ["three"]]

    async def test_another_folder_in_its_place(self, folder: Path, tmp_path: Path) -> None:
        """As git-sync and deployment scripts do it: with a link, or by renaming."""
        async with _following(folder) as following:
            await following.until_models("one")
            shutil.copytree(folder, tmp_path / "fresh")
            _save(tmp_path / "fresh", "two")
            folder.rename(tmp_path / "old")
            (tmp_path / "fresh").rename(folder)
            await following.until_models("two")
            _save(folder, "three")
            await following.until_models("three")

    async def test_many_rapid_saves_settle_on_the_last_and_never_go_back(
        self, folder: Path
    ) -> None:
        async with _following(folder) as following:
            await following.until_models("one")
            for number in range(300):
                _save(folder, f"m{number:03}")
                await asyncio.sleep(0.003)
            await following.until_models("m299")
            seen = [_models(update) for update in following.updates[1:]]
            assert seen == sorted(seen)

    async def test_a_save_without_a_change_changes_nothing(self, folder: Path) -> None:
        async with _following(folder) as following:
            await following.until_models("one")
            _save(folder, "one")
            following.source.reload()
            await asyncio.sleep(0.3)
            _save(folder, "two")
            await following.until_models("two")
            assert len(following.updates) == 2
            assert following.updates[0].digest != following.updates[1].digest

    async def test_the_digest_is_that_of_the_content(self, folder: Path) -> None:
        digests = []
        for _ in range(2):
            async with _following(folder) as following:
                await following.until_models("one")
                digests.append(following.updates[-1].digest)
        assert digests[0] == digests[1]

    async def test_it_is_quick(self, folder: Path) -> None:
        async with _following(folder) as following:
            await following.until_models("one")
            taken = []
            for number in range(20):
                begun = time.monotonic()
                _save(folder, f"m{number}")
                await following.until_models(f"m{number}")
                taken.append(time.monotonic() - begun)
        taken.sort()
        print(f"saved → in force: p50 {taken[10] * 1000:.0f} ms, most {taken[-1] * 1000:.0f} ms")
        assert taken[10] < 1.0


class TestWithoutNotifications:
    @pytest.fixture(autouse=True)
    def _no_inotify(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_: Any, **__: Any) -> Any:
            raise OSError("inotify watch limit reached")

        monkeypatch.setattr(source, "awatch", refused)

    async def test_changes_are_seen_by_looking(self, folder: Path) -> None:
        async with _following(folder) as following:
            await following.until_models("one")
            _save(folder, "two")
            await following.until_models("two")

    async def test_a_reload_does_not_wait_for_that(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(source, "_LOOK_SECONDS", 60.0)
        async with _following(folder) as following:
            await following.until_models("one")
            _save(folder, "two")
            following.source.reload()
            await following.until_models("two")


class TestBroken:
    async def test_a_syntax_error_keeps_the_last_good_and_names_the_line(
        self, folder: Path, logs: list[MutableMapping[str, Any]]
    ) -> None:
        async with _following(folder) as following:
            await following.until_models("one")
            good = (folder / "routes.yaml").read_text()
            line = len(good.splitlines()) + 1
            (folder / "routes.yaml").write_text(f"{good}  broken: }}\n")
            await following.until(lambda: f"routes.yaml:{line} " in following.problem)
            _save(folder, "two", name="other.yaml")
            await following.until(lambda: following.models == ["one", "two"])
            assert not following.synced
            said = [entry for entry in logs if "routes.yaml:" in entry["event"]]
            assert len(said) == 1, "said once, however often it is read"
            assert said[0]["log_level"] == "error"
            (folder / "routes.yaml").write_text(good)
            await following.until_models("one", "two")

    async def test_a_wrong_object_keeps_its_last_good_version_and_the_rest_goes_on(
        self, folder: Path
    ) -> None:
        async with _following(folder) as following:
            await following.until_models("one")
            wrong = route("one", ["one"], "mock")
            wrong["spec"]["targts"] = wrong["spec"].pop("targets")
            write(folder, wrong, route("two", ["two"], "mock"), name="routes.yaml")
            await following.until(lambda: following.models == ["one", "two"])
            await following.until(lambda: "targts" in following.problem)
            _save(folder, "one", "two")
            await following.until_models("one", "two")

    async def test_a_broken_start_serves_what_is_good(self, folder: Path) -> None:
        (folder / "broken.yaml").write_text("a: [\n")
        async with _following(folder) as following:
            await following.until(lambda: following.models == ["one"])
            await following.until(lambda: "broken.yaml:" in following.problem)

    async def test_findings_are_logged_once_with_their_line(
        self, folder: Path, logs: list[MutableMapping[str, Any]]
    ) -> None:
        write(folder, route("lost", ["lost"], "nowhere"), name="lost.yaml")
        async with _following(folder) as following:
            await following.until_models("lost", "one")
            _save(folder, "one", "two")
            await following.until_models("lost", "one", "two")
        said = [entry["event"] for entry in logs if "nowhere" in str(entry["event"])]
        assert len(said) == 1
        assert said[0].startswith("lost.yaml:")

    async def test_the_folder_gone_keeps_everything_and_finds_it_again(
        self, folder: Path, tmp_path: Path
    ) -> None:
        async with _following(folder) as following:
            await following.until_models("one")
            folder.rename(tmp_path / "away")
            await following.until(lambda: not following.synced)
            assert following.models == ["one"]
            (tmp_path / "away").rename(folder)
            await following.until(lambda: following.synced)
            _save(folder, "two")
            await following.until_models("two")

    async def test_a_snapshot_that_cannot_be_put_into_force(self, folder: Path) -> None:
        async with _following(folder) as following:
            await following.until_models("one")
            following.refuse = "no runtime for this"
            _save(folder, "two")
            await following.until(lambda: following.problem == "no runtime for this")
            following.refuse = None
            following.source.reload()
            await following.until_models("two")

    async def test_a_fault_of_ours_ends_neither_the_source_nor_what_it_serves(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fault(_: object) -> Any:
            raise ZeroDivisionError("what it was about")

        async with _following(folder) as following:
            await following.until_models("one")
            with monkeypatch.context() as patched:
                patched.setattr(source, "compile_snapshot", fault)
                _save(folder, "two")
                await following.until(lambda: "internal error" in following.problem)
            assert "what it was about" not in following.problem
            _save(folder, "three")
            await following.until_models("three")


async def test_requests_go_on_while_a_large_folder_is_compiled(folder: Path) -> None:
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - begun)

    async with _following(folder) as following:
        await following.until_models("one")
        beating = asyncio.create_task(beat())
        begun = time.monotonic()
        _save(folder, *(f"m{number:04}" for number in range(1000)))
        await following.until(lambda: len(following.models) == 1000)
        taken = time.monotonic() - begun
        beating.cancel()
    print(
        f"1000 routes in {taken:.1f} s, the event loop held up for {longest * 1000:.0f} ms at most"
    )
    assert longest < 0.5
