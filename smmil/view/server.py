"""Serve the page on 127.0.0.1, read only.

Every address starts with a secret token, which the URL printed on the terminal holds. Requests under another host name
are refused, so that a web site cannot reach the server by a name of its own that resolves to 127.0.0.1.
"""

from __future__ import annotations

import json
import logging
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from preprocessing.slides.regions import TileReadError
from smmil.view.site import NoSuchPage, Reply, Site

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
# as in the Host header, without port: tunnels may change the port
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server(ThreadingHTTPServer):
    """The server of one site; port 0 takes a free one."""

    daemon_threads = True
    # a browser opens several connections at once
    request_queue_size = 64

    def __init__(self, site: Site, port: int = 0) -> None:
        self.site, self.token = site, secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"--port {port}: cannot be used ({error}); leave it out to take a free one") from error

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a browser that closes a connection early; report everything else in one line."""
        log.debug("request ended early", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "smmil", ""
    # idle connections do not keep their threads
    timeout = 60
    server: Server

    def do_GET(self) -> None:
        """Answer with the content of an address."""
        status, reply = self._answer()
        self.send_response(status)
        keep = "private, max-age=3600" if reply.kind == "image/jpeg" else "no-store"
        length = str(len(reply.body))
        headers = {**_HEADERS, "Cache-Control": keep, "Content-Type": reply.kind, "Content-Length": length}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_HEAD = do_GET

    def _answer(self) -> tuple[HTTPStatus, Reply]:
        host = self.headers.get("Host", "").rpartition(":")
        name = host[0] if host[1] and host[2].isdigit() else host[2]
        if name.lower() not in _HOSTS:
            return HTTPStatus.FORBIDDEN, _error("this server answers to 127.0.0.1 and localhost only")
        token, slash, address = urlsplit(self.path).path.lstrip("/").partition("/")
        if not slash or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            return HTTPStatus.FORBIDDEN, _error("wrong or missing token: open the address that smmil view printed")
        try:
            return HTTPStatus.OK, self.server.site.get(unquote(address))
        except NoSuchPage as error:
            return HTTPStatus.NOT_FOUND, _error(f"no such page: {error}")
        except (ValueError, TileReadError, OSError) as error:
            return HTTPStatus.UNPROCESSABLE_ENTITY, _error(str(error))
        except Exception as error:
            # one bag that fails in an unforeseen way must not end the page
            log.exception("%s", address)
            return HTTPStatus.INTERNAL_SERVER_ERROR, _error(f"{type(error).__name__}: {error}")

    def log_message(self, format: str, *args: object) -> None:
        """Write no access log."""


def _error(message: str) -> Reply:
    return Reply(json.dumps({"error": message}).encode(), "application/json")
