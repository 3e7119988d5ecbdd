"""A snapshot's shards as bytes, from one snapshot to the next: only what changed is encoded."""

from collections.abc import Mapping

from tollhouse.snapshot import Shard, Snapshot, encode_shard, pieces


class Encoder:
    """Gives what ``snapshot.shards`` gives. A shard is encoded again only when something in it is
    not the very object that it was: frozen data cannot have changed otherwise."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[Shard, bytes]] = {}
        self.encoded = 0

    def encode(self, snapshot: Snapshot) -> dict[str, bytes]:
        """The shards by name. ``encoded`` counts those that had to be made, over all calls."""
        found: dict[str, tuple[Shard, bytes]] = {}
        for name, shard in pieces(snapshot).items():
            known = self._before.get(name)
            if known is None or not _identical(known[0], shard):
                known = shard, encode_shard(shard)
                self.encoded += 1
            found[name] = known
        self._before = found
        return {name: data for name, (_, data) in found.items()}


def _identical(one: Shard, other: Shard) -> bool:
    tables: tuple[tuple[Mapping[str, object], Mapping[str, object]], ...] = (
        (one.providers, other.providers),
        (one.routes, other.routes),
        (one.keys, other.keys),
        (one.policies, other.policies),
        (one.budgets, other.budgets),
    )
    return all(
        len(left) == len(right) and all(right.get(name) is it for name, it in left.items())
        for left, right in tables
    )
