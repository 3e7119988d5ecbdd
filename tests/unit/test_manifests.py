"""Text → manifests: what kubectl would make of it, with places, and no text that runs away."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.manifests import MAX_ALIASED, MAX_DEPTH, Document, Fault, line_of, read


def value(text: str) -> object:
    documents = read(text)
    assert not isinstance(documents, Fault), documents
    (document,) = documents
    return document.value


def fault(text: str) -> Fault:
    found = read(text)
    assert isinstance(found, Fault)
    return found


class TestMeaning:
    @pytest.mark.parametrize(
        ("text", "meaning"),
        [
            ("true", True),
            ("yes", True),
            ("Off", False),
            ("~", None),
            ("null", None),
            ("12", 12),
            ("-1_000", -1000),
            ("0x1F", 31),
            ("017", 15),
            ("1.5", 1.5),
            ("1e3", 1000.0),
            ("99999999999999999999", 1e20),
            ("2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("12:30", "12:30"),
            ("1h30m", "1h30m"),
            ("5xx", "5xx"),
            ("gpt-4o", "gpt-4o"),
            ("'12'", "12"),
            ('"yes"', "yes"),
            ("!!str 12", "12"),
            ("|\n  two\n  lines\n", "two\nlines\n"),
        ],
    )
    def test_words_mean_what_they_mean_to_kubectl(self, text, meaning):
        found = value(f"a: {text}")
        assert found == {"a": meaning}
        assert type(found["a"]) is type(meaning)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text("ab:#- \n☃"),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.text("abc.", min_size=1), inner, max_size=4)
            ),
        )
    )
    def test_json_means_what_it_means_to_everybody(self, thing):
        assert value(json.dumps({"it": thing}, ensure_ascii=False)) == {"it": thing}

    def test_keys_are_strings(self):
        assert value("{1: a, 2027-01-01: b}") == {"1": "a", "2027-01-01": "b"}

    def test_anchors_and_merges(self):
        text = "base: &b {x: 1, w: 2}\nother: {<<: *b, w: 3}\nlist: [*b, {<<: [*b, {z: 4}]}]"
        assert value(text) == {
            "base": {"x": 1, "w": 2},
            "other": {"x": 1, "w": 3},
            "list": [{"x": 1, "w": 2}, {"x": 1, "w": 2, "z": 4}],
        }

    def test_empty_documents_are_left_out(self):
        assert read("---\n---\n# nothing\n") == ()
        assert read("") == ()


class TestFaults:
    @pytest.mark.parametrize(
        ("text", "line", "message"),
        [
            ("a: 1\nb: [1, 2\nc: 3\n", 3, "expected ',' or ']'"),
            ("a: 1\n\tb: 2\n", 2, "tab"),
            ("a: 1\nb: 2\na: 3\n", 3, 'the key "a" is given twice'),
            ("spec:\n  on: [x]\n", 2, 'YAML reads the key on as true: write "on" in quotes'),
            ("a: *nowhere\n", 1, "*nowhere names no anchor"),
            ("a: &a [*a]\n", 1, "*a names no anchor"),
            ("a: 1\nb: !!python/object:os.system x\n", 2, "cannot be used here"),
            ("a: 1\nb: !!binary aGk=\n", 2, "cannot be used here"),
            ("? [a, b]\n: c\n", 1, "a key must be"),
            ("a: 1\nb: \x00\n", 2, "character"),
            ("a: {<<: 3}\n", 1, "<< takes a map"),
        ],
    )
    def test_each_says_what_and_where(self, text, line, message):
        found = fault(text)
        assert (found.line, message in found.message) == (line, True), found

    def test_aliases_that_multiply_are_stopped(self):
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
        assert f"over {MAX_ALIASED} values" in fault("\n".join(lines)).message

    @pytest.mark.parametrize("text", ["[" * 200_000, "- " * 200_000 + "x", "{a: " * 200_000])
    def test_depth_is_stopped(self, text):
        assert f"deeper than {MAX_DEPTH} levels" in fault(text).message

    @given(st.text("ab:-[]{}&*!|>'\"#,?%@ \n\t\\x0"))
    def test_no_text_raises(self, text):
        assert isinstance(read(text), Fault | tuple)


class TestPlaces:
    text = """\
# A comment.
apiVersion: v1
spec:
  targets:
  - provider: {name: a}
    weight: 1
  - provider:
      name: b
---
kind: List
items:
- kind: A
  spec:
    x: 1
- kind: B
  spec:
    z: 1
"""

    def documents(self) -> tuple[Document, ...]:
        found = read(self.text)
        assert not isinstance(found, Fault)
        return found

    def test_documents_and_items_know_their_lines(self):
        assert [(it.line, it.prefix) for it in self.documents()] == [
            (2, ()),
            (12, ("items", 0)),
            (15, ("items", 1)),
        ]

    @pytest.mark.parametrize(
        ("number", "path", "line"),
        [
            (0, ("spec",), 3),
            (0, ("spec", "targets", 0), 5),
            (0, ("spec", "targets", 0, "weight"), 6),
            (0, ("spec", "targets", 1, "provider", "name"), 8),
            (0, ("spec", "targets", 1, "weight"), 7),
            (0, ("spec", "models"), 3),
            (0, ("metadata", "name"), 2),
            (2, ("spec", "z"), 17),
            (2, ("spec", "x"), 16),
        ],
    )
    def test_a_path_leads_to_its_line_or_to_the_nearest_one_around_it(self, number, path, line):
        assert line_of(self.text, self.documents()[number], path) == line
