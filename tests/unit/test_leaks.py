"""The search for planted secrets finds what it should, and never shows it."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import leaks
from support import planted

MADE = "sk-th-" + "".join(f"{number * 7919 % 3844:03x}" for number in range(16))


def found(tmp_path: Path, text: str, *secrets: str) -> list[tuple[int, str]]:
    log = tmp_path / "process.log"
    log.write_text(text)
    return [(leak.line, leak.form) for leak in leaks.scan([log], secrets).leaks]


class TestWhatIsFound:
    def test_nothing_in_a_clean_log(self, tmp_path: Path) -> None:
        log = tmp_path / "process.log"
        log.write_text("a planted word and sk-th-0a are no secrets\n")
        assert leaks.scan([log], [MADE]) == leaks.Scan(1, log.stat().st_size, ())

    def test_a_planted_secret_by_its_line(self, tmp_path: Path) -> None:
        assert found(tmp_path, "one\ntwo sk-provider-PLANTED-1\n") == [(2, "plain")]

    @pytest.mark.parametrize("before", ["", "a", "ab", "Bearer "])
    def test_a_planted_secret_in_base64(self, tmp_path: Path, before: str) -> None:
        encoded = base64.b64encode(f"{before}sk-PLANTED-1:".encode()).decode()
        assert found(tmp_path, f"\n\nauthorization: {encoded}\n") == [(3, "base64")]

    @pytest.mark.parametrize("before", ["", "a", "ab", "Bearer "])
    def test_a_registered_secret_in_base64(self, tmp_path: Path, before: str) -> None:
        secret = "what?ever>it/is~" + "\u00ff" * 4
        encoded = base64.urlsafe_b64encode(f"{before}{secret}.".encode()).decode()
        assert found(tmp_path, encoded, secret) == [(1, "base64")]

    def test_a_registered_secret_in_every_other_form(self, tmp_path: Path) -> None:
        secret = 'quo"ted\\and /slashed/ value'
        assert found(tmp_path, secret, secret) == [(1, "plain")]
        assert found(tmp_path, json.dumps({"key": secret}), secret) == [(1, "JSON")]
        assert found(tmp_path, secret.encode().hex(), secret) == [(1, "hex")]
        query = "?key=quo%22ted%5Cand%20%2Fslashed%2F%20value"
        assert found(tmp_path, query, secret) == [(1, "percent-encoded")]

    def test_half_of_a_long_secret(self, tmp_path: Path) -> None:
        assert found(tmp_path, f"{MADE[:30]}…", MADE) == [(1, "first half")]
        assert found(tmp_path, f"…{MADE[-30:]}", MADE)

    def test_the_short_prefix_that_status_shows_is_no_leak(self, tmp_path: Path) -> None:
        assert found(tmp_path, MADE[:10], MADE) == []

    def test_a_secret_that_the_terminal_wrapped_and_coloured(self, tmp_path: Path) -> None:
        wrapped = f"head\n  \x1b[32m{MADE[:12]}\x1b[0m\n    {MADE[12:]}\n"
        assert (2, "plain") in found(tmp_path, wrapped, MADE)

    def test_a_secret_of_several_lines(self, tmp_path: Path) -> None:
        secret = "first line of it\nsecond line of it\n"
        assert (2, "plain") in found(tmp_path, f"head\n{secret}", secret)

    def test_every_line_with_a_leak_once(self, tmp_path: Path) -> None:
        assert [line for line, _ in found(tmp_path, f"{MADE}\n-\n{MADE} {MADE}\n", MADE)] == [1, 3]


class TestRegistering:
    def test_a_value_is_kept_once_where_only_its_owner_reads(self, tmp_path: Path) -> None:
        registry = tmp_path / "planted" / "values"
        assert planted.register(MADE, registry) == MADE
        planted.register("another\nsecret value", registry)
        planted.register(MADE, registry)
        assert planted.registered(registry) == (MADE, "another\nsecret value")
        assert registry.stat().st_mode & 0o777 == 0o600
        assert registry.parent.stat().st_mode & 0o777 == 0o700

    def test_a_marked_value_needs_no_registering(self, tmp_path: Path) -> None:
        registry = tmp_path / "values"
        planted.register("sk-th-PLANTED-0001", registry)
        assert not registry.exists()

    def test_a_short_value_is_refused_without_being_shown(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="at least 12") as refused:
            planted.register("short", tmp_path / "values")
        assert "short" not in str(refused.value)


class TestTheCommand:
    """Run on a copy, so that its ``build`` directory is one of the test's own."""

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        for name in ("leaks.py", "support/planted.py"):
            copy = tmp_path / "tests" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((planted.ROOT / "tests" / name).read_bytes())
        (tmp_path / "build" / "logs" / "gateway").mkdir(parents=True)
        (tmp_path / "build" / "logs" / "gateway" / "1.log").write_text("serving\n")
        (tmp_path / "build" / "test-output.log").write_text("3 passed\n")
        return tmp_path

    def run(self, tree: Path) -> tuple[int, str]:
        environ = {name: text for name, text in os.environ.items() if name != "TOLLHOUSE_TEST_LOGS"}
        done = subprocess.run(
            [sys.executable, tree / "tests" / "leaks.py"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environ,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    def test_a_clean_run_says_what_it_read(self, tree: Path) -> None:
        code, printed = self.run(tree)
        assert code == 0
        assert printed == "Searched 2 files, 0.0 MiB, for planted secrets: 0 leaks.\n"

    @pytest.mark.parametrize("place", ["test-output.log", "logs/gateway/1.log"])
    def test_a_leak_is_named_and_not_shown(self, tree: Path, place: str) -> None:
        planted.register(MADE, tree / "build" / "planted" / "values")
        with (tree / "build" / place).open("a") as file:
            file.write(f"token={MADE}\n")
        code, printed = self.run(tree)
        assert code == 1
        assert f"{place}:2: a planted secret (plain)" in printed
        assert MADE[:12] not in printed
        assert MADE[-12:] not in printed

    @pytest.mark.parametrize("gone", ["test-output.log", "logs/gateway/1.log"])
    def test_nothing_to_read_is_no_evidence(self, tree: Path, gone: str) -> None:
        (tree / "build" / gone).unlink()
        code, printed = self.run(tree)
        assert code == 1
        assert "no evidence" in printed

    def test_an_empty_file_is_nothing(self, tree: Path) -> None:
        (tree / "build" / "test-output.log").write_text("")
        assert self.run(tree)[0] == 1
