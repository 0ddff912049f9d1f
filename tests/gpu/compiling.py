"""Compiles the kernels for sm_90 and sm_100, without a GPU: python compiling.py FOLDER prints a line of JSON for each.

Runs in a process of its own, without TRITON_INTERPRET. Types, sizes and options are those of R1 with tensor parallel
8.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from outrider.kernels.gpu import choose as routing
from outrider.kernels.gpu import (
    dispatch,
    draw,
    experts,
    gather,
    latents,
    linear,
    mla,
    norms,
    quantize,
    queries,
    reduce,
    sort,
    values,
)

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FP8, BF16, F32, F64, I32, I64 = "*fp8e4nv", "*bf16", "*fp32", "*fp64", "*i32", "*i64"
_PRODUCT = {"X": BF16, "XS": F32, "W": FP8, "WS": F32, "Y": BF16, "FP8": True, "READY": False, "INTERPRETED": False}
_WIDE = {**_PRODUCT, "W": BF16, "FP8": False, "BR": 16, "num_stages": 4}
_MANY = {"X": FP8, "READY": True, "num_stages": 3, "num_warps": 8}
_EXPERTS = {
    "X": BF16, "W": FP8, "WS": F32, "IDS": I32, "ORDER": I32, "STARTS": I32, "OUT": BF16, "FP8": True,
    "SORTED": False, "INTERPRETED": False, "PLACES": 9, "WIDTH": 16, "BO": 64,
}  # fmt: skip
_SORTED = {"SORTED": True, "BR": experts.SORTED_ROWS}
_PAIRS = {"PLACES": 1, "WIDTH": 1}  # each row is one pair
_CACHE = {
    "LATENTS": BF16, "SCALES": F32, "ROTARY": BF16, "GROUP": 128, "LATENT_STRIDE": 576, "SCALE_STRIDE": 0,
    "ROTARY_STRIDE": 576, "FP8": False,
}  # fmt: skip
_FP8_CACHE = {"LATENTS": FP8, "LATENT_STRIDE": 656, "SCALE_STRIDE": 164, "ROTARY_STRIDE": 328, "FP8": True}
_MLA = {
    "Q": BF16, **_CACHE, "TILES": I32, "PAGES": I32, "SEEN": I32, "PARTS": F32, "LOGS": F32, "scale": "fp32",
    "H": 16, "D": 512, "ROPE": 64, "PAGE": 64, "SPLIT": mla.SPLIT, "BLOCK": mla.BLOCK, "QUERIES": mla.QUERIES,
    "BH": 16, "INTERPRETED": False, "num_warps": mla.WARPS, "num_stages": mla.STAGES,
}  # fmt: skip
_VALUES = {
    "PARTS": F32, "LOGS": F32, "SEEN": I32, "UP": BF16, "OUT": BF16, "H": 16, "D": 512, "V": 128, "SPLIT": mla.SPLIT,
    "ROWS": 16, "BD": 128, "INTERPRETED": False,
}  # fmt: skip
_LATENTS = {
    "LOW": BF16, "QNORM": BF16, "KNORM": BF16, "TABLE": F32, "POSITIONS": I32, "SLOTS": I32, **_CACHE, "QUERY": BF16,
    "eps": "fp32", "NORMED": True, "QSIZE": 2048, "D": 512, "ROPE": 64, "INTERPRETED": False,
}  # fmt: skip
_STREAM = {"HIDDEN": BF16, "OUTPUTS": BF16, "WEIGHTS": F32, "NORM": BF16, "STREAM": BF16, "NORMED": BF16, "eps": "fp32"}
_SHARED = {"SEEN": I32, "SLOTS": I32, "ADDRESSES": I64, "EPOCHS": I32, "PLACES": 8, "MOST": 64, "num_warps": 8}
_NOISE = dict(zip(("STEP", "ONE", "TWO"), draw.NOISE, strict=True))
KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear, 4 rows": (linear._linear, {**_PRODUCT, "BR": 16, "BO": 64, "num_stages": 4}),
    "linear, 64 rows": (linear._linear, {**_PRODUCT, "BR": 64, "BO": 64, "num_stages": 3}),
    "linear, 2048 rows": (linear._linear, {**_PRODUCT, **_MANY, "BR": 128, "BO": 64}),
    "linear, few outputs": (linear._linear, {**_PRODUCT, "BR": 16, "BO": 16, "num_stages": 4}),
    "linear, bf16": (linear._linear, {**_WIDE, "BO": 64}),
    "linear, bf16, few outputs": (linear._linear, {**_WIDE, "BO": 16}),
    "gate and up": (experts._gate_up, {**_EXPERTS, "BR": 16}),
    "gate and up, sorted": (experts._gate_up, {**_EXPERTS, **_SORTED}),
    "gate and up of spread experts": (experts._gate_up, {**_EXPERTS, **_PAIRS, "BR": 64}),
    "gate and up of spread experts, sorted": (experts._gate_up, {**_EXPERTS, **_PAIRS, **_SORTED}),
    "down": (experts._down, {**_EXPERTS, "BR": 16}),
    "down, sorted": (experts._down, {**_EXPERTS, **_SORTED}),
    "down of spread experts": (experts._down, {**_EXPERTS, **_PAIRS, "BR": 64}),
    "down of spread experts, sorted": (experts._down, {**_EXPERTS, **_PAIRS, **_SORTED}),
    "quantize": (quantize._quantize, {"X": BF16, "Q": FP8, "S": F32, "INTERPRETED": False, "ROWS": 16}),
    "attention": (mla._mla, _MLA),
    "attention, 1 row": (mla._mla, {**_MLA, "R": 1}),
    "attention, 8 heads": (mla._mla, {**_MLA, "H": 8}),
    "attention, pages of 16": (mla._mla, {**_MLA, "PAGE": 16}),
    "attention, FP8 cache": (mla._mla, {**_MLA, **_FP8_CACHE, "num_stages": mla.FP8_STAGES}),
    "values": (values._values, _VALUES),
    "values, 1 row": (values._values, {**_VALUES, "R": 1}),
    "queries": (
        queries._queries,
        {"Q": BF16, "UP": BF16, "TABLE": F32, "POSITIONS": I32, "OUT": BF16, "H": 16, "N": 128, "ROPE": 64, "D": 512,
         "BD": 128, "ROWS": 16, "INTERPRETED": False},
    ),
    "latents": (
        latents._latents,
        _LATENTS,
    ),
    "latents, FP8 cache": (latents._latents, {**_LATENTS, **_FP8_CACHE}),
    "choose": (
        routing._choose,
        {"LOGITS": F32, "BIAS": F32, "IDS": I32, "WEIGHTS": F32, "scaling": "fp32", "SIZE": 256, "GROUPS": 8,
         "EACH": 32, "KEPT": 4, "CHOSEN": 8, "SHARED": 1, "NORMED": True, "GROUPS_SIZE": 8, "ROWS": 4},
    ),
    "sort": (sort._sort, {"IDS": I32, "ORDER": I32, "STARTS": I32, "BLOCK": 1024}),
    "join and norm": (norms._join_norm, {**_STREAM, "PLACES": 9, "WEIGHTED": True, "SIZE": 8192, "num_warps": 8}),
    "weigh": (norms._weigh, {"OUTPUTS": BF16, "WEIGHTS": F32, "SUM": BF16, "PLACES": 9, "BLOCK": 1024}),
    "norm": (norms._norm, {"X": BF16, "WEIGHT": BF16, "OUT": BF16, "eps": "fp32", "SIZE": 8192, "num_warps": 8}),
    "pair of norms": (
        norms._pair_norms,
        {"EMBEDDED": BF16, "HIDDEN": BF16, "FIRST": BF16, "SECOND": BF16, "OUT": BF16, "eps": "fp32", "SIZE": 8192,
         "num_warps": 8},
    ),
    "sum, join and norm": (
        reduce._sum_join_norm,
        {**_STREAM, "ADDRESSES": I64, "EPOCHS": I32, "PLACES": 9, "WEIGHTED": True, "SIZE": 8192, "RANKS": 8,
         "MOST": 128, "num_warps": 16},
    ),
    "gather columns": (
        gather._gather_columns,
        {"X": BF16, "OUT": BF16, "ADDRESSES": I64, "EPOCHS": I32, "SIZE": 1024, "RANKS": 8, "MOST": 128},
    ),
    "gather rows of 8 data groups": (
        dispatch._gather_rows,
        {**_SHARED, "X": BF16, "IDS": I32, "ROWS": BF16, "WIDTH": 8, "SIZE": 8192, "RANKS": 8},
    ),
    "send outputs to 8 data groups": (
        dispatch._send_outputs,
        {**_SHARED, "OUTPUTS": BF16, "BORDERS": I32, "SIZE": 8192, "DATAS": 8, "TENSORS": 1},
    ),
    "send outputs to 2 data groups with tensor parallel 4": (
        dispatch._send_outputs,
        {**_SHARED, "OUTPUTS": BF16, "BORDERS": I32, "SIZE": 2048, "DATAS": 2, "TENSORS": 4},
    ),
    "take outputs": (dispatch._take_outputs, {**_SHARED, "OUT": BF16, "SIZE": 8192, "RANKS": 8}),
    "draw": (
        draw._draw_parts,
        {"LOGITS": F32, "TEMPERATURES": F64, "KEYS": I64, "BEST": F64, "IDS": I64, "BLOCK": 1024, **_NOISE},
    ),
    "join parts of a draw": (
        draw._join_parts,
        {"BEST": F64, "IDS": I64, "OUT": F64, "OUT_IDS": I64, "SIZE": 128},
    ),
}  # fmt: skip
_OPTIONS = {"num_warps": 4, "num_stages": 3}
_PRODUCTS = ("HGMMA", "QGMMA", "UTCHMMA", "UTCQMMA", "HMMA", "QMMA", "STL", "LDL")


def compiled(kernel: Any, given: dict[str, Any], capability: int, folder: Path) -> dict[str, Any]:
    """Registers, bytes of stack and of spills, bytes of shared memory, columns of tensor memory, and the number of each
    tensor core instruction."""
    options = {name: given.get(name, default) for name, default in _OPTIONS.items()}
    constants = {
        name: value for name, value in given.items() if name in kernel.arg_names and not isinstance(value, str)
    }
    signature = {name: "constexpr" if name in constants else given.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name][0] == "*" or (signature[name] == "i32" and name in ("K", "N", "w", "size"))
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    file = folder / "kernel.cubin"
    file.write_bytes(made.asm["cubin"])
    usage = _run("cuobjdump", "-res-usage", str(file))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    text = _run("nvdisasm", "-c", str(file))
    counts = {name: len(re.findall(rf"\b{name}\b", text)) for name in _PRODUCTS}
    registers, stack, local = map(int, found.groups())
    memory = {"shared": made.metadata.shared, "tensor_memory": made.metadata.tmem_size}
    return {"registers": registers, "stack": stack, "local": local, **memory, **counts}


def _run(tool: str, *words: str) -> str:
    done = subprocess.run([str(TOOLS / tool), *words], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


if __name__ == "__main__":
    only = sys.argv[2:] or list(KERNELS)
    for name in only:
        for capability in (90, 100):
            figures = compiled(*KERNELS[name], capability, Path(sys.argv[1]))
            found = {"kernel": name, "function": KERNELS[name][0].__name__, "capability": capability, **figures}
            print(json.dumps(found), flush=True)  # noqa: T201
