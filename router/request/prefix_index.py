"""Which replicas have read the beginning of a request before: their cache may hold it, and answers sooner."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from draftpick.router.config.sections import PrefixCacheConfig

_BLOCK = 1024
_NONE: Mapping[str, int] = {}


class PrefixIndex:
    """Hashes of what requests begin with, in blocks, and the replicas that each was sent to. No text is kept.

    A body begins as an earlier one did when a conversation goes on, or when prompts share their instructions. The index
    does not know what an engine has thrown away since: it is a guess.
    """

    def __init__(self, config: PrefixCacheConfig | None = None) -> None:
        self._config = config or PrefixCacheConfig()
        self._blocks: OrderedDict[int, tuple[str, ...]] = OrderedDict()

    def hashes(self, body: bytes) -> Sequence[int]:
        """One hash for each whole block of a body, of this and all blocks before it; none where it is too short."""
        if len(body) < _BLOCK or not self._config.enabled:
            return ()
        found, before = [], 0
        for at in range(0, min(len(body), self._config.max_bytes) - _BLOCK + 1, _BLOCK):
            before = hash((before, body[at : at + _BLOCK]))
            found.append(before)
        return found

    def lookup(self, hashes: Sequence[int]) -> Mapping[str, int]:
        """Bytes from the beginning of a body that each replica, by its address, has read before."""
        if not hashes:
            return _NONE
        found: dict[str, int] = {}
        for number, block in enumerate(hashes, 1):
            there = self._blocks.get(block)
            if there is None:
                break
            for url in there:
                # Who lacks an earlier block has no use of a later one.
                if number == 1 or found.get(url) == (number - 1) * _BLOCK:
                    found[url] = number * _BLOCK
        return found

    def insert(self, hashes: Sequence[int], url: str) -> None:
        """A replica has read the body of these hashes."""
        for block in hashes:
            there = self._blocks.pop(block, ())
            self._blocks[block] = there if url in there else (*there, url)
        while len(self._blocks) > self._config.max_blocks:
            self._blocks.popitem(last=False)
