"""A Hugging Face Hub with one repository in it, over HTTP: the part of its API that a snapshot needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


class FakeHub:
    """Serves a folder's files. `token`: required from clients, unless it is empty. `fetched`: the files' names."""

    def __init__(self, repository: str, folder: Path, token: str) -> None:
        self.fetched: list[str] = []
        self._repository, self._folder, self._token = repository, folder, token
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        if self._token and authorization != f"Bearer {self._token}":
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        api = f"/api/models/{self._repository}"
        if path.startswith(f"{api}/revision/") and path.rpartition("/")[2] in ("main", COMMIT):
            return 200, {}, json.dumps(self._listing()).encode()
        if path.startswith(f"{api}/tree/{COMMIT}"):
            return 200, {}, json.dumps([self._entry(one) for one in self._files()]).encode()
        if path.startswith(f"/{self._repository}/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            content = (self._folder / name).read_bytes()
            return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content
        known = path.startswith(f"{api}/")
        return 404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}, b""

    def _files(self) -> list[Path]:
        return sorted(one for one in self._folder.iterdir() if one.is_file())

    def _entry(self, file: Path) -> dict[str, object]:
        content = file.read_bytes()
        return {"type": "file", "path": file.name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _listing(self) -> dict[str, object]:
        siblings = [{"rfilename": one.name} for one in self._files()]
        return {"id": self._repository, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _respond(self) -> None:
                path = self.path.partition("?")[0]
                status, headers, content = hub._answer(path, self.headers.get("Authorization", ""))
                if self.command == "GET" and "/resolve/" in path and status == 200:
                    hub.fetched.append(path.rpartition("/")[2])
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_GET = do_HEAD = _respond  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:
                """Says nothing."""

        return Handler


@contextmanager
def serving(repository: str, folder: Path, token: str = "") -> Iterator[FakeHub]:
    hub = FakeHub(repository, folder, token)
    try:
        yield hub
    finally:
        hub.close()
