"""Images from the web without a way into the network behind the server.

In: an http(s) URL that a stranger may have sent. Out: its bytes, or `BadAsk`. The name is resolved once, every address
it has must be public, and the connection goes to that very address, so that a second answer of the name server cannot
lead elsewhere; redirects are followed by hand under the same rules.
"""

import ipaddress
import socket
import time
from urllib.parse import urljoin, urlsplit

from reward.asks import BadAsk

REDIRECTS = 3
TIMEOUT_S = 10.0
TOTAL_S = 30.0
"""Seconds without a byte, and in all, after which an image is given up."""


def fetch(url: str, most: int) -> bytes:
    """At most `most` bytes of a public http(s) resource. Raises BadAsk."""
    import httpx

    until = time.monotonic() + TOTAL_S
    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, follow_redirects=False) as client:
            for _ in range(REDIRECTS + 1):
                address, host = public_address(url)
                parts = urlsplit(url)
                literal = f"[{address}]" if ":" in address else address
                netloc = literal if parts.port is None else f"{literal}:{parts.port}"
                pinned = parts._replace(netloc=netloc, fragment="").geturl()
                named = host if parts.port is None else f"{host}:{parts.port}"
                request = client.build_request(
                    "GET", pinned, headers={"Host": named, "Accept": "image/*"}, extensions={"sni_hostname": host}
                )
                response = client.send(request, stream=True)
                try:
                    if response.is_redirect:
                        url = urljoin(url, response.headers.get("location", ""))
                        continue
                    if response.status_code != 200:
                        raise BadAsk(f"the image's URL answers {response.status_code}")
                    data = bytearray()
                    for piece in response.iter_bytes():
                        data += piece
                        if len(data) > most:
                            raise BadAsk(f"an image of more than {most} bytes")
                        if time.monotonic() > until:
                            raise BadAsk(f"the image's URL takes longer than {TOTAL_S:g} s")
                    return bytes(data)
                finally:
                    response.close()
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise BadAsk(f"the image's URL cannot be read: {type(error).__name__}") from None
    raise BadAsk(f"the image's URL leads through more than {REDIRECTS} redirects")


def public_address(url: str) -> tuple[str, str]:
    """An address of a URL's host and the host's name. Raises BadAsk where the URL is no http(s), has no host, or where
    any of the host's addresses is not on the public internet."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BadAsk("the image's URL is not valid") from None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise BadAsk("the image's URL has to be http:// or https:// with a host and no user")
    try:
        found = socket.getaddrinfo(host, port or (443 if parts.scheme == "https" else 80), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise BadAsk("the host of the image's URL is not known") from None
    addresses = [str(about[4][0]).partition("%")[0] for about in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise BadAsk("the image's URL leads to an address that is not public")
    return addresses[0], host


_CLOUD = (ipaddress.ip_address("168.63.129.16"),)
"""Azure's host, reachable from every machine there under an address of the public space."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet; an IPv4 address inside an IPv6 one counts as itself."""
    ip = ipaddress.ip_address(address)
    if ip in _CLOUD:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast and inner not in _CLOUD
        if ip not in ipaddress.ip_network("2000::/3"):  # all that is handed out so far
            return False
    return ip.is_global and not ip.is_multicast
