"""Images from the web: no private address, whichever way it is written, named or redirected to."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from reward import fetch as module
from reward.asks import BadAsk
from reward.fetch import fetch, is_public, public_address

PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
    "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1",
    "fec0::1", "64:ff9b:1::7f00:1", "::7f00:1", "::ffff:0:7f00:1", "168.63.129.16",
    "::ffff:168.63.129.16",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)
    literal = f"[{address}]" if ":" in address else address
    with pytest.raises(BadAsk, match="not public"):
        public_address(f"http://{literal}/a.png")


def test_public_addresses() -> None:
    assert is_public("8.8.8.8")
    assert is_public("2606:4700:4700::1111")
    assert public_address("https://8.8.8.8:8443/a.png") == ("8.8.8.8", "8.8.8.8")


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://8.8.8.8/", "http://", "http://user@8.8.8.8/", "http://8.8.8.8:99999/", "//x/y"]
)
def test_other_urls(url: str) -> None:
    with pytest.raises(BadAsk):
        public_address(url)


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "localhost"])
def test_odd_ways_to_write_loopback(host: str) -> None:
    with pytest.raises(BadAsk):
        public_address(f"http://{host}/")


def named(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, "8.8.8.8", "10.0.0.1")
    with pytest.raises(BadAsk, match="not public"):
        public_address("http://images.example/a.png")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Host"]))
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        self.wfile.write(b"x" * 1000)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    http = HTTPServer(("127.0.0.1", 0), Handler)
    http.seen = []
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http
    http.shutdown()
    thread.join()
    http.server_close()


def test_the_address_that_was_checked_is_the_one_connected_to(
    server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With loopback declared public for the test: the name server's second answer is never asked for."""
    answers = iter(["127.0.0.1"])
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *args: Any, **given: Any) -> list[Any]:
        return real(next(answers) if host == "images.example" else host, port, *args, **given)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
    url = f"http://images.example:{server.server_port}"
    assert fetch(f"{url}/a.png", 1000) == b"x" * 1000
    assert server.seen == [("/a.png", f"images.example:{server.server_port}")]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none", "answers 404"),
        ("/to?http://10.0.0.1/a", "not public"),
        ("/to?file:///etc/passwd", "has to be http"),
        ("/to?/to?/to?/to?/to?/end", "more than 3 redirects"),
        ("/big", "more than 999 bytes"),
    ],
)
def test_refusals_on_the_way(server: HTTPServer, monkeypatch: pytest.MonkeyPatch, path: str, message: str) -> None:
    monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
    with pytest.raises(BadAsk, match=message):
        fetch(f"http://127.0.0.1:{server.server_port}{path}", 999)


def test_a_redirect_that_is_followed(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
    assert fetch(f"http://127.0.0.1:{server.server_port}/to?/end", 1000) == b"x" * 1000
