import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.config.sections import PrefixCacheConfig
from draftpick.router.request.prefix_index import PrefixIndex

LONG = bytes(range(256)) * 20  # five blocks


def test_a_conversation_that_goes_on_is_known() -> None:
    index = PrefixIndex()
    index.insert(index.hashes(LONG), "a")
    assert index.lookup(index.hashes(LONG + b"more" * 1000)) == {"a": 5120}


def test_only_what_is_equal_from_the_beginning_counts() -> None:
    index = PrefixIndex()
    index.insert(index.hashes(LONG), "a")
    assert index.lookup(index.hashes(LONG[:2048] + b"!" + LONG[2049:])) == {"a": 2048}
    assert index.lookup(index.hashes(b"!" + LONG)) == {}


def test_each_replica_has_read_what_it_was_sent() -> None:
    index = PrefixIndex()
    index.insert(index.hashes(LONG[:2048]), "a")
    index.insert(index.hashes(LONG), "b")
    assert index.lookup(index.hashes(LONG)) == {"a": 2048, "b": 5120}


def test_a_later_block_without_the_earlier_ones_is_no_use() -> None:
    index = PrefixIndex(PrefixCacheConfig(max_blocks=6))
    index.insert(index.hashes(LONG), "a")
    index.insert(index.hashes(b"other" * 500), "b")  # two more blocks: the oldest of a's is gone
    assert index.lookup(index.hashes(LONG)) == {}


def test_a_replica_that_lacks_the_beginning_has_no_prefix() -> None:
    index = PrefixIndex()
    first, *rest = index.hashes(LONG)
    index.insert(rest, "lacks it")
    index.insert([first], "has it")
    assert index.lookup([first, *rest]) == {"has it": 1024}


@pytest.mark.parametrize(("length", "blocks"), [(1023, 0), (1024, 1), (2047, 1), (2048, 2), (2049, 2), (4096, 3)])
def test_only_complete_blocks_up_to_the_longest_compared_length_count(length: int, blocks: int) -> None:
    assert len(PrefixIndex(PrefixCacheConfig(max_bytes=3500)).hashes(bytes(length))) == blocks


def test_a_full_index_drops_no_more_than_it_must() -> None:
    index = PrefixIndex(PrefixCacheConfig(max_blocks=6))
    bodies = [b"%4d" % i * 256 for i in range(9)]  # a block each
    for body in bodies:
        index.insert(index.hashes(body), "a")
    assert [bool(index.lookup(index.hashes(body))) for body in bodies] == [False] * 3 + [True] * 6


@pytest.mark.parametrize("body", [b"", b"short", bytes(1023)])
def test_short_requests_are_not_looked_at(body: bytes) -> None:
    index = PrefixIndex()
    index.insert(index.hashes(body), "a")
    assert index.lookup(index.hashes(body)) == {}


def test_it_can_be_switched_off() -> None:
    index = PrefixIndex(PrefixCacheConfig(enabled=False))
    index.insert(index.hashes(LONG), "a")
    assert index.lookup(index.hashes(LONG)) == {}


@given(st.lists(st.tuples(st.binary(max_size=4000), st.sampled_from("abc")), max_size=20), st.binary(max_size=4000))
def test_it_never_says_more_than_was_sent(sent: list[tuple[bytes, str]], http_request: bytes) -> None:
    index = PrefixIndex(PrefixCacheConfig(max_blocks=8))
    for body, url in sent:
        index.insert(index.hashes(body), url)
    for url, known in index.lookup(index.hashes(http_request)).items():
        assert known <= len(http_request)
        assert any(body[:known] == http_request[:known] for body, to in sent if to == url)


def test_no_key_learns_what_another_has_sent() -> None:
    index = PrefixIndex()
    hashes = index.hashes(LONG)
    index.insert(hashes, "a", "alice")
    assert index.lookup(hashes, "alice") == {"a": 5120}
    assert index.lookup(hashes, "bob") == {}
    assert index.lookup(hashes) == {}


def test_keys_share_prefixes_where_that_is_configured() -> None:
    index = PrefixIndex(PrefixCacheConfig(shared_by_keys=True))
    hashes = index.hashes(LONG)
    index.insert(hashes, "a", "alice")
    assert index.lookup(hashes, "bob") == {"a": 5120}


def test_a_key_that_sends_much_displaces_its_own_prefixes() -> None:
    index = PrefixIndex(PrefixCacheConfig(max_blocks=20))
    hashes = index.hashes(LONG)
    index.insert(hashes, "a", "modest")
    for i in range(20):
        index.insert(index.hashes(b"%4d" % i * 1024), "b", "greedy")
    assert index.lookup(hashes, "modest") == {"a": 5120}
    for key in "xy":  # three keys share alike
        index.insert(hashes, "a", key)
    index.insert(index.hashes(b"last" * 1024), "b", "greedy")
    assert [index.lookup(hashes, key) for key in ("modest", "x", "y")] == [{"a": 5120}] * 3
