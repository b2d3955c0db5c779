"""The picker's gRPC server: Envoy's external processing, and gRPC's health checks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from draftpick.engines.errors import ConfigError
from draftpick.engines.http.client import EngineAccess
from draftpick.router.config.sections import EppConfig
from draftpick.router.epp import messages
from draftpick.router.epp.picker import Picker
from draftpick.router.http.app import RouterApp
from draftpick.router.parts import Parts

SERVICE, METHOD = "envoy.service.ext_proc.v3.ExternalProcessor", "Process"
_HEALTH, _LIVENESS = "grpc.health.v1.Health", "liveness"
_READINESS = frozenset({"", "readiness", SERVICE})
"""Services of health checks that serve while an engine is reachable; `liveness` always does."""
_GRACE_S = 1.0
_AMPLE = 4
"""Messages of up to so many times the limits of a request are read, so that its client is told what is wrong."""


class PickerServer:
    """Serves a `Picker` on `host` and `port` (0: any free one) in the running event loop."""

    def __init__(
        self, app: RouterApp, parts: Parts, host: str, port: int, access: Mapping[str, EngineAccess] | None = None
    ) -> None:
        """`access`: as of `Picker`."""
        self.picker = Picker(app, parts, {} if access is None else access, grpc.aio.EOF)
        self._parts, self._host, self.port, self._stopping = parts, host, port, False
        self._server: Any = None

    async def start(self) -> None:
        """Listen. Raises `ConfigError`."""
        # Made here, not before: it belongs to the loop that runs.
        most = _AMPLE * (self._parts.config.max_body_bytes + self._parts.config.max_header_bytes)
        options = [("grpc.max_receive_message_length", most), ("grpc.so_reuseport", 0)]
        self._server = grpc.aio.server(options=options)
        process = grpc.stream_stream_rpc_method_handler(self._process, request_deserializer=messages.read)
        check = grpc.unary_unary_rpc_method_handler(self._check, request_deserializer=messages.checked_service)
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, {METHOD: process}),
                grpc.method_handlers_generic_handler(_HEALTH, {"Check": check}),
            )
        )
        host = f"[{self._host}]" if ":" in self._host else self._host
        tls = _credentials(self._parts.config.epp)
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(f"{host}:{self.port}")
            else:
                self.port = self._server.add_secure_port(f"{host}:{self.port}", tls)
        except RuntimeError as error:
            raise ConfigError("port", f"cannot listen on {host}:{self.port}", "set another --port") from error
        await self._server.start()

    async def stop(self) -> None:
        """Refuse new streams, and end those that are left a moment later: their gateway goes on by itself."""
        self._stopping = True
        if self._server is not None:
            await self._server.stop(_GRACE_S)

    async def _process(self, _: Any, context: Any) -> None:
        await self.picker.process(context)

    async def _check(self, service: str, context: Any) -> bytes:
        if service == _LIVENESS:
            return messages.health(serving=True)
        if service not in _READINESS:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return messages.health(serving=not self._stopping and self._parts.replicas.reachable())


def _credentials(config: EppConfig) -> Any:
    """The server's certificate; None without TLS. Raises `ConfigError`."""
    if config.certificate_file is None or config.key_file is None:
        return None
    pair = _read("key_file", config.key_file), _read("certificate_file", config.certificate_file)
    return grpc.ssl_server_credentials([pair])


def _read(field: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"router.epp.{field}", f"is not readable: {error.strerror}", "name a PEM file") from None
