"""A folder of YAML: what is good in it is in force, and everything else says where it stands."""

from pathlib import Path

import pytest

from tollhouse import folder
from tollhouse.compile import Finding, compile_snapshot
from tollhouse.errors import ConfigError
from tollhouse.folder import FolderReader, Loaded, environment_name

HEAD = "apiVersion: tollhouse.dev/v1alpha1\n"


def provider(name: str, spec: str = "{type: Mock}") -> str:
    return f"{HEAD}kind: Provider\nmetadata: {{name: {name}}}\nspec: {spec}\n"


class Folder:
    """A folder, and the one reader that follows it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ: dict[str, str] = {}
        self.reader = FolderReader(path, self.environ)

    def write(self, name: str, *texts: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text("---\n".join(texts))

    def load(self) -> Loaded:
        return self.reader.load()

    def providers(self) -> list[str]:
        return sorted(name for _, name in self.load().resources.providers)

    def problems(self) -> list[str]:
        return [f"{it.file}:{it.line} {it.message}" for it in self.load().problems]

    def findings(self) -> tuple[Loaded, list[Finding]]:
        loaded = self.load()
        return loaded, list(compile_snapshot(loaded.resources).findings)


@pytest.fixture
def it(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


class TestFinding:
    def test_yaml_yml_and_json_below_the_folder(self, it: Folder):
        it.write("a.yaml", provider("a"))
        it.write("below/deep/b.yml", provider("b"))
        it.write("c.json", '{"apiVersion": "tollhouse.dev/v1alpha1", "kind": "Provider", '
                           '"metadata": {"name": "c"}, "spec": {"type": "Mock"}}')  # fmt: skip
        it.write("d.txt", "not: [yaml")
        it.write(".hidden.yaml", "not: [yaml")
        it.write(".git/e.yaml", "not: [yaml")
        assert it.providers() == ["a", "b", "c"]
        assert it.load().files == ("a.yaml", "below/deep/b.yml", "c.json")

    def test_many_documents_and_lists(self, it: Folder):
        items = "apiVersion: v1\nkind: List\nitems:\n" + "".join(
            f"- {line}" if line.startswith("api") else f"  {line}"
            for name in ("b", "c")
            for line in provider(name).splitlines(keepends=True)
        )
        it.write("a.yaml", provider("a"), items)
        assert it.providers() == ["a", "b", "c"]

    def test_a_mounted_config_map_is_read_once(self, it: Folder):
        it.write("..2026_01_01/a.yaml", provider("a"))
        (it.path / "..data").symlink_to("..2026_01_01")
        (it.path / "a.yaml").symlink_to("..data/a.yaml")
        assert it.providers() == ["a"] and it.problems() == []
        it.write("..2026_01_02/a.yaml", provider("b"))
        (it.path / "..new").symlink_to("..2026_01_02")
        (it.path / "..new").replace(it.path / "..data")
        assert it.providers() == ["b"]

    def test_links_in_a_circle_end(self, it: Folder):
        it.write("below/a.yaml", provider("a"))
        (it.path / "below" / "up").symlink_to(it.path)
        assert it.providers() == ["a"]

    def test_one_file_instead_of_a_folder(self, tmp_path: Path):
        (tmp_path / "one.yaml").write_text(provider("a"))
        assert FolderReader(tmp_path / "one.yaml", {}).load().files == ("one.yaml",)

    def test_no_folder_at_all(self, tmp_path: Path):
        with pytest.raises(ConfigError, match="there is no folder"):
            FolderReader(tmp_path / "nowhere", {}).load()

    def test_other_kinds_are_passed_over(self, it: Folder):
        deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {}\n"
        it.write("a.yaml", provider("a"), deployment)
        assert it.problems() == []


class TestLastGood:
    def test_a_broken_file_keeps_what_it_held_and_says_which_line(self, it: Folder):
        it.write("a.yaml", provider("a"))
        it.write("b.yaml", provider("b"))
        it.load()
        it.write("a.yaml", provider("a"), "spec: [1\nmore: 2\n")
        (problem,) = it.problems()
        assert problem == (
            "a.yaml:7 while parsing a flow sequence did not find expected ',' or ']'; "
            "what the file held before stays in force"
        )
        assert it.providers() == ["a", "b"]
        it.write("a.yaml", provider("mended"))
        assert it.problems() == [] and it.providers() == ["b", "mended"]

    def test_an_object_that_is_not_valid_keeps_its_last_valid_version(self, it: Folder):
        it.write("a.yaml", provider("a"), provider("b"))
        it.load()
        it.write("a.yaml", provider("a", "{type: Mork}"), provider("b", "{type: OpenAI}"))
        resources = it.load().resources
        assert resources.providers[("default", "a")].spec.type == "Mock"
        assert resources.providers[("default", "b")].spec.type == "OpenAI"
        assert [(refused.ref, refused.kept) for refused in resources.refused] == [
            (("default", "a"), True)
        ]

    @pytest.mark.parametrize("mistyped", ["kind: Provide", "metadata: {nam: a}", "kinds: x"])
    def test_an_object_that_lost_its_name_keeps_its_last_version(self, it: Folder, mistyped):
        it.write("a.yaml", provider("a"), provider("b"))
        it.load()
        key = mistyped.split(":", maxsplit=1)[0].removesuffix("s")
        lines = [mistyped if line.startswith(key) else line
                 for line in provider("a").splitlines()]  # fmt: skip
        it.write("a.yaml", "\n".join(lines) + "\n", provider("b"))
        (problem,) = it.problems()
        assert problem.endswith("what the file held before stays in force")
        assert it.providers() == ["a", "b"]

    def test_a_mistake_in_one_document_does_not_hold_up_the_others(self, it: Folder):
        it.write("a.yaml", provider("a"), "kind: [x]\napiVersion: v1\n", provider("b"), "- 1\n")
        assert it.providers() == ["a", "b"]
        assert it.problems() == [
            "a.yaml:6 kind is required, and must be a string",
            "a.yaml:14 must be an object with apiVersion, kind, metadata and spec",
        ]

    def test_a_file_that_an_editor_has_just_emptied_keeps_what_it_held(self, it: Folder):
        it.write("a.yaml", provider("a"))
        it.load()
        it.write("a.yaml", "")
        assert "is empty; remove the file to remove its objects" in it.problems()[0]
        assert it.providers() == ["a"]

    def test_what_is_removed_is_gone(self, it: Folder):
        it.write("a.yaml", provider("a"), provider("b"))
        it.write("c.yaml", provider("c"))
        it.load()
        it.write("a.yaml", provider("a"))
        (it.path / "c.yaml").unlink()
        assert it.providers() == ["a"]

    def test_an_object_may_move_to_another_file(self, it: Folder):
        it.write("b.yaml", provider("x"))
        it.load()
        (it.path / "b.yaml").unlink()
        it.write("a.yaml", provider("x", "{type: OpenAI}"))
        assert it.load().resources.providers[("default", "x")].spec.type == "OpenAI"

    def test_a_file_that_cannot_be_read(self, it: Folder):
        it.write("a.yaml", provider("a"))
        it.load()
        (it.path / "a.yaml").unlink()
        (it.path / "a.yaml").symlink_to("a.yaml")
        assert it.problems()[0].startswith("a.yaml:1 cannot be read: Too many levels")
        assert it.providers() == ["a"]

    def test_what_is_too_large_or_no_text(self, it: Folder, monkeypatch):
        monkeypatch.setattr(folder, "MAX_FILE_BYTES", 2 * 2**20)
        it.write("a.yaml", provider("a"))
        it.write("large.yaml", "#" * (2 * 2**20 + 1))
        (it.path / "binary.yaml").write_bytes(b"a: 1\nb: \xff\n")
        assert it.problems() == [
            "binary.yaml:2 is not UTF-8 text",
            "large.yaml:1 is larger than 2 MiB",
        ]
        assert it.providers() == ["a"]


class TestDuplicates:
    def test_both_places_are_named_and_the_first_is_in_force(self, it: Folder):
        it.write("a.yaml", provider("b"), provider("x"))
        it.write("c.yaml", provider("x", "{type: OpenAI}"))
        (problem,) = it.problems()
        assert problem == (
            "c.yaml:1 the Provider default/x stands twice; the one at a.yaml:6 is in force, "
            "remove one of them"
        )
        assert it.load().resources.providers[("default", "x")].spec.type == "Mock"

    def test_a_copy_does_not_take_over(self, it: Folder):
        it.write("b.yaml", provider("x"))
        it.load()
        it.write("a-copy.yaml", provider("x", "{type: OpenAI}"))
        assert it.problems()[0].startswith("a-copy.yaml:1 ")
        assert it.load().resources.providers[("default", "x")].spec.type == "Mock"


class TestPlaces:
    def test_a_finding_leads_to_its_line(self, it: Folder):
        it.write("keys.yaml", "# first\n")
        it.write("routes.yaml", provider("a"), f"""\
{HEAD}kind: ModelRoute
metadata: {{name: r}}
spec:
  models: [x]
  targets:
    - provider: {{name: a}}
    - weight: 5
      provider:
        name: nowhere
""")  # fmt: skip
        loaded, (finding,) = it.findings()
        assert finding.path == "spec.targets[1].provider"
        assert loaded.locate(finding) == ("routes.yaml", 14)

    def test_names_with_dots_and_what_is_not_written_down(self, it: Folder):
        it.write("k.yaml", f"""\
{HEAD}kind: ApiKey
metadata: {{name: k}}
spec:
  modelAliases:
    gpt-4.1: x
    gpt-4.1[mini]: lost
""")  # fmt: skip
        loaded, findings = it.findings()
        assert {found.path: loaded.locate(found) for found in findings} == {
            "spec.secretName": ("k.yaml", 4),
            "spec.modelAliases.gpt-4.1": ("k.yaml", 6),
            "spec.modelAliases.gpt-4.1[mini]": ("k.yaml", 7),
        }

    def test_what_is_kept_from_before_is_found_where_it_is_now(self, it: Folder):
        it.write("a.yaml", provider("a"))
        it.load()
        it.write("a.yaml", "# a new line\n" + provider("a", "{type: Mork}"))
        loaded, (finding,) = it.findings()
        assert loaded.locate(finding) == ("a.yaml", 5)


class TestEnvironment:
    SPEC = "{type: OpenAI, credentials: {secretRef: {name: s}}}"

    @pytest.mark.parametrize(
        ("name", "variable"),
        [("openai", "OPENAI_API_KEY"), ("azure-eu.2", "AZURE_EU_2_API_KEY")],
    )
    def test_the_variables_name(self, name, variable):
        assert environment_name(name) == variable

    def test_a_missing_credential_is_a_finding_that_says_what_to_do(self, it: Folder):
        it.write("a.yaml", provider("openai", self.SPEC))
        loaded, (finding,) = it.findings()
        explained = loaded.explain(finding).message
        assert explained.endswith("put it into the folder, or set OPENAI_API_KEY")

    def test_the_environment_fills_in(self, it: Folder):
        it.environ["OPENAI_API_KEY"] = "sk-provider-PLANTED-1\n"
        it.write("a.yaml", provider("openai", self.SPEC))
        loaded, findings = it.findings()
        assert findings == []
        upstream = compile_snapshot(loaded.resources).snapshot.providers["default/openai"]
        assert upstream.credential is not None
        assert upstream.credential.value == "sk-provider-PLANTED-1"
        assert "PLANTED" not in repr(loaded)

    def test_a_secret_in_the_folder_goes_first(self, it: Folder):
        it.environ["OPENAI_API_KEY"] = "sk-provider-PLANTED-environment"
        secret = (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n"
            "stringData: {api-key: sk-provider-PLANTED-folder}\n"
        )
        it.write("a.yaml", provider("openai", self.SPEC), secret)
        data = it.load().resources.secrets[("default", "s")].data
        assert data["api-key"].value == "sk-provider-PLANTED-folder"

    def test_two_providers_may_share_a_secret_that_is_not_there(self, it: Folder):
        it.environ.update(A_API_KEY="sk-PLANTED-a", B_API_KEY="sk-PLANTED-b")
        spec = "{type: OpenAI, credentials: {secretRef: {name: s, key: %s}}}"
        it.write("a.yaml", provider("a", spec % "one"), provider("b", spec % "two"))
        assert it.findings()[1] == []


def test_rotation_is_told_to_do_nothing_in_a_folder(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(
        "apiVersion: tollhouse.dev/v1alpha1\nkind: ApiKey\nmetadata: {name: a}\n"
        "spec: {rotation: {every: 720h}}\n"
    )
    findings = compile_snapshot(FolderReader(tmp_path, {}).load().resources).findings
    (found,) = [it for it in findings if it.path == "spec.rotation"]
    assert found.reason == "NotEnforced"
    assert "not rotated" in found.message
