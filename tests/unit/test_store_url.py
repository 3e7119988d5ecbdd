"""Which server a store's URL names."""

import pytest
from redis.asyncio import Redis

from tollhouse.store.valkey import connect


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_a_host_may_be_called_valkey(scheme: str) -> None:
    client = connect(f"{scheme}://tollhouse-valkey:6379/2", {})
    assert isinstance(client, Redis)
    given = client.connection_pool.connection_kwargs
    assert (given["host"], given["port"], given["db"]) == ("tollhouse-valkey", 6379, 2)
