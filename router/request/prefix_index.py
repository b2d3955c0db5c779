"""Index of prompt prefixes by replica: a replica with the prefix in its cache has a shorter TTFT."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from draftpick.router.config.sections import PrefixCacheConfig

_BLOCK = 1024
_NONE: Mapping[str, int] = {}


class PrefixIndex:
    """Hashes of the leading blocks of request bodies, and the replicas that got them. No text is kept.

    Bodies share a prefix in the turns of a conversation, or if prompts share their instructions. The index is an
    estimate: it does not know which blocks an engine has evicted. Unless `shared_by_keys`, each API key has prefixes of
    its own, so that none learns from a routing decision what another has sent, and none displaces those of another that
    keeps fewer.
    """

    def __init__(self, config: PrefixCacheConfig | None = None) -> None:
        self._config = config or PrefixCacheConfig()
        self._by_key: dict[str, OrderedDict[int, tuple[str, ...]]] = {}
        self._num_blocks = 0

    def hashes(self, body: bytes) -> Sequence[int]:
        """One hash per complete block of a body, chained over all blocks before it; empty for a short body."""
        if len(body) < _BLOCK or not self._config.enabled:
            return ()
        found, before = [], 0
        for at in range(0, min(len(body), self._config.max_bytes) - _BLOCK + 1, _BLOCK):
            before = hash((before, body[at : at + _BLOCK]))
            found.append(before)
        return found

    def lookup(self, hashes: Sequence[int], key: str = "") -> Mapping[str, int]:
        """Length of the known prefix in bytes, by address of the replica. `key`: name of the API key."""
        blocks = self._by_key.get("" if self._config.shared_by_keys else key) if hashes else None
        if blocks is None:
            return _NONE
        found: dict[str, int] = {}
        for number, block in enumerate(hashes, 1):
            there = blocks.get(block)
            if there is None:
                break
            for url in there:
                # A cached block is useless without all blocks before it.
                if number == 1 or found.get(url) == (number - 1) * _BLOCK:
                    found[url] = number * _BLOCK
        return found

    def insert(self, hashes: Sequence[int], url: str, key: str = "") -> None:
        """Record that a replica has read the body with these hashes."""
        blocks = self._by_key.setdefault("" if self._config.shared_by_keys else key, OrderedDict())
        self._num_blocks -= len(blocks)
        for block in hashes:
            there = blocks.pop(block, ())
            blocks[block] = there if url in there else (*there, url)
        self._num_blocks += len(blocks)
        while self._num_blocks > self._config.max_blocks:
            self._evict(blocks)

    def _evict(self, blocks: OrderedDict[int, tuple[str, ...]]) -> None:
        """Drop the oldest block of the key that keeps most; `blocks`: of the key that has just been asked for."""
        if len(blocks) * len(self._by_key) <= self._config.max_blocks:
            blocks = max(self._by_key.values(), key=len)
        blocks.popitem(last=False)
        self._num_blocks -= 1
