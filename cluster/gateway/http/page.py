"""The page at `/`: static files that need no token. The page fetches its data with the user's token."""

import hashlib
import mimetypes
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE = "/page/"  # path of all files except `/`
_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
_POLICY = "; ".join(
    f"{what} {whence}"
    for what, whence in {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }.items()
)
_HEADERS = {
    "Cache-Control": "no-cache",  # revalidated at each use
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes() -> list[Route]:
    """One route per file; the files are read once."""
    files = resources.files("outrider.cluster.gateway").joinpath("page")
    paths = {f"{PAGE}{name}": file for name, file in _files(files)}
    paths["/"] = paths.pop(f"{PAGE}index.html")
    return [_route(path, file) for path, file in paths.items()]


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for file in folder.iterdir():
        if file.is_dir():
            yield from _files(file, f"{prefix}{file.name}/")
        else:
            yield prefix + file.name, file


def _route(path: str, file: Traversable) -> Route:
    body = file.read_bytes()
    suffix = f".{file.name.rpartition('.')[2]}"
    kind = _TYPES.get(suffix) or mimetypes.guess_type(file.name)[0] or "text/plain"
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}

    async def served(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=kind)

    return Route(path, served, methods=["GET"])
