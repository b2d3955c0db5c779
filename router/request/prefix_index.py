"""Index of prompt prefixes by replica: a replica with the prefix in its cache has a shorter TTFT."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from draftpick.router.config.sections import PrefixCacheConfig

_BLOCK = 1024
_NONE: Mapping[str, int] = {}


class PrefixIndex:
    """Hashes of the leading blocks of request bodies, and the replicas that got them. No text is kept.

    Bodies share a prefix in the turns of a conversation, or if prompts share their instructions. The index is an
    estimate: it does not know which blocks an engine has evicted.
    """

    def __init__(self, config: PrefixCacheConfig | None = None) -> None:
        self._config = config or PrefixCacheConfig()
        self._blocks: OrderedDict[int, tuple[str, ...]] = OrderedDict()

    def hashes(self, body: bytes) -> Sequence[int]:
        """One hash per complete block of a body, chained over all blocks before it; empty for a short body."""
        if len(body) < _BLOCK or not self._config.enabled:
            return ()
        found, before = [], 0
        for at in range(0, min(len(body), self._config.max_bytes) - _BLOCK + 1, _BLOCK):
            before = hash((before, body[at : at + _BLOCK]))
            found.append(before)
        return found

    def lookup(self, hashes: Sequence[int]) -> Mapping[str, int]:
        """Length of the known prefix in bytes, by address of the replica."""
        if not hashes:
            return _NONE
        found: dict[str, int] = {}
        for number, block in enumerate(hashes, 1):
            there = self._blocks.get(block)
            if there is None:
                break
            for url in there:
                # A cached block is useless without all blocks before it.
                if number == 1 or found.get(url) == (number - 1) * _BLOCK:
                    found[url] = number * _BLOCK
        return found

    def insert(self, hashes: Sequence[int], url: str) -> None:
        """Record that a replica has read the body with these hashes."""
        for block in hashes:
            there = self._blocks.pop(block, ())
            self._blocks[block] = there if url in there else (*there, url)
        while len(self._blocks) > self._config.max_blocks:
            self._blocks.popitem(last=False)
