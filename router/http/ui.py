"""The operators' page at `/ui/`: static files of one folder, held in memory."""

import gzip
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from draftpick.engines.http.client import Headers
from draftpick.router.http.asgi import AsgiSink, HttpRequest

FOLDER = Path(__file__).parent / "assets"
PATH = "/ui/"
_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_SAFE: Headers = [
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
]
Page = Callable[[HttpRequest, AsgiSink], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file, plain and compressed. Browsers revalidate it on each use (`etag`)."""

    content_type: str
    body: bytes
    compressed: bytes
    etag: str

    @classmethod
    def read(cls, path: Path) -> "StaticFile":
        body = path.read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
        return cls(_TYPES[path.suffix], body, gzip.compress(body, 9, mtime=0), etag)

    async def __call__(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        """Answer GET and HEAD."""
        known = http_request.header_values.get("if-none-match", "")
        headers = [("etag", self.etag), ("cache-control", "no-cache"), ("vary", "accept-encoding"), *_SAFE]
        if known == "*" or self.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            await reply.start(304, headers)
            await reply.finish()
            return
        body = self.body
        if "gzip" in http_request.header_values.get("accept-encoding", ""):
            body = self.compressed
            headers.append(("content-encoding", "gzip"))
        headers += [("content-type", self.content_type), ("content-length", str(len(body)))]
        await reply.start(200, headers)
        if http_request.scope["method"] != "HEAD":
            await reply.write(body)
        await reply.finish()


def ui_pages(folder: Path = FOLDER) -> dict[tuple[str, str], Page]:
    """All files of the folder by method and path; requests never read the disk."""
    files = {path.name: StaticFile.read(path) for path in sorted(folder.iterdir()) if path.suffix in _TYPES}
    at: dict[str, Page] = {f"{PATH}{name}": file for name, file in files.items()}
    at |= {PATH: files[_INDEX], PATH.removesuffix("/"): _redirect_to_folder}
    return {("GET", path): page for path, page in at.items()}


async def _redirect_to_folder(http_request: HttpRequest, reply: AsgiSink) -> None:
    # Relative, to work below any route prefix.
    await reply.start(308, [("location", PATH.strip("/") + "/"), ("content-length", "0"), *_SAFE])
    await reply.finish()
