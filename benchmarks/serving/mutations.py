"""Requests that are nearly right, and bytes that are no request. Pure: the dice decide."""

import json
import random
import string
from collections.abc import Callable

from outrider.proto import inference_pb2 as pb

_TEXTS = ("def main():", "", "\x00\ufffd\U0001f600" * 20, "a" * 5000, "<think>", "{{ 7*7 }}", "\u202e" * 50)
_REGEXES = (
    "a+",
    "(a|b)*c",
    "[^\\n]{3,9}",
    "(",
    "(?<=a)b",
    "\\p{L}+",
    "(a{1,50}){1,50}",
    "(((((a*)*)*)*)*)*",
    "x{9999}",
)
_GRAMMARS = (
    'start: "a" start | "b"',
    "start: /[a-z]+/ & /b+/",
    'start: A\nA: "x"~1..99',
    "%llguidance {}\nstart: %json { }",
    "start: start",
    'start: r0\nr0: r1\nr1: "a"',
)
_SCHEMAS = (
    {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 3},
    {"anyOf": [{"type": "integer", "minimum": 5}, {"enum": ["x", 1, None]}]},
    {"type": "string", "pattern": "^(a|b){3}$", "maxLength": 9},
    {"$ref": "#/definitions/none"},
)


def mutated(dice: random.Random) -> bytes:
    """One request, as it goes on the wire."""
    return dice.choice(_KINDS)(dice)


def _base(dice: random.Random) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt=dice.choice(_TEXTS[:1]), stopping=pb.StoppingParameters(max_tokens=3))


def _scrambled(text: str, dice: random.Random) -> str:
    """Some of its pieces doubled, dropped, swapped or replaced."""
    letters = list(text)
    for _ in range(dice.randint(0, 8)):
        at = dice.randrange(len(letters) + 1)
        match dice.randrange(4):
            case 0:
                letters[at:at] = letters[at : at + dice.randint(1, 30)] * dice.randint(1, 20)
            case 1:
                del letters[at : at + dice.randint(1, 5)]
            case 2:
                letters.insert(at, dice.choice(string.printable + "\u00e9\u4e2d\U0001f600\x00"))
            case _:
                other = dice.randrange(len(letters) + 1)
                letters[at:at] = letters[other : other + 10]
    return "".join(letters[:20_000])


def _constrained(name: str, texts: Callable[[random.Random], str]) -> Callable[[random.Random], bytes]:
    def make(dice: random.Random) -> bytes:
        request = _base(dice)
        setattr(request.structured_output, name, _scrambled(texts(dice), dice))
        return request.SerializeToString()

    return make


def _deep(dice: random.Random) -> bytes:
    request, deep = _base(dice), dice.choice((100, 1000, 10_000))
    opening, closing = dice.choice((("[", "]"), ('{"not":', "}"), ('{"items":', "}")))
    request.structured_output.json_schema = opening * deep + "{}" + closing * deep
    return request.SerializeToString()


def _text(dice: random.Random) -> bytes:
    request = _base(dice)
    text = _scrambled(dice.choice(_TEXTS), dice)
    if dice.random() < 0.5:
        request.prompt = text
    else:
        request.messages.messages.add(role=dice.choice(("user", "assistant", "system", text[:9])), content=text)
    request.stopping.stop.extend(_scrambled("stop", dice)[:50] for _ in range(dice.randint(0, 20)))
    return request.SerializeToString()


def _bad_words(dice: random.Random) -> bytes:
    request = _base(dice)
    longest = dice.choice((5, 256, 4000))
    request.sampling.bad_words.extend(_scrambled("word", dice)[:longest] for _ in range(dice.choice((1, 50, 256, 500))))
    return request.SerializeToString()


def _numbers(dice: random.Random) -> bytes:
    request = _base(dice)
    odd = (0.0, -1.0, 1e30, float("nan"), float("inf"), 0.5, 1.0)
    for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
        if dice.random() < 0.3:
            setattr(request.sampling, name, dice.choice(odd))
    request.num_sequences = dice.choice((0, 1, 2, 128, 129, 2**32 - 1))
    request.token_ids.ids.extend(dice.choice((0, 5, 4095, 4096, 2**32 - 1)) for _ in range(dice.randint(0, 40)))
    request.stopping.max_tokens = dice.choice((0, 1, 5, 2**31))
    return request.SerializeToString()


def _resume(dice: random.Random) -> bytes:
    request = _base(dice)
    request.resume.seed = dice.choice((0, -1, 2**62))
    request.resume.fingerprint = dice.choice(("", "feedbeef", "x" * 5000))
    for _ in range(dice.randint(0, 5)):
        ids = [dice.choice((5, 100, 4095, 2**32 - 1)) for _ in range(dice.randint(0, 50))]
        request.resume.outputs.add(index=dice.choice((0, 0, 1, 2**32 - 1)), token_ids=ids)
    return request.SerializeToString()


def _bytes(dice: random.Random) -> bytes:
    """A request with some of its bytes replaced, dropped or doubled; or no request at all."""
    if dice.random() < 0.2:
        return dice.randbytes(dice.randint(0, 400))
    raw = bytearray(dice.choice(_KINDS[:-1])(dice))
    for _ in range(dice.randint(1, 6)):
        if raw:
            at = dice.randrange(len(raw))
            raw[at : at + dice.randint(0, 2)] = dice.randbytes(dice.randint(0, 3))
    return bytes(raw)


_KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    _constrained("grammar", lambda dice: dice.choice(_GRAMMARS)),
    _constrained("regex", lambda dice: dice.choice(_REGEXES)),
    _constrained("json_schema", lambda dice: json.dumps(dice.choice(_SCHEMAS))),
    _deep,
    _text,
    _bad_words,
    _numbers,
    _resume,
    _bytes,
)
