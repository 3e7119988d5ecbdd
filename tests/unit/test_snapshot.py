"""What gateways and operators rely on: shards that round-trip, move little, and never mislead."""

import io
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.pretty import Pretty

from tollhouse.errors import SnapshotError
from tollhouse.snapshot import (
    FORMAT,
    KEY_SHARDS,
    MAX_SHARD_BYTES,
    Assembler,
    Credential,
    Index,
    Key,
    Parameters,
    Pricing,
    Provider,
    Retries,
    Route,
    ShardRef,
    Snapshot,
    Target,
    Timeouts,
    decode_index,
    decode_shard,
    digest_of,
    encode_index,
    key_digest,
    shards,
    whole_digest,
)

names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
texts = st.text(max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
seconds = st.floats(0.001, 1e6)
providers = st.builds(
    Provider,
    namespace=names,
    name=names,
    type=st.sampled_from(["OpenAI", "Mock"]),
    base_url=texts,
    credential=st.none() | st.builds(Credential, texts),
    headers=st.dictionaries(texts, texts, max_size=3),
    max_concurrent=st.none() | st.integers(1, 1000),
)
targets = st.builds(
    Target,
    provider=texts,
    model=st.none() | texts,
    weight=st.integers(0, 100),
    priority=st.integers(0, 5),
    pricing=st.none() | st.builds(Pricing, input=st.none() | texts),
    timeouts=st.builds(Timeouts, connect=seconds, first_byte=seconds),
)
routes = st.builds(
    Route,
    namespace=names,
    name=names,
    models=st.lists(texts, min_size=1, max_size=3).map(tuple),
    targets=st.lists(targets, max_size=3).map(tuple),
    retries=st.builds(Retries, attempts=st.integers(0, 5)),
    parameters=st.builds(Parameters, defaults=st.dictionaries(texts, json_values, max_size=3)),
    free=st.booleans(),
    shared_with=st.none() | st.lists(names, max_size=3).map(tuple),
)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
callers = st.builds(
    Key,
    namespace=names,
    name=names,
    owner=st.none() | texts,
    allowed_models=st.none() | st.lists(texts, max_size=3).map(tuple),
    model_aliases=st.dictionaries(texts, texts, max_size=3),
    max_tokens=st.dictionaries(texts, st.integers(1, 10**9), max_size=3),
    expires_at=st.none() | seconds,
    disabled=st.booleans(),
)
parts = st.tuples(
    st.lists(providers, max_size=6, unique_by=lambda it: it.id),
    st.lists(routes, max_size=6, unique_by=lambda it: it.id),
    st.dictionaries(digests, callers, max_size=8),
)


def publish(snapshot: Snapshot) -> tuple[Index, dict[str, bytes]]:
    """What an operator writes: the index, and each shard's bytes by name."""
    encoded = shards(snapshot)
    refs = {
        name: ShardRef(slot=slot, digest=digest_of(data))
        for slot, (name, data) in enumerate(encoded.items(), start=1)
    }
    digest = whole_digest({name: ref.digest for name, ref in refs.items()})
    return Index(format=FORMAT, digest=digest, shards=refs), encoded


def many_keys(count: int) -> dict[str, Key]:
    return {key_digest(f"sk-PLANTED-key-{number}"): Key("shop", f"key-{number}")
            for number in range(count)}  # fmt: skip


class TestRoundTrip:
    @given(parts)
    @settings(deadline=None)
    def test_what_is_published_is_what_is_served(self, made):
        snapshot = Snapshot.of(*made)
        index, encoded = publish(snapshot)
        assert Assembler().assemble(decode_index(encode_index(index)), encoded) == snapshot

    @given(parts, st.randoms())
    @settings(deadline=None)
    def test_the_digest_is_of_the_content_whatever_the_order(self, made, random):
        def shuffled(things: list[Any]) -> list[Any]:
            return sorted(things, key=lambda _: random.random())

        providers_, routes_, keys_ = made
        again = Snapshot.of(
            shuffled(providers_), shuffled(routes_), dict(shuffled(list(keys_.items())))
        )
        assert publish(again)[0].digest == publish(Snapshot.of(*made))[0].digest

    def test_an_empty_snapshot_has_no_shards_and_a_digest(self):
        index, encoded = publish(Snapshot.of())
        assert encoded == {}
        assert Assembler().assemble(index, {}) == Snapshot.of()

    def test_every_key_is_found_by_its_digest_and_no_other_is(self):
        snapshot = Snapshot.of(keys=many_keys(500))
        found = snapshot.key(key_digest("sk-PLANTED-key-7"))
        assert found is not None and found.id == "shop/key-7"
        assert snapshot.key(key_digest("sk-PLANTED-key-500")) is None
        assert snapshot.key_count() == 500

    def test_a_key_under_rotation_counts_once(self):
        keys = {"a" * 64: Key("shop", "a"), "b" * 64: Key("shop", "a", valid_until=1.0)}
        assert Snapshot.of(keys=keys).key_count() == 1


class TestSize:
    def test_one_changed_caller_changes_one_shard(self):
        keys = many_keys(2000)
        before = shards(Snapshot.of(keys=keys))
        digest = key_digest("sk-PLANTED-key-42")
        after = shards(Snapshot.of(keys={**keys, digest: Key("shop", "key-42", disabled=True)}))
        changed = [name for name in after if after[name] != before.get(name)]
        assert len(changed) == 1 and changed[0].startswith("keys-")

    def test_an_assembler_asks_only_for_what_changed_and_shares_the_rest(self):
        keys, assembler = many_keys(2000), Assembler()
        index, encoded = publish(Snapshot.of(keys=keys))
        before = assembler.assemble(index, encoded)
        digest = key_digest("sk-PLANTED-key-42")
        index, encoded = publish(Snapshot.of(keys={**keys, digest: Key("shop", "key-42", "new")}))
        missing = assembler.missing(index)
        assert len(missing) == 1
        after = assembler.assemble(index, {name: encoded[name] for name in missing})
        shared = [a is b for a, b in zip(after.key_shards, before.key_shards, strict=True)]
        assert shared.count(True) == KEY_SHARDS - 1

    def test_ten_thousand_callers_fit(self):
        keys = {
            digest: Key(key.namespace, key.name, "team@shop", tags={"team": f"team-{number % 50}"})
            for number, (digest, key) in enumerate(many_keys(10_000).items())
        }
        largest = max(map(len, shards(Snapshot.of(keys=keys)).values()))
        print(f"largest of the shards of 10,000 keys: {largest} bytes")
        assert largest < MAX_SHARD_BYTES / 4


class TestOtherVersions:
    def test_fields_that_a_newer_release_added_are_ignored(self):
        raw = {"providers": {"ai/a": {"namespace": "ai", "name": "a", "type": "Mock", "new": [1]}},
               "inventions": {"x": 1}}  # fmt: skip
        shard = decode_shard(zlib.compress(msgspec.msgpack.encode(raw)))
        assert shard.providers == {"ai/a": Provider("ai", "a", "Mock")}

    def test_fields_that_an_older_release_does_not_write_have_defaults(self):
        raw = {"routes": {"ai/a": {"namespace": "ai", "name": "a", "models": ["m"], "targets": []}}}
        shard = decode_shard(zlib.compress(msgspec.msgpack.encode(raw)))
        assert shard.routes["ai/a"].retries == Retries()

    def test_a_newer_format_is_refused_and_the_message_says_what_to_upgrade(self):
        index = Index(format=FORMAT + 1, digest="", shards={})
        with pytest.raises(SnapshotError, match="upgrade the gateways before the operator"):
            decode_index(encode_index(index))


class TestDamage:
    """Each is refused, naming the shard, and leaves the assembler as it was."""

    snapshot = Snapshot.of([Provider("ai", "a", "Mock")], keys=many_keys(50))

    def refused(self, index: Index, fetched: dict[str, bytes]) -> str:
        assembler = Assembler()
        good_index, good = publish(self.snapshot)
        assembler.assemble(good_index, good)
        with pytest.raises(SnapshotError) as error:
            assembler.assemble(index, fetched)
        assert assembler.missing(good_index) == {}
        assert assembler.assemble(good_index, {}) == self.snapshot
        return str(error.value)

    def replaced(self, damaged: bytes) -> tuple[Index, dict[str, bytes], str]:
        """An index that means these bytes, as if an operator had published them."""
        index, encoded = publish(self.snapshot)
        name = next(name for name in encoded if name.startswith("config"))
        refs = {**index.shards, name: ShardRef(1, digest_of(damaged))}
        digest = whole_digest({shard: ref.digest for shard, ref in refs.items()})
        return Index(FORMAT, digest, refs), {**encoded, name: damaged}, digest_of(damaged)

    @pytest.mark.parametrize(
        "damaged",
        [
            b"",
            b"not compressed",
            zlib.compress(b"not msgpack"),
            zlib.compress(msgspec.msgpack.encode({"routes": {"ai/a": {"models": 5}}})),
            zlib.compress(msgspec.msgpack.encode({"keys": {}}))[:-3],
        ],
    )
    def test_bytes_that_do_not_decode(self, damaged):
        index, fetched, digest = self.replaced(damaged)
        assert digest in self.refused(index, fetched)

    def test_a_shard_that_inflates_without_end(self):
        index, fetched, digest = self.replaced(zlib.compress(bytes(65 * 1024 * 1024)))
        assert f"{digest} is cut short or too large" in self.refused(index, fetched)

    def test_a_shard_that_is_not_the_one_the_index_means(self):
        index, encoded = publish(Snapshot.of([Provider("ai", "a", "OpenAI")]))
        (name,) = encoded
        assert f"shard {name} in slot 1 is not" in self.refused(index, {name: b"another"})

    def test_a_shard_that_is_not_there(self):
        index, encoded = publish(Snapshot.of([Provider("ai", "a", "OpenAI")]))
        (name,) = encoded
        assert f"shard {name}" in self.refused(index, {})

    def test_an_index_whose_shards_are_another_snapshots(self):
        index, encoded = publish(Snapshot.of([Provider("ai", "a", "OpenAI")]))
        forged = Index(FORMAT, "0" * 64, index.shards)
        assert "does not add up" in self.refused(forged, encoded)

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": "one"}'])
    def test_an_index_that_is_none(self, data):
        with pytest.raises(SnapshotError, match="does not decode"):
            decode_index(data)


def test_credentials_do_not_print():
    provider = Provider("ai", "a", "OpenAI", credential=Credential("sk-provider-PLANTED-1"))
    assert "PLANTED" not in f"{provider} {provider!r} {provider.credential}"


def test_a_credential_does_not_print() -> None:
    provider = Provider("ai", "p", "OpenAI", credential=Credential("sk-PLANTED-credential"))
    console = Console(file=io.StringIO())
    console.print(Pretty(provider))
    printed = console.file.getvalue() if isinstance(console.file, io.StringIO) else ""
    assert "redacted" in printed
    for text in (repr(provider), str(provider.credential), f"{provider}", printed):
        assert "PLANTED" not in text
