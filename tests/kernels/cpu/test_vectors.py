"""simd.h by itself, compiled for each instruction set: the same bits on AVX2 and AVX-512, and exponentials as said."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from outrider.kernels.cpu.build import instruction_set
from outrider.kernels.cpu.compiler import SOURCES

FLAGS = {"plain": (), "avx2": ("-march=x86-64-v3",), "avx512": ("-march=x86-64-v4",)}
LANES = 16

Floats = NDArray[np.float32]
Apply = Callable[..., Floats]

# Each function takes vectors of 16 and gives one.
PROGRAM = """
#include "simd.h"
using namespace outrider;
extern "C" {
void exponential(const float* x, const float*, float* out) { store(out, exp(load(x))); }
void logistic(const float* x, const float*, float* out) { store(out, sigmoid(load(x))); }
void swish(const float* x, const float*, float* out) { store(out, silu(load(x))); }
void add(const float* x, const float* y, float* out) { store(out, load(x) + load(y)); }
void divide(const float* x, const float* y, float* out) { store(out, load(x) / load(y)); }
void multiply_add(const float* x, const float* y, float* out) { store(out, fma(load(x), load(y), load(x))); }
void larger(const float* x, const float* y, float* out) { store(out, largest(load(x), load(y))); }
void total(const float* x, const float* y, float* out) {
    out[0] = sum(load(x));
    out[1] = max_lane(load(x));
    const F16 four[4] = {load(x), load(y), load(x) * load(y), load(y) + load(y)};
    sums_of_four(four, out + 2);
    for (int i = 0; i < 4; ++i) out[6 + i] = sum(four[i]);
    std::fill(out + 10, out + 16, 0.0f);
}
void leading(const float* x, const float* y, float* out) {
    const int count = static_cast<int>(y[0]);
    std::fill(out, out + 16, -7.0f);
    store_some(out, load_some(x, count), count);
    if (y[1] != 0) store(out, first_lanes(load(x), count));
}
void brain(const float* x, const float*, float* out) {  // the words of x as pairs of bfloat16
    store(out, low_halves(load_words(reinterpret_cast<const uint32_t*>(x))) +
               high_halves(load_words(reinterpret_cast<const uint32_t*>(x))));
    const F16 first = load(reinterpret_cast<const uint16_t*>(x));
    out[15] = sum(first);
}
void bytes(const float* x, const float*, float* out) { store(out, load(reinterpret_cast<const int8_t*>(x))); }
}
"""
NAMES = ("exponential", "logistic", "swish", "add", "divide", "multiply_add", "larger", "total", "brain", "bytes")


def build(folder: Path, isa: str) -> Callable[[str], Apply]:
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler, "the kernels' tests need a C++ compiler"
    (folder / "vectors.cpp").write_text("#include <algorithm>\n" + PROGRAM)
    command = [compiler, "-std=c++20", "-O2", "-fPIC", "-shared", "-ffp-contract=off", f"-I{SOURCES}", *FLAGS[isa]]
    subprocess.run([*command, str(folder / "vectors.cpp"), "-o", str(folder / f"{isa}.so")], check=True)
    library = ctypes.CDLL(str(folder / f"{isa}.so"))

    def named(name: str) -> Apply:
        function = library[name]
        function.argtypes, function.restype = (ctypes.c_void_p,) * 3, None

        def apply(x: Floats, y: Floats | None = None) -> Floats:
            x = np.ascontiguousarray(x, dtype=np.float32)
            y = x if y is None else np.ascontiguousarray(y, dtype=np.float32)
            out = np.empty_like(x)
            for vector in range(len(x) // LANES):
                part = slice(vector * LANES, (vector + 1) * LANES)
                function(x[part].ctypes.data, y[part].ctypes.data, out[part].ctypes.data)
            return out

        return apply

    return named


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Callable[[str], Apply]]:
    """By instruction set, all of simd.h; skips where this processor lacks it."""
    folder, built = tmp_path_factory.mktemp("vectors"), {}
    known = list(FLAGS)

    def of(isa: str) -> Callable[[str], Apply]:
        if known.index(isa) > known.index(instruction_set()):
            pytest.skip(f"this processor has no {isa}")
        if isa not in built:
            built[isa] = build(folder, isa)
        return built[isa]

    return of


def values(seed: int = 0) -> Floats:
    """Of every magnitude, with both zeros and what exponentials overflow and vanish at."""
    draw = np.random.default_rng(seed)
    spread = draw.standard_normal(4096) * 10.0 ** draw.uniform(-6, 2, 4096)
    special = [0.0, -0.0, 1.0, -1.0, 86.9, -86.9, 88.0, -88.0, 1e-30, -1e-30, 0.5, 1.5, 2.5, -0.5, -1.5, 100.0]
    return np.concatenate([special, spread]).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_avx2_and_avx512_agree_bit_for_bit(name: str, library: Callable[[str], Callable[[str], Apply]]) -> None:
    wide, narrow = (library(isa)(name)(values(), values(1)) for isa in ("avx512", "avx2"))

    assert np.array_equal(wide.view(np.uint32), narrow.view(np.uint32))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("brain", "bytes", "total", "multiply_add")])
def test_the_plain_path_agrees_within_rounding(name: str, library: Callable[[str], Callable[[str], Apply]]) -> None:
    best, plain = (library(isa)(name)(values(), values(1)) for isa in (instruction_set(), "plain"))

    np.testing.assert_allclose(plain, best, rtol=1e-6)


@pytest.mark.parametrize("name", ["brain", "bytes", "total"])
def test_the_plain_path_loads_and_sums_the_same_bits(
    name: str, library: Callable[[str], Callable[[str], Apply]]
) -> None:
    best, plain = (library(isa)(name)(values(), values(1)) for isa in (instruction_set(), "plain"))

    assert np.array_equal(best.view(np.uint32), plain.view(np.uint32))


@pytest.mark.parametrize("isa", FLAGS)
def test_an_exponential_is_within_two_units_in_the_last_place(
    isa: str, library: Callable[[str], Callable[[str], Apply]]
) -> None:
    x = np.linspace(-87, 88, 16 * 4096, dtype=np.float32)

    got, wanted = library(isa)("exponential")(x), np.exp(x.astype(np.float64))

    assert (np.abs(got - wanted) <= 2 * np.spacing(wanted.astype(np.float32))).all()
    assert library(isa)("exponential")(np.zeros(16, dtype=np.float32)).tolist() == [1.0] * 16


@pytest.mark.parametrize("isa", FLAGS)
def test_what_is_below_the_range_of_an_exponential_is_next_to_nothing(
    isa: str, library: Callable[[str], Callable[[str], Apply]]
) -> None:
    x = np.array([-np.inf, -1e30, -1e4, -104, -88, *[-87.5] * 11], dtype=np.float32)

    got = library(isa)("exponential")(x)

    assert ((got >= 0) & (got < 2e-38)).all()


@pytest.mark.parametrize("isa", FLAGS)
@pytest.mark.parametrize("name", ["logistic", "swish"])
def test_gates_are_right_however_far_from_zero(
    name: str, isa: str, library: Callable[[str], Callable[[str], Apply]]
) -> None:
    x = np.concatenate([np.linspace(-20, 20, 4096), np.linspace(-1000, 1000, 4096), [-1e30, 1e30] * 8])
    logistic = np.exp(-np.logaddexp(0, -x))
    wanted = logistic if name == "logistic" else x.astype(np.float32) * logistic

    np.testing.assert_allclose(library(isa)(name)(x), wanted, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("isa", FLAGS)
def test_only_the_leading_lanes_are_read_and_written(
    isa: str, library: Callable[[str], Callable[[str], Apply]]
) -> None:
    x = np.arange(1, LANES + 1, dtype=np.float32)
    for count in range(LANES + 1):
        kept = np.arange(LANES) < count
        control = np.zeros(LANES, dtype=np.float32)
        control[0] = count

        assert np.array_equal(library(isa)("leading")(x, control), np.where(kept, x, -7))
        if count < LANES:
            control[1] = 1
            assert np.array_equal(library(isa)("leading")(x, control), np.where(kept, x, 0))
