"""The compiled kernels' interface in Python: structures as in src/, and calls that release the GIL.

Structures contain addresses only: their creator must keep what they point to alive.
"""

import ctypes
import functools
import logging
from ctypes import CFUNCTYPE, POINTER, Structure, c_double, c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from typing import Any

from outrider.kernels.cpu.build import built, instruction_set
from outrider.kernels.cpu.compiler import BuildError

log = logging.getLogger("outrider.kernels")

PANEL = 32  # outputs
LANES = 16
STRETCH_8 = 128  # inputs that share a scale of 8-bit weights
FLOAT32, BFLOAT16, INT8 = 0, 1, 2  # kinds of weights
ROUNDED = 3  # for packing: INT8 whose inputs are rounded to 8 bits (src/rounded.h)
DOT = 4  # consecutive inputs of ROUNDED weights


class LinearStruct(Structure):
    _fields_ = (
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("kind", c_int32),
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("rounds", c_int32),
    )


# The purposes of collectives, in the order of src/sharding.h.
PURPOSES = (
    "latents",
    "heads",
    "attention outputs",
    "inner activations",
    "layer outputs",
    "embeddings",
    "counts of rows",
    "rows to experts",
    "expert outputs",
    "logits",
    "drafts",
    "expert loads",
    "trial",
)
GATHER = CFUNCTYPE(c_int32, c_void_p, c_int32, c_void_p, c_int64, c_int32, c_void_p)
EXCHANGE = CFUNCTYPE(c_int32, c_void_p, c_int32, c_void_p, POINTER(c_int64), c_void_p, POINTER(c_int64))


class GroupStruct(Structure):
    _fields_ = (
        ("rank", c_int32),
        ("size", c_int32),
        ("state", c_void_p),
        ("gather", GATHER),
        ("exchange", EXCHANGE),
    )


class ShardStruct(Structure):
    _fields_ = (
        ("tensor", GroupStruct),
        ("stage", GroupStruct),
        *((name, c_int32) for name in ("unit", "spread", "heads", "unused")),
    )


class TrafficStruct(Structure):
    _fields_ = (("count", c_int64), ("bytes", c_int64), ("nanoseconds", c_int64))


class ShapeStruct(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("hidden", "heads", "nope", "rope", "value", "latent_rank", "query_rank")),
        *((name, c_int32) for name in ("experts", "chosen", "groups", "chosen_groups", "normalise")),
        *((name, c_int32) for name in ("block_size", "cache_kind", "fast", "by_head")),
        *((name, c_float) for name in ("routed_scale", "eps", "latent_eps", "softmax_scale")),
        ("rotary", c_void_p),
        ("shard", POINTER(ShardStruct)),
    )


class AttentionStruct(Structure):
    _fields_ = (
        ("down", LinearStruct),
        ("query_up", LinearStruct),
        ("output", LinearStruct),
        ("key_value_up", LinearStruct),
        ("key_up", POINTER(LinearStruct)),
        ("value_up", POINTER(LinearStruct)),
        ("key_expand", POINTER(LinearStruct)),
        ("query_norm", c_void_p),
        ("latent_norm", c_void_p),
    )


class MlpStruct(Structure):
    _fields_ = (("gate_up", LinearStruct), ("down", LinearStruct), ("width", c_int32), ("unused", c_int32))


class RoutedExperts(Structure):
    _fields_ = (
        ("slots", POINTER(MlpStruct)),
        ("count", c_int32),
        ("most_copies", c_int32),
        ("copies", c_void_p),
        ("slots_of_expert", c_void_p),
        ("loads", c_void_p),
    )


class Layer(Structure):
    _fields_ = (
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("attention", AttentionStruct),
        ("routed", POINTER(RoutedExperts)),
        ("shared", c_int32),
        ("unused", c_int32),
        ("router", LinearStruct),
        ("router_bias", c_void_p),
        ("dense", MlpStruct),
    )


class RowsStruct(Structure):
    _fields_ = (
        ("rows", c_int32),
        ("sequences", c_int32),
        *((name, c_void_p) for name in ("token_ids", "positions", "slots", "offsets", "write_from")),
        ("block_offsets", c_void_p),
        ("block_ids", c_void_p),
        ("first_slots", c_void_p),
    )
    memory: object  # keeps the arrays alive


class StageStruct(Structure):
    _fields_ = (
        ("layers", POINTER(Layer)),
        ("caches", POINTER(c_void_p)),
        ("count", c_int32),
        ("embedding_kind", c_int32),
        ("embedding", c_void_p),
        ("norm", c_void_p),
    )


class Module(Structure):
    _fields_ = (
        ("layer", POINTER(Layer)),
        ("cache", c_void_p),
        ("embedding_norm", c_void_p),
        ("hidden_norm", c_void_p),
        ("norm", c_void_p),
        ("join", POINTER(LinearStruct)),
        ("embedding", c_void_p),
        ("embedding_kind", c_int32),
        ("unused", c_int32),
    )


class ChainStruct(Structure):
    _fields_ = (
        ("before", c_void_p),
        ("reach", c_void_p),
        ("kept", c_void_p),
        ("lasts", c_void_p),
        ("leaves", c_void_p),
        ("leaving", c_int64),
    )


class Draw(Structure):
    _fields_ = (
        ("sequence_key", c_uint64),
        ("position", c_int64),
        ("temperature", c_double),
        ("min_p", c_double),
        ("top_p", c_double),
        ("top_k", c_int64),
        ("prompt_tokens", c_int64),
        ("ruled_out", c_void_p),
        ("ruled_out_count", c_int64),
        ("ruled_out_until", c_int64),
        ("biased", c_void_p),
        ("biases", c_void_p),
        ("biased_count", c_int64),
        ("allowed", c_void_p),
        ("allowed_words", c_int64),
        ("bad_words", c_void_p),
        ("bad_words_size", c_int64),
        ("penalises", c_int64),
        ("repetition", c_double),
        ("frequency", c_double),
        ("presence", c_double),
        ("prompt_ids", c_void_p),
        ("prompt_ids_count", c_int64),
        ("said", c_void_p),
        ("constrained", c_int64),
        ("fallback", c_int64),
    )


class Allowed(Structure):
    _fields_ = (("words", c_void_p), ("count", c_int64))


# Callback: the allowed tokens of sequence `which` at its draft `depth`, counted from 0.
REMASK = CFUNCTYPE(None, c_int64, c_int64, POINTER(Allowed))


_TEAM = (c_void_p, c_int, c_int)  # context, threads, spins
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "outrider_open": (c_void_p, (c_int,)),
    "outrider_close": (None, (c_void_p,)),
    "outrider_pack": (None, (c_void_p, c_int, c_void_p, c_int, c_int, c_int, c_void_p, c_void_p)),
    "outrider_checksum": (c_uint64, (c_void_p, c_int64)),
    "outrider_linear": (None, (*_TEAM, POINTER(LinearStruct), c_int, c_void_p, c_void_p)),
    "outrider_stage": (c_int64, (*_TEAM, POINTER(ShapeStruct), POINTER(StageStruct), POINTER(RowsStruct), c_void_p)),
    "outrider_sample": (
        None,
        (*_TEAM, POINTER(LinearStruct), c_void_p, c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_void_p),
    ),
    "outrider_draw": (None, (*_TEAM, c_void_p, c_int, c_int, c_void_p, c_void_p)),
    "outrider_draft": (
        c_int64,
        (
            *_TEAM, POINTER(ShapeStruct), POINTER(Module), c_int, POINTER(LinearStruct), c_int, c_void_p,
            POINTER(RowsStruct), c_void_p, POINTER(ChainStruct), c_void_p, c_void_p, c_int, c_int,
            c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, REMASK,
        ),
    ),
    "outrider_group_open": (c_void_p, (c_void_p, c_int, c_int, c_int64, c_int, c_int64)),
    "outrider_group_close": (None, (c_void_p,)),
    "outrider_group_size": (c_int64, (c_int, c_int64)),
    "outrider_group_gather": (c_int32, (c_void_p, c_int32, c_void_p, c_int64, c_int32, c_void_p)),
    "outrider_group_exchange": (c_int32, (c_void_p, c_int32, c_void_p, c_void_p, c_void_p, c_void_p)),
    "outrider_group_traffic": (POINTER(TrafficStruct), (c_void_p,)),
}  # fmt: skip


@functools.cache
def load() -> ctypes.CDLL:
    """The library for this machine. BuildError if there is none and it cannot be built."""
    path = built(instruction_set())
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"cannot load {path}: {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
