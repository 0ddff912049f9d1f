"""A Kubernetes API with one object in it, over HTTP: it can be read and JSON-patched by name, and everything else is
forbidden, as to a service account with just that role."""

import copy
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import kubernetes


class FakeKubernetes:
    """Listens until closed. `asked` has the method, path and content type of every request."""

    def __init__(self, path: str, content: dict[str, Any]) -> None:
        self.object = copy.deepcopy(content)
        self.asked: list[tuple[str, str, str]] = []
        self.before_patch: Callable[[], None] = lambda: None
        self._path = path
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def api(self) -> kubernetes.client.CustomObjectsApi:
        configuration = kubernetes.client.Configuration(host=f"http://127.0.0.1:{self._server.server_port}")
        return kubernetes.client.CustomObjectsApi(kubernetes.client.ApiClient(configuration))

    @property
    def deployments(self) -> kubernetes.client.AppsV1Api:
        return kubernetes.client.AppsV1Api(self.api.api_client)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, method: str, path: str, kind: str, body: bytes) -> tuple[int, dict[str, Any]]:
        self.asked.append((method, path, kind))
        if path != self._path or method not in ("GET", "PATCH"):
            return 403, {"message": "forbidden"}
        if method == "PATCH":
            self.before_patch()
            try:
                self.object = json_patched(self.object, json.loads(body))
            except (ValueError, KeyError, IndexError) as error:
                return 422, {"message": str(error)}
        return 200, self.object

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kind = self.headers.get("Content-Type", "")
                status, content = fake._answer(self.command, self.path, kind, body)
                payload = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_PATCH = do_PUT = do_POST = do_DELETE = _do  # noqa: N815  # http.server's names

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler


def json_patched(content: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    """RFC 6902's `test`, `add` and `replace`, all or nothing.

    ValueError, KeyError or IndexError if one does not hold.
    """
    patched = copy.deepcopy(content)
    for operation in operations:
        *parents, last = operation["path"].strip("/").split("/")
        place: Any = patched
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place[name]
        if operation["op"] == "test" and place[last] != operation["value"]:
            raise ValueError(f"test of {operation['path']} failed")
        if operation["op"] in ("add", "replace"):
            place[last] = operation["value"]
    return patched
