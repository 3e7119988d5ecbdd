"""``tollhouse import litellm``: where keys may be written, and what it says of bad input."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tollhouse.check import check
from tollhouse.errors import ConfigError
from tollhouse.importing import Imported, write
from tollhouse.importing.litellm import litellm

SECRETS = Path(__file__).parents[1] / "golden" / "import" / "literal-secrets.in.yaml"
PLAIN = "model_list:\n- {model_name: m, litellm_params: {model: openai/m}}\n"


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tollhouse", "import", "litellm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def whys(imported: Imported) -> dict[str, str]:
    return {it.path: it.why for it in imported.remarks}


class TestSecrets:
    def test_what_is_printed_holds_none(self) -> None:
        done = run(SECRETS, "--namespace", "ai")
        assert done.returncode == 0
        assert "PLANTED" not in done.stdout + done.stderr
        assert "kind: ModelRoute" in done.stdout
        assert "no equivalent: litellm_settings.cache: " in done.stderr

    def test_files_hold_placeholders_and_none_for_a_callers_key(self, tmp_path: Path) -> None:
        assert run(SECRETS, "--out", tmp_path / "out").returncode == 0
        text = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
        assert "PLANTED" not in text
        assert "OPENAI_API_KEY" not in text
        assert "REPLACE-ME" in text

    def test_asked_for_they_are_in_a_file_for_its_owners_eyes(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        done = run(SECRETS, "--out", out, "--with-secrets", "-n", "ai")
        assert done.returncode == 0
        assert "PLANTED" not in done.stdout + done.stderr
        holding = [path for path in out.iterdir() if "PLANTED" in path.read_text()]
        assert [path.name for path in holding] == ["secrets.yaml"]
        assert stat.S_IMODE(holding[0].stat().st_mode) == 0o600
        values = {
            it["metadata"]["name"]: it["stringData"]
            for it in yaml.safe_load_all(holding[0].read_text())
        }
        assert values["litellm-master"] == {"OPENAI_API_KEY": "sk-PLANTED-master-key-of-litellm"}
        assert values["openai"] == {"api-key": "sk-provider-PLANTED-in-a-config"}
        # With them, the caller's key is there as well.
        assert "SecretNotFound" not in {it.reason for it in check(out, {}).remarks}

    def test_to_print_them_is_refused(self) -> None:
        done = run(SECRETS, "--with-secrets")
        assert (done.returncode, done.stdout) == (2, "")
        assert "--out" in done.stderr

    def test_no_file_is_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "2-routes.yaml").write_text("mine")
        with pytest.raises(ConfigError, match="is there already"):
            write(litellm(PLAIN, "ai"), tmp_path, with_secrets=False)
        assert [path.name for path in tmp_path.iterdir()] == ["2-routes.yaml"]
        assert (tmp_path / "2-routes.yaml").read_text() == "mine"

    def test_a_value_does_not_show_in_what_python_prints(self) -> None:
        assert "PLANTED" not in repr(litellm(SECRETS.read_text(), "ai").secrets)


class TestUnreadable:
    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ("model_list: [\n  {api_key: sk-PLANTED-in-broken-yaml\n", "at line 3"),
            ("- 1\n", "has no model_list"),
            ("general_settings: {}\n", "has no model_list"),
            ("model_list: !!python/object:os.system {}\n", "at line 1"),
        ],
    )
    def test_it_says_where_and_quotes_nothing(
        self, tmp_path: Path, config: str, words: str
    ) -> None:
        (tmp_path / "config.yaml").write_text(config)
        done = run(tmp_path / "config.yaml")
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert "PLANTED" not in done.stderr

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        assert "cannot be read" in run(tmp_path / "nowhere.yaml").stderr


class TestRemarks:
    def test_every_setting_is_carried_over_or_named(self) -> None:
        config = f"{PLAIN}router_settings: {{a: 1}}\nlitellm_settings: {{b: 2}}\nc: {{d: 3}}\n"
        assert {"router_settings.a", "litellm_settings.b", "c"} <= whys(
            litellm(config, "ai")
        ).keys()

    def test_what_the_api_server_would_refuse_is_left_out_and_named(self) -> None:
        config = PLAIN.replace("model: openai/m", f"model: openai/{'x' * 300}")
        found = litellm(config, "ai")
        assert found.files["2-routes.yaml"] == []
        assert "would be refused" in whys(found)["ModelRoute m"]

    @pytest.mark.parametrize("entry", ["x", "[]", "{}", "{model_name: 1, litellm_params: {}}"])
    def test_an_entry_that_is_none_is_named(self, entry: str) -> None:
        assert "model_list[0]" in whys(litellm(f"model_list: [{entry}]\n", "ai"))
