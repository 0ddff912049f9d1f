"""The HTTP endpoints of a gateway, with the same authentication as gRPC."""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from outrider.cluster.api.calls import call_to_wire
from outrider.cluster.api.chat_shapes import messages_of, tools_of
from outrider.cluster.api.generation import ChatPrompt, Prompt, TextPrompt
from outrider.cluster.gateway.access.auth import ANY_ROLE, Authenticator, RefusedError, Role, bearer_of
from outrider.cluster.gateway.http.answer import Answer
from outrider.cluster.gateway.http.anthropic import MessagesAnswer, chat_prompt
from outrider.cluster.gateway.http.chat import ChatAnswer
from outrider.cluster.gateway.http.completions import CompletionAnswer
from outrider.cluster.gateway.http.errors import HttpError, Problem, problem_of, renamed
from outrider.cluster.gateway.http.page import PAGE, page_routes
from outrider.cluster.gateway.http.reply import Reply, Shape, client_timeout_s, log
from outrider.cluster.gateway.http.responses import ResponsesAnswer
from outrider.cluster.gateway.http.sse import check_is_json, read_body
from outrider.cluster.gateway.http.status import StatusStream, cluster_status
from outrider.cluster.gateway.http.types import (
    Body,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    MessagesRequest,
    ResponsesRequest,
    TokenizeRequest,
)
from outrider.cluster.gateway.requests.inference import Inference
from outrider.cluster.gateway.requests.preparation import INLINE_BYTES
from outrider.cluster.gateway.requests.prompts import PromptEncoder
from outrider.cluster.gateway.routing.controller_link import ControllerLink
from outrider.proto import inference_pb2
from outrider.workers.types import logs

T = TypeVar("T")
B = TypeVar("B", bound=Body)
Endpoint = Callable[[Request], Awaitable[ASGIApp]]
Made = tuple[Answer, list[inference_pb2.GenerateRequest], Mapping[str, str]]  # the last: Body.names

_ANTHROPIC = "/v1/messages"
_STATUS_PATH = "/status"
_OPEN = ("/", "/health")
_STATUS = {grpc.StatusCode.UNAUTHENTICATED: 401, grpc.StatusCode.PERMISSION_DENIED: 403}
_INFERENCE = frozenset({Role.INFERENCE})
_ADMIN = frozenset({Role.ADMIN})
_ROLES = {"/v1/models": ANY_ROLE, "/metrics": ANY_ROLE, _STATUS_PATH: _ADMIN}  # other paths need the inference role


class HttpApi:
    """Builds the ASGI application. Runs in the gateway's event loop."""

    def __init__(
        self,
        inference: Inference,
        is_ready: Callable[[], bool],
        registry: CollectorRegistry,
        controller: ControllerLink,
        authenticator: Authenticator | None,
        max_body_bytes: int,
        write_timeout_s: float,
    ) -> None:
        """`write_timeout_s`: the request of a client that reads nothing for this long is cancelled."""
        self._inference, self._is_ready, self._registry = inference, is_ready, registry
        self._controller, self._authenticator = controller, authenticator
        self._max_body_bytes, self._write_timeout_s = max_body_bytes, write_timeout_s
        self._began = int(time.time())

    def app(self) -> ASGIApp:
        posts = {
            "/v1/completions": self._answers(CompletionRequest, self._completion),
            "/v1/chat/completions": self._answers(ChatRequest, self._chat),
            "/v1/responses": self._answers(ResponsesRequest, self._response),
            _ANTHROPIC: self._answers(MessagesRequest, self._messages),
            f"{_ANTHROPIC}/count_tokens": self._count_tokens,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
        }
        gets = {
            "/v1/models": self._models,
            "/v1/models/{model:path}": self._model,
            "/health": self._health,
            "/metrics": self._metrics,
            _STATUS_PATH: self._status,
        }
        routes = [Route(path, _guarded(endpoint), methods=["POST"]) for path, endpoint in posts.items()]
        routes += [Route(path, _guarded(endpoint), methods=["GET"]) for path, endpoint in gets.items()]
        app = Starlette(routes=routes + page_routes(), exception_handlers={HTTPException: _failed})
        return _Authentication(app, self._authenticator)

    def _answers(self, kind: type[B], make: Callable[[B, str, PromptEncoder], Answer]) -> Endpoint:
        async def endpoint(request: Request) -> ASGIApp:
            encoder, _ = await self._inference.wait_until_ready(client_timeout_s(dict(request.headers)))
            identity = secrets.token_hex(16)

            def made(body: bytes) -> Made:
                parsed = self._parsed(kind, body)
                try:
                    answer = make(parsed, getattr(parsed, "request_id", None) or identity, encoder)
                    return answer, [call_to_wire(call) for call in answer.calls], parsed.names
                except ValueError as error:
                    raise renamed(error, parsed.names) from error

            answer, messages, names = await self._read(request, made)
            named = answer.calls[0].request_id == identity  # a client's own id may be invalid in a header
            headers = dict.fromkeys(("X-Request-Id", "Request-Id"), identity) if named else {}
            return Reply(answer, messages, names, self._inference, headers, _shape(request), self._write_timeout_s)

        return endpoint

    async def _read(self, request: Request, make: Callable[[bytes], T]) -> T:
        """`make(body)`, in a thread if the body is large."""
        check_is_json(request.headers)
        body = await read_body(request.receive, self._max_body_bytes)
        return make(body) if len(body) <= INLINE_BYTES else await self._inference.in_thread(make, body)

    def _parsed(self, kind: type[B], body: bytes) -> B:
        parsed = kind.model_validate_json(body)
        model = getattr(parsed, "model", None)
        if model and model != self._inference.model_name:
            raise HttpError(404, f"model {model[:200]!r} is not served here", code="model_not_found", param="model")
        if ignored := parsed.ignored:
            logs.event(log, logging.INFO, "unknown fields are ignored", fields=[name[:100] for name in ignored[:20]])
        return parsed

    def _completion(self, request: CompletionRequest, identity: str, encoder: PromptEncoder) -> Answer:
        return CompletionAnswer(request, self._inference.model_name, identity, encoder.tokenizer)

    def _chat(self, request: ChatRequest, identity: str, encoder: PromptEncoder) -> Answer:
        return ChatAnswer(request, self._inference.model_name, identity, encoder.tokenizer)

    def _messages(self, request: MessagesRequest, identity: str, encoder: PromptEncoder) -> Answer:
        return MessagesAnswer(request, self._inference.model_name, identity)

    def _response(self, request: ResponsesRequest, identity: str, encoder: PromptEncoder) -> Answer:
        return ResponsesAnswer(request, self._inference.model_name, identity, encoder.tokenizer)

    async def _count_tokens(self, request: Request) -> Response:
        encoder, _ = self._inference.ready()
        prompt = await self._read(request, lambda body: chat_prompt(self._parsed(MessagesRequest, body)))
        token_ids = await self._inference.in_thread(encoder.encode, prompt)
        return JSONResponse({"input_tokens": len(token_ids)})

    async def _tokenize(self, request: Request) -> Response:
        encoder, replica = self._inference.ready()
        prompt = await self._read(request, lambda body: _to_tokenize(self._parsed(TokenizeRequest, body)))
        token_ids = await self._inference.in_thread(encoder.encode, prompt)
        length = replica.info.max_model_len
        return JSONResponse({"count": len(token_ids), "max_model_len": length, "tokens": list(token_ids)})

    async def _detokenize(self, request: Request) -> Response:
        encoder, replica = self._inference.ready()
        body = await self._read(request, lambda body: self._parsed(DetokenizeRequest, body))
        if encoder.tokenizer is None:
            raise ValueError("this checkpoint has no tokenizer")
        if not all(0 <= token < replica.info.vocab_size for token in body.tokens):
            raise ValueError(f"tokens must be in [0, {replica.info.vocab_size - 1}]")
        return JSONResponse({"prompt": encoder.tokenizer.decode(body.tokens, skip_special_tokens=False)})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        model = self._described()
        if request.path_params["model"] != model["id"]:
            raise HttpError(404, "this model is not served here", code="model_not_found")
        return JSONResponse(model)

    def _described(self) -> dict[str, Any]:
        _, replica = self._inference.ready(is_work=False)
        name, length = self._inference.model_name, replica.info.max_model_len
        model = {"id": name, "object": "model", "created": self._began, "owned_by": "outrider", "root": name}
        return {**model, "parent": None, "max_model_len": length}

    async def _health(self, request: Request) -> Response:
        return Response(status_code=200 if self._is_ready() else 503)

    async def _status(self, request: Request) -> ASGIApp:
        if request.query_params.get("watch") in ("true", "1"):
            return StatusStream(self._controller, self._write_timeout_s)
        return JSONResponse(await cluster_status(self._controller))

    async def _metrics(self, request: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


def _guarded(endpoint: Endpoint) -> Endpoint:
    """Turns an exception into an error response."""

    async def guarded(request: Request) -> ASGIApp:
        try:
            return await endpoint(request)
        except Exception as error:
            return await _failed(request, error)

    return guarded


class _Authentication:
    """Requires a token if the gateway has a token file: `Authorization: Bearer`, or Anthropic's `x-api-key`."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator | None) -> None:
        self._app, self._authenticator = app, authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if self._authenticator is not None and not _is_open(path):
            try:
                roles = next((roles for start, roles in _ROLES.items() if path.startswith(start)), _INFERENCE)
                self._authenticator.admit(_token(scope), path[:200], roles)
            except RefusedError as error:
                problem = Problem(status=_STATUS[error.code], message=str(error), code="invalid_api_key")
                headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
                content = problem.anthropic() if path.startswith(_ANTHROPIC) else problem.openai()
                await JSONResponse(content, problem.status, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    """Whether the path needs no token: the page itself is public, the data it fetches are not."""
    return path in _OPEN or path.startswith(PAGE)


def _token(scope: Scope) -> str:
    headers = {key: value.decode("latin-1") for key, value in scope.get("headers", ())}
    return bearer_of(headers.get(b"authorization", "")) or headers.get(b"x-api-key", "").strip()


def _shape(request: Request) -> Shape:
    """The format of errors on this path."""
    return Problem.anthropic if request.url.path.startswith(_ANTHROPIC) else Problem.openai


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        problem: Problem | None = _unknown(request, error)
    else:
        problem = problem_of(error)
    if problem is None:
        logs.event(log, logging.ERROR, "a request failed", error=repr(error))
        problem = Problem(status=500, message="the gateway failed: see its log")
    return JSONResponse(_shape(request)(problem), problem.status, dict(problem.headers))


def _unknown(request: Request, error: HTTPException) -> Problem:
    """The path, or its method."""
    path, headers = request.url.path[:200], error.headers or {}
    allowed = headers.get("Allow")
    message = f"there is no path {path}" if allowed is None else f"{path} takes {allowed}, not {request.method[:20]}"
    return Problem(status=error.status_code, message=message, headers=headers)


def _to_tokenize(request: TokenizeRequest) -> Prompt:
    if (request.prompt is None) == (request.messages is None):
        raise ValueError("exactly one of prompt and messages must be given")
    if request.prompt is not None:
        return TextPrompt(request.prompt)
    return ChatPrompt(messages_of(request.messages or ()), tools_of(request.tools), request.chat_template_kwargs or {})
