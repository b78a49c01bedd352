"""An S3 server on this machine, and a proxy before it that fails as networks do."""

import http.client
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@pytest.fixture(scope="session")
def s3_server(new_s3_server, tmp_path_factory):
    """A server with the bucket `test`."""
    with new_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


class Proxy(ThreadingHTTPServer):
    """Passes requests on; `fate` says of a method and a path what becomes of each.

    Attributes:
        fate: gives None, `503`, `drop` (done, but the answer is lost), `cut` (half of the body), `slow`,
            `expired` (credentials), or `lie`: it is said to be done.
        seen: method, path and fate of every request.
    """

    daemon_threads = True

    def __init__(self, upstream):
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream
        self.fate = lambda method, path: None
        self.seen = []


_REFUSALS = {
    "503": (503, b""),
    "expired": (400, b"<Error><Code>ExpiredToken</Code><Message>It has expired.</Message></Error>"),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = self.server.fate(self.command, self.path)
        self.server.seen.append((self.command, self.path, fate))
        if fate in _REFUSALS:
            status, body = _REFUSALS[fate]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if fate == "slow":
            time.sleep(0.5)
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=30)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body)
        reply = upstream.getresponse()
        content = reply.read()
        upstream.close()
        if fate != "drop":
            self.send_response_only(200 if fate == "lie" else reply.status)
            if fate == "lie":
                self.send_header("ETag", '"0"')
            for name, value in reply.headers.items():
                if name.lower() not in {"transfer-encoding", "connection"}:
                    self.send_header(name, value)
            if "Content-Length" not in reply.headers and self.command != "HEAD":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if fate == "cut" else content)
        if fate in {"drop", "cut"}:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815  # the library's names

    def log_message(self, *args):
        pass


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A proxy before the server, which the environment leads to."""
    proxy = Proxy(s3_server.port)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
    yield proxy
    proxy.shutdown()
    proxy.server_close()
    thread.join(10)
