"""The snapshot: everything a gateway needs to serve, and nothing of Kubernetes.

A snapshot is frozen and content-addressed. It travels as *shards*: small, independently encoded
pieces named after a hash of what they hold, so that one changed object changes one shard. An
*index* lists the shards with their digests; the digest of the whole is computed from those.

Units: every duration is in seconds, every price is a decimal string in USD (see ``Pricing``), every
amount of money is whole nano-USD (10⁻⁹ USD), every instant is seconds since the Unix epoch.

Compatibility: fields may be added with a default in any release, and readers ignore fields and
enumeration words they do not know, so both directions work within one minor version. ``FORMAT``
rises only when an older reader would misread what it is given.
"""

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from tollhouse.allowance import Allowance, Budget, Limit, Policy
from tollhouse.errors import SnapshotError

FORMAT = 1
SLOTS = 64
"""Slot 0 holds the index; the rest hold shards, more than twice as many as there are shards, so
that even a change of everything is written beside what it replaces."""
INDEX_KEY = "index"
SHARD_KEY = "shard"
"""The data keys of the Secrets that hold an index and a shard."""
CONFIG_SHARDS = 6
KEY_SHARDS = 24
MAX_SHARD_BYTES = 700 * 1024
"""Compressed. A Secret holds 1 MiB, and base64 in transit takes a third more."""
MAX_DECODED_BYTES = 64 * 1024 * 1024
"""A shard that inflates beyond this is refused: nothing we write comes near."""


class Credential(msgspec.Struct, frozen=True):
    """A secret value that does not print: only ``.value`` shows it."""

    value: str

    def __repr__(self) -> str:
        return "Credential(redacted)"

    __str__ = __repr__

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("value", "redacted")]


class Timeouts(msgspec.Struct, frozen=True, omit_defaults=True):
    """Seconds. ``first_byte`` runs from sending to the answer's head, ``idle`` between chunks."""

    connect: float = 5.0
    first_byte: float = 60.0
    idle: float = 60.0
    total: float = 600.0


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    consecutive_failures: int = 5
    cooldown: float = 30.0


class MockFailure(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a Mock provider fails. ``every_nth`` 1 fails every request, 3 every third."""

    status: int | None = None
    body: str | None = None
    every_nth: int = 1
    after_chunks: int | None = None
    disconnect: bool = False


class MockUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None


class MockToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    arguments: str = "{}"


class Mock(msgspec.Struct, frozen=True, omit_defaults=True):
    """The script of a Mock provider; ``first_byte_delay`` and ``chunk_delay`` in seconds."""

    reply: str = "Echo"
    text: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[MockToolCall, ...] = ()
    images: tuple[str, ...] = ()
    chunks: int | None = None
    first_byte_delay: float = 0.0
    chunk_delay: float = 0.0
    fail_with: MockFailure | None = None
    usage: MockUsage | None = None


class Tier(msgspec.Struct, frozen=True, omit_defaults=True):
    """What all tokens of a request cost whose prompt has more than `above` of them; a price that
    it leaves out is the one without tiers."""

    above: int
    input: str | None = None
    cached_input: str | None = None
    cache_write: str | None = None
    cache_write_hour: str | None = None
    output: str | None = None


class Pricing(msgspec.Struct, frozen=True, omit_defaults=True):
    """Decimal strings, USD per million tokens, but for one web search and for one request.

    A kind of token without a price of its own costs what the plainer kind does. Tiers rise.
    """

    input: str | None = None
    cached_input: str | None = None
    output: str | None = None
    cache_write: str | None = None
    cache_write_hour: str | None = None
    reasoning: str | None = None
    input_audio: str | None = None
    cached_audio: str | None = None
    output_audio: str | None = None
    input_image: str | None = None
    cached_image: str | None = None
    output_image: str | None = None
    web_search: str | None = None
    request: str | None = None
    tiers: tuple[Tier, ...] = ()


class KnownModel(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is publicly known about a model; ``context_window`` in tokens."""

    pricing: Pricing = Pricing()
    context_window: int | None = None
    web_search: bool | None = None


class Provider(msgspec.Struct, frozen=True, omit_defaults=True):
    """An upstream account. ``headers`` are sent as they stand with every request.

    ``known`` is for wildcard routes: models by the provider's own lower-case names, where a
    trailing ``*`` matches any rest. ``responses_native`` says that it answers ``/responses``
    itself; elsewhere it is sent chat completions. ``policies`` are ids in ``Snapshot.policies``.
    """

    namespace: str
    name: str
    type: str
    base_url: str = ""
    credential: Credential | None = None
    headers: dict[str, str] = {}
    max_concurrent: int | None = None
    health: Health = Health()
    ca_pem: str | None = None
    mock: Mock | None = None
    known: dict[str, KnownModel] = {}
    responses_native: bool = False
    policies: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"


class Target(msgspec.Struct, frozen=True, omit_defaults=True):
    """One place a route can send a request to.

    ``provider`` is ``namespace/name``. ``model`` is the provider's own name for the model; None on
    a wildcard route means: whatever the wildcard matched. ``timeouts`` are the route's where it
    sets them and the provider's elsewhere. ``web_search`` None: as the route's capabilities say.
    """

    provider: str
    model: str | None = None
    weight: int = 1
    priority: int = 0
    pricing: Pricing | None = None
    timeouts: Timeouts = Timeouts()
    web_search: bool | None = None


class Retries(msgspec.Struct, frozen=True, omit_defaults=True):
    """``attempts`` is how often each priority level is tried again after its first try."""

    attempts: int = 2
    backoff: float = 0.25
    on: tuple[str, ...] = ("Connect", "Timeout", "429", "5xx")


class Parameters(msgspec.Struct, frozen=True, omit_defaults=True):
    defaults: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    max_tokens: int | None = None
    unsupported: str = "Drop"


class Capabilities(msgspec.Struct, frozen=True, omit_defaults=True):
    """None: not said by the route, so the known model's data decides."""

    vision: bool | None = None
    tools: bool | None = None
    reasoning: bool | None = None
    web_search: bool | None = None
    context_window: int | None = None


class Select(msgspec.Struct, frozen=True, omit_defaults=True):
    """Choose among the routes that have these names; ``by`` is Price, Latency or Weight."""

    models: tuple[str, ...]
    by: str = "Price"


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """Names that callers use and where they go: to ``targets``, or to a choice of other routes.

    ``models`` holds the canonical id first; a trailing ``*`` matches any rest. ``shared_with``
    lists the namespaces whose keys may call the route; None means every namespace. ``families``
    are patterns of bare names that a wildcard route serves too: ``claude*`` of ``anthropic/*``.
    ``platform`` and ``created`` (seconds since the epoch, None unknown) are for ``precedence``.
    ``policies`` are ids in ``Snapshot.policies``.
    """

    namespace: str
    name: str
    models: tuple[str, ...]
    targets: tuple[Target, ...]
    retries: Retries = Retries()
    parameters: Parameters = Parameters()
    capabilities: Capabilities = Capabilities()
    free: bool = False
    strict: bool = False
    shared_with: tuple[str, ...] | None = None
    select: Select | None = None
    families: tuple[str, ...] = ()
    platform: bool = False
    created: float | None = None
    policies: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def precedence(self) -> tuple[bool, float, str]:
        """Sorts the routes that other namespaces share: the platform's first, then the oldest."""
        age = self.created if self.created is not None else float("inf")
        return not self.platform, age, self.id

    def seen_from(self, namespace: str) -> bool:
        """Whether keys of this namespace may call it."""
        return self.shared_with is None or namespace in self.shared_with


# Nothing in a key can refer back to it, so the collector need not look at ten thousand of them.
class Key(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A caller, found by the SHA-256 digest of the key it presents.

    One ApiKey has an entry per digest that is valid: two while a rotation overlaps, the older one
    with ``valid_until`` set. ``allowed_models`` None means every route shared with the namespace.
    ``limits`` and ``budget`` are its own; ``policies`` and ``budgets`` are ids in the snapshot.
    """

    namespace: str
    name: str
    owner: str | None = None
    allowed_models: tuple[str, ...] | None = None
    model_aliases: dict[str, str] = {}
    max_tokens: dict[str, int] = {}
    expires_at: float | None = None
    valid_until: float | None = None
    disabled: bool = False
    tags: dict[str, str] = {}
    limits: tuple[Limit, ...] = ()
    budget: Allowance | None = None
    policies: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"


class Shard(msgspec.Struct, frozen=True, omit_defaults=True):
    """One encoded piece: keys by digest (hex), or anything else by id."""

    providers: dict[str, Provider] = {}
    routes: dict[str, Route] = {}
    keys: dict[str, Key] = {}
    policies: dict[str, Policy] = {}
    budgets: dict[str, Budget] = {}


class ShardRef(msgspec.Struct, frozen=True):
    """Where a shard lies and what its bytes hash to (SHA-256, hex)."""

    slot: int
    digest: str


class Index(msgspec.Struct, frozen=True):
    """The table of contents: ``shards`` by shard name, ``digest`` of the whole snapshot."""

    format: int
    digest: str
    shards: dict[str, ShardRef]


class Snapshot(msgspec.Struct, frozen=True):
    """A whole configuration. ``key_shards`` are looked up by the head of a key's digest."""

    providers: dict[str, Provider]
    routes: dict[str, Route]
    key_shards: tuple[dict[str, Key], ...]
    policies: dict[str, Policy] = {}
    budgets: dict[str, Budget] = {}

    @staticmethod
    def of(
        providers: Iterable[Provider] = (),
        routes: Iterable[Route] = (),
        keys: Mapping[str, Key] | None = None,
        *,
        policies: Iterable[Policy] = (),
        budgets: Iterable[Budget] = (),
    ) -> "Snapshot":
        """A snapshot of these parts; ``keys`` maps SHA-256 digests (hex) to callers."""
        buckets: tuple[dict[str, Key], ...] = tuple({} for _ in range(KEY_SHARDS))
        for digest, key in (keys or {}).items():
            buckets[_key_bucket(digest)][digest] = key
        return Snapshot(
            providers={provider.id: provider for provider in providers},
            routes={route.id: route for route in routes},
            key_shards=buckets,
            policies={policy.id: policy for policy in policies},
            budgets={budget.id: budget for budget in budgets},
        )

    def key(self, digest: str) -> Key | None:
        """The caller whose key has this SHA-256 digest (hex), or None."""
        return self.key_shards[_key_bucket(digest)].get(digest)

    def key_count(self) -> int:
        """How many ApiKeys there are; one that is being rotated counts once."""
        return sum(key.valid_until is None for shard in self.key_shards for key in shard.values())


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_shard_decoder = msgspec.msgpack.Decoder(Shard)
_index_decoder = msgspec.json.Decoder(Index)


def key_digest(key: str) -> str:
    """The SHA-256 digest (hex) under which a key stands in a snapshot."""
    return hashlib.sha256(key.encode()).hexdigest()


def shards(snapshot: Snapshot) -> dict[str, bytes]:
    """The snapshot's shards by name, encoded and compressed; empty ones are left out.

    The same snapshot always gives the same bytes.
    """
    return {name: encode_shard(shard) for name, shard in pieces(snapshot).items()}


def encode_shard(shard: Shard) -> bytes:
    """The same shard always gives the same bytes."""
    return zlib.compress(_encoder.encode(shard), 6)


def pieces(snapshot: Snapshot) -> dict[str, Shard]:
    """The snapshot's shards by name; empty ones are left out."""
    found: dict[str, Shard] = {}
    empty = Shard()
    config = tuple(
        Shard(providers={}, routes={}, policies={}, budgets={}) for _ in range(CONFIG_SHARDS)
    )
    for provider in snapshot.providers.values():
        config[_config_bucket(provider.id)].providers[provider.id] = provider
    for route in snapshot.routes.values():
        config[_config_bucket(route.id)].routes[route.id] = route
    for policy in snapshot.policies.values():
        config[_config_bucket(policy.id)].policies[policy.id] = policy
    for budget in snapshot.budgets.values():
        config[_config_bucket(budget.id)].budgets[budget.id] = budget
    for number, shard in enumerate(config):
        if shard != empty:
            found[f"config-{number}"] = shard
    for number, keys in enumerate(snapshot.key_shards):
        if keys:
            found[f"keys-{number}"] = Shard(keys=keys)
    return found


def digest_of(encoded: bytes) -> str:
    """SHA-256 of a shard's bytes, hex."""
    return hashlib.sha256(encoded).hexdigest()


def whole_digest(shard_digests: Mapping[str, str]) -> str:
    """The digest of a whole snapshot (hex) from its shards' digests by name."""
    lines = "".join(f"{name}:{digest}\n" for name, digest in sorted(shard_digests.items()))
    return hashlib.sha256(f"tollhouse-snapshot-{FORMAT}\n{lines}".encode()).hexdigest()


def slot_name(name: str, slot: int) -> str:
    """The name of the Secret that holds this slot of the snapshot called ``name``."""
    return f"{name}-{slot}"


def encode_index(index: Index) -> bytes:
    return msgspec.json.encode(index)


def decode_index(data: bytes) -> Index:
    """Raises SnapshotError when the bytes are no index, or one of a newer format."""
    try:
        index = _index_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"the snapshot index does not decode: {error}") from error
    if index.format > FORMAT:
        raise SnapshotError(
            f"the snapshot has format {index.format}, this gateway reads up to {FORMAT}: "
            "upgrade the gateways before the operator"
        )
    return index


def decode_shard(encoded: bytes) -> Shard:
    """Raises SnapshotError, naming the digest, when the bytes are no shard."""
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(encoded, MAX_DECODED_BYTES)
        if inflate.unconsumed_tail or not inflate.eof:
            raise SnapshotError(f"shard {digest_of(encoded)} is cut short or too large")
        return _shard_decoder.decode(raw)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise SnapshotError(f"shard {digest_of(encoded)} does not decode: {error}") from error


class Assembler:
    """Builds snapshots from an index and its shards, fetching and decoding only what changed.

    It keeps what it decoded last, so a snapshot shares every unchanged shard with the one before.
    A failed ``assemble`` changes nothing.
    """

    def __init__(self) -> None:
        self._decoded: dict[str, tuple[str, Shard]] = {}

    def missing(self, index: Index) -> dict[str, ShardRef]:
        """The shards by name that ``assemble`` will need the bytes of."""
        return {
            name: ref
            for name, ref in index.shards.items()
            if self._decoded.get(name, ("", None))[0] != ref.digest
        }

    def assemble(self, index: Index, fetched: Mapping[str, bytes]) -> Snapshot:
        """``fetched`` holds the encoded bytes of each ``missing`` shard by name.

        Raises SnapshotError when a shard is absent, is not what the index says, or does not decode.
        """
        decoded: dict[str, tuple[str, Shard]] = {}
        for name, ref in index.shards.items():
            known = self._decoded.get(name)
            if known is not None and known[0] == ref.digest:
                decoded[name] = known
                continue
            if name not in fetched:
                raise SnapshotError(f"shard {name} ({ref.digest}) was not fetched")
            if digest_of(fetched[name]) != ref.digest:
                raise SnapshotError(f"shard {name} in slot {ref.slot} is not {ref.digest}")
            decoded[name] = (ref.digest, decode_shard(fetched[name]))
        if whole_digest({name: ref.digest for name, ref in index.shards.items()}) != index.digest:
            raise SnapshotError(f"the index does not add up to its digest {index.digest}")
        snapshot = _join({name: shard for name, (_, shard) in decoded.items()})
        self._decoded = decoded
        return snapshot


def _join(pieces: Mapping[str, Shard]) -> Snapshot:
    providers: dict[str, Provider] = {}
    routes: dict[str, Route] = {}
    policies: dict[str, Policy] = {}
    budgets: dict[str, Budget] = {}
    for shard in pieces.values():
        providers |= shard.providers
        routes |= shard.routes
        policies |= shard.policies
        budgets |= shard.budgets
    empty: dict[str, Key] = {}
    return Snapshot(
        providers=providers,
        routes=routes,
        key_shards=tuple(
            pieces[f"keys-{number}"].keys if f"keys-{number}" in pieces else empty
            for number in range(KEY_SHARDS)
        ),
        policies=policies,
        budgets=budgets,
    )


def _key_bucket(digest: str) -> int:
    return int(digest[:4], 16) % KEY_SHARDS


def _config_bucket(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % CONFIG_SHARDS
