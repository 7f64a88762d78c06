"""Whether addresses answer, asked without being led into our own network.

A message's links are partly data (a product's page), so they must not make this machine call its own network (SSRF).
Each host is looked up once, every address of it must be global, and the connection goes to that very address, so that a
name which answers otherwise the second time changes nothing. Redirects are followed by hand, each judged the same way.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin, urlsplit

import httpx

#: Host and port -> its addresses; raises OSError if there are none.
Resolve = Callable[[str, int], Sequence[str]]
IsAllowed = Callable[[str], bool]

_MOST = 200
_REDIRECTS = 5
# refused to machines that are not a browser, or too many at once: says nothing about people
_UNCLEAR = frozenset({401, 403, 405, 406, 407, 408, 425, 429, 451, 999})
_HEADERS = {"User-Agent": "Mozilla/5.0 (compatible; Mailhouse link check)", "Accept": "*/*"}


def resolve(host: str, port: int) -> list[str]:
    """Addresses of a host, from the system."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_global(address: str) -> bool:
    """Whether an IP address is one of the internet's, also where IPv6 wraps one of IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if wrapped is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if wrapped is not None and not wrapped.is_global:
            return False
    return ip.is_global and not ip.is_multicast


class _RefusedError(Exception):
    pass


def reach(
    urls: Iterable[str],
    *,
    seconds: float = 10.0,
    altogether: float = 120.0,
    at_once: int = 8,
    resolve: Resolve = resolve,
    is_allowed: IsAllowed = is_global,
) -> dict[str, str]:
    """Ask for every http and https address, HEAD first, GET where that is refused.

    Args:
        seconds: limit of each connection, read and write.
        altogether: seconds after which no more is asked; what is left counts as not answering.
        at_once: addresses asked for at the same time.
        resolve, is_allowed: look a host up, and judge each of its addresses.

    Returns:
        What is wrong with each, empty if nothing is; at most 200 addresses are asked for.
    """
    wanted = [url for url in dict.fromkeys(urls) if urlsplit(url).scheme in ("http", "https")][:_MOST]
    until = time.monotonic() + altogether
    # no proxy: it would look hosts up itself
    with (
        httpx.Client(timeout=seconds, follow_redirects=False, trust_env=False, headers=_HEADERS) as client,
        ThreadPoolExecutor(max_workers=at_once) as pool,
    ):
        answers = pool.map(lambda url: _ask(client, url, resolve, is_allowed, until), wanted)
        return dict(zip(wanted, answers, strict=True))


def _ask(client: httpx.Client, url: str, resolve: Resolve, is_allowed: IsAllowed, until: float) -> str:
    try:
        for _ in range(_REDIRECTS + 1):
            if time.monotonic() > until:
                return "does not answer in time"
            status, location = _call(client, "HEAD", url, resolve, is_allowed)
            if status >= 400:
                status, location = _call(client, "GET", url, resolve, is_allowed)
            if 300 <= status < 400 and location:
                url = urljoin(url, location)
                continue
            return "" if status < 400 or status in _UNCLEAR else f"is answered with HTTP status {status}"
    except _RefusedError as error:
        return str(error)
    except httpx.TimeoutException:
        return "does not answer in time"
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, UnicodeError) as error:
        return f"cannot be reached ({type(error).__name__})"
    return f"redirects more than {_REDIRECTS} times"


def _call(
    client: httpx.Client, method: str, url: str, resolve: Resolve, is_allowed: IsAllowed
) -> tuple[int, str]:
    parts = httpx.URL(url)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise _RefusedError(f"redirects to {parts.scheme or 'no'} address")
    host = parts.raw_host.decode("ascii")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    addresses = resolve(host, port)
    if not addresses or not all(is_allowed(address) for address in addresses):
        raise _RefusedError("leads to an address of a private network, which is not called")
    # to the address that was judged, with the name in Host and in TLS, where the certificate is checked against it
    with client.stream(
        method,
        parts.copy_with(host=addresses[0]),
        headers={"Host": parts.netloc.decode("ascii").rpartition("@")[2]},
        extensions={"sni_hostname": host},
    ) as response:
        return response.status_code, response.headers.get("location", "")
