"""Counts the damaged lines in the folder of records, for the page: retraining skips them, and nobody else reads all."""

from pathlib import Path

from draftpick.router.records import SEGMENTS, decode_lines

_BYTES = 2**19


class DamagedLines:
    """Looks at the segments of a folder a part at a time, the newest first; each byte once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[int, int]] = {}
        """Bytes looked at, and damaged lines among them, by segment."""

    def count(self, max_bytes: int = _BYTES) -> int:
        """Look at so many more bytes at most; the number of damaged lines found so far. Blocks; raises `OSError`."""
        known, self._seen = self._seen, {}
        for segment in sorted(self._folder.glob(SEGMENTS), reverse=True):
            start, damaged = known.get(segment, (0, 0))
            if max_bytes > 0 and (size := segment.stat().st_size) > start:
                with segment.open("rb") as file:
                    file.seek(start)
                    data = file.read(min(max_bytes, size - start))
                max_bytes -= len(data)
                # The last line may be incomplete yet; one that is longer than all that is read is none.
                end = data.rfind(b"\n") + 1 or (len(data) if max_bytes <= 0 else 0)
                start, damaged = start + end, damaged + len(decode_lines(data[:end])[1])
            self._seen[segment] = start, damaged
        return sum(damaged for _, damaged in self._seen.values())
