"""Bodies that come compressed, by gzip or zlib."""

import zlib
from collections.abc import Iterator

_SLICE = 2**20


class Inflate:
    """Decompresses a body as it comes. `complete`: it ends here, unless more comes."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 32)

    @property
    def complete(self) -> bool:
        return self._stream.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the content of a part in slices. Several streams after each other are one (RFC 1952, 2.2).

        Raises `ValueError` for what is not compressed.
        """
        try:
            while data:
                if self._stream.eof:
                    self._stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
                if part := self._stream.decompress(data, _SLICE):
                    yield part
                data = self._stream.unconsumed_tail or self._stream.unused_data
        except zlib.error as error:
            raise ValueError(str(error)) from None
