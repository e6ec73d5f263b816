"""Pictures and sounds that a request names by URL: fetched from allowed hosts only, and from no address that is not public.

A host's name is resolved once and the checked address is the one connected to, so a name that changes its mind in between gains nothing.
Redirects are not followed, and neither a proxy's settings nor credentials of this process are used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpcore

from lc_ray.errors import DataError
from lc_ray.serving import UrlsSpec

_AT_ONCE = 8  # files of one request
_EMBEDS_IPV4 = ipaddress.ip_network("64:ff9b::/96")  # what NAT64 turns into an IPv4 address
_PORTS = {"http": 80, "https": 443}


def is_url(value: Any) -> bool:
    """Whether a cell of a request is a URL."""
    return isinstance(value, str) and value[:8].lower().startswith(("http://", "https://"))


class Fetcher:
    """Replaces URLs by the bytes behind them.

    Args:
        spec: what is allowed.
        trust: certificates by which hosts are verified; the system's if not given.
    """

    def __init__(self, spec: UrlsSpec, trust: ssl.SSLContext | None = None) -> None:
        self.spec, self.trust = spec, trust

    async def fetch(self, rows: Sequence[Any], columns: Sequence[str]) -> list[Any]:
        """Instances with bytes in place of the URLs in these columns.

        Raises:
            DataError: a file that may not or can't be had; `where` is its instance's number and column, or "" where all together took too long.
        """
        found = [dict(row) if isinstance(row, dict) else row for row in rows]
        wanted = [(i, column) for i, row in enumerate(found) if isinstance(row, dict) for column in columns if is_url(row.get(column))]
        if not wanted:
            return found
        gate, left = asyncio.Semaphore(_AT_ONCE), [self.spec.max]

        async def one(pool: httpcore.AsyncConnectionPool, number: int, column: str) -> None:
            try:
                async with gate:
                    found[number][column] = await self._get(pool, found[number][column], left)
            except DataError as error:
                raise DataError(error.what, f"{number}.{column}") from None

        # A pool per request: what one client's host leaves open must not meet another's.
        async with httpcore.AsyncConnectionPool(ssl_context=self.trust, network_backend=_Public()) as pool:
            tasks = [asyncio.ensure_future(one(pool, *place)) for place in wanted]
            try:
                async with asyncio.timeout(self.spec.timeout):
                    await asyncio.gather(*tasks)
            except TimeoutError:
                raise DataError(f"files by URL took longer than {self.spec.timeout:g} s") from None
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return found

    async def _get(self, pool: httpcore.AsyncConnectionPool, url: str, left: list[int]) -> bytes:
        """The file, taken from the bytes that are left to the request."""
        check(url, self.spec.allow)
        content = bytearray()
        try:
            async with pool.stream("GET", url.partition("#")[0], headers={"accept": "*/*", "user-agent": "lc_ray"}) as response:
                if response.status != 200:
                    raise DataError("the URL redirects elsewhere" if 300 <= response.status < 400 else f"the URL answers {response.status}")
                async for chunk in response.aiter_stream():
                    content += chunk
                    left[0] -= len(chunk)
                    if left[0] < 0:
                        raise DataError(f"files by URL have more than {self.spec.max} bytes")
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.UnsupportedProtocol, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError("the URL can't be reached") from None
        return bytes(content)


def check(url: str, allow: Sequence[str]) -> None:
    """Refuse a URL that no entry allows.

    Args:
        url: of a request.
        allow: hosts, or prefixes that end in /.

    Raises:
        DataError: it is not allowed.
    """
    try:
        parts, port = urlsplit(url), urlsplit(url).port
    except ValueError:
        raise DataError("not a URL") from None
    if not allow:
        raise DataError("URLs are not taken here; the job's serve.urls.allow would list the hosts that are")
    plain = not any(c.isspace() or not c.isascii() for c in url) and "\\" not in url and "@" not in parts.netloc
    if plain and any(_matches(parts, port, entry) for entry in allow):
        return
    raise DataError("URLs of this host are not allowed; serve.urls.allow lists those that are" if plain else "not a URL that is allowed")


def _matches(parts: SplitResult, port: int | None, entry: str) -> bool:
    host = (parts.hostname or "").rstrip(".")
    if "/" not in entry:
        return host == entry.lower() and port in (None, _PORTS[parts.scheme])
    prefix = urlsplit(entry)
    # A path that climbs, written out or escaped, could leave the prefix on its server.
    climbs = ".." in parts.path or "%2e" in parts.path.lower() or "%2f" in parts.path.lower() or "//" in parts.path
    same = (parts.scheme, host, port or _PORTS[parts.scheme]) == (prefix.scheme, prefix.hostname, prefix.port or _PORTS[prefix.scheme])
    return same and parts.path.startswith(prefix.path) and not climbs


def public(address: str) -> bool:
    """Whether an IP address is one of the internet's: not private, loopback, link-local, shared, multicast or a way to one of these."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return public(str(inner))
        if ip in _EMBEDS_IPV4:
            return public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.is_site_local:  # which is deprecated, and still private
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class _Public(httpcore.AnyIOBackend):
    """Connections to public addresses only. TLS still verifies the host's name."""

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            known = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise httpcore.ConnectError("no such host") from None
        addresses = [str(entry[4][0]) for entry in known]
        if not addresses or not all(public(address) for address in addresses):
            raise DataError("the URL's host has an address that is not public")
        return await super().connect_tcp(addresses[0], port, timeout, local_address, socket_options)
