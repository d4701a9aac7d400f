"""Who may ask, for what, and what a browser may do with the answer.

One ASGI layer around the whole application; nothing reaches a route that has not passed it.
"""

import hmac
import http.cookies
import ipaddress
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from halfmap.errors import InputError

COOKIE = "halfmap_token"
OWN_HEADER = "x-halfmap"  # a form of another site cannot set it without asking the server first
MOST_BODY_BYTES = 1 << 20  # of a request: forms are small
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


def is_loopback(host: str) -> bool:
    """Whether an address is one that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Gate:
    """Wraps an ASGI application `app` that listens at `host`: requests for other hosts' names,
    without the `token` (if there is one) or from other sites' pages are refused, and `root_path`
    is taken off the paths of a proxy that leaves it on."""

    app: Any
    host: str
    token: str | None = None
    root_path: str = ""
    host_names: tuple[str, ...] = ()
    _known: frozenset[str] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        names = {*_LOOPBACK_NAMES, self.host.lower(), *(n.lower() for n in self.host_names)}
        if not is_loopback(self.host):
            names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        object.__setattr__(self, "_known", frozenset(names))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no websockets here
            return None
        refusal = self._refusal(scope)
        if refusal is not None:
            return await refusal(scope, receive, _with_headers(send))
        scope = {**scope, "path": _without(scope["path"], self.root_path), "root_path": ""}
        return await self.app(scope, _limited(receive), _with_headers(send))

    def _refusal(self, scope: Any) -> Response | None:
        """The answer to a request that goes no further; None for one that may."""
        headers = Headers(scope=scope)
        name = _host_name(headers.get("host", ""))
        if not self._may_be_called(name):
            return PlainTextResponse(
                "this server does not answer to that host name; start it with --host-name NAME\n",
                status_code=421,
            )
        foreign = _is_foreign(headers, name)
        if scope["method"] not in ("GET", "HEAD") and (foreign or OWN_HEADER not in headers):
            return PlainTextResponse("not from this server's own pages\n", status_code=403)
        is_page = headers.get("sec-fetch-mode") == "navigate"
        if foreign and not (is_page and headers.get("sec-fetch-dest") == "document"):
            return PlainTextResponse("not from another site's page\n", status_code=403)
        if int(headers.get("content-length") or 0) > MOST_BODY_BYTES:
            return PlainTextResponse("too much\n", status_code=413)
        return self._without_token(scope, headers)

    def _may_be_called(self, name: str) -> bool:
        """Names that another site can point at this machine are refused; an address cannot be."""
        if name in self._known:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return not is_loopback(self.host)

    def _without_token(self, scope: Any, headers: Headers) -> Response | None:
        if self.token is None:
            return None
        query = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if query and _same(query, self.token) and scope["method"] == "GET":
            # the address line, and what is sent on from it, must not keep the secret
            answer = RedirectResponse(f"{self.root_path}/", status_code=303)
            answer.set_cookie(
                COOKIE,
                self.token,
                httponly=True,
                samesite="strict",
                path=f"{self.root_path}/",
                max_age=30 * 86400,
            )
            return answer
        cookies: http.cookies.SimpleCookie = http.cookies.SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except http.cookies.CookieError:
            cookies.clear()
        given = cookies[COOKIE].value if COOKIE in cookies else ""
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if _same(given, self.token) or _same(bearer, self.token):
            return None
        return PlainTextResponse(
            "a token is needed: open the address that halfmap web printed when it started\n",
            status_code=401,
        )


def _same(given: str, expected: str) -> bool:
    """Compared in a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode(), expected.encode())


def _host_name(header: str) -> str:
    """`localhost` of `localhost:8000`, `::1` of `[::1]:8000`."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.rpartition(":")[0].lower() if ":" in header else header.lower()


def _is_foreign(headers: Headers, name: str) -> bool:
    """Whether a browser says that another site's page asks."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        parts = urlsplit(origin)
        return (parts.netloc or "-").lower() != headers.get("host", "").lower()
    except ValueError:
        return True


def _without(path: str, prefix: str) -> str:
    if prefix and (path == prefix or path.startswith(f"{prefix}/")):
        return path[len(prefix) :] or "/"
    return path


def _with_headers(send: Any) -> Any:
    async def wrapped(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return wrapped


def _limited(receive: Any) -> Any:
    """The body of a request, cut off where it is more than a form can be."""
    seen = 0

    async def wrapped() -> Any:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= MOST_BODY_BYTES else {"type": "http.disconnect"}

    return wrapped


def inside(root: Path, relative: str) -> Path:
    """The path of what lies at `relative` below `root`.

    Raises:
        InputError: absolute, with `..`, hidden or empty parts, through a link that leads out, or
            not there.
    """
    parts = PurePosixPath(relative).parts if relative != "." else ()
    bad = (
        relative.startswith(("/", "~"))
        or any(c in relative for c in ("\\", "\0", "\n", "\r"))
        or any(part in ("..", "") or part.startswith(".") for part in parts)
        or (os.name == "nt" and ":" in relative)
    )
    if bad or (not parts and relative != "."):
        raise InputError("no such file in this folder")
    try:
        whole = root.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise InputError("no such file in this folder") from None
    if not whole.is_relative_to(root):
        raise InputError("no such file in this folder")
    return whole


def within_new(root: Path, relative: str) -> Path:
    """The path of something to be made below `root`; what of it is there already must not lead out.

    Raises:
        InputError: as `inside`, but that the last parts need not be there.
    """
    given = Path(relative)
    if given.is_absolute():
        normal = Path(os.path.normpath(given))
        if not normal.is_relative_to(root):
            raise InputError(f"--out {relative}: expected a name inside {root}")
        relative = normal.relative_to(root).as_posix()
    parts = PurePosixPath(relative).parts
    if not parts or any(p == ".." or p.startswith(".") for p in parts) or "\0" in relative:
        raise InputError(f"--out {relative}: expected a name inside {root}")
    whole = root.joinpath(*parts)
    if not whole.resolve().is_relative_to(root):
        raise InputError(f"--out {relative}: expected a name inside {root}")
    return whole
