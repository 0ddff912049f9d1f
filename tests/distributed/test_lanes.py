"""Two lanes of a stage, one computing while the other exchanges over gloo: the bits of one rank with one lane."""

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from checkpoints import random_config, write_checkpoint
from distributed.lanes_partner import main
from distributed.partners import Partner
from exchanged import stage_volume

from outrider import LLM, SamplingParams
from outrider.workers.config import ParallelConfig, resolve_model
from outrider.workers.parallel.shard import Shard
from outrider.workers.types.model.model_config import ModelConfig

CACHE = 64 << 20
SMALL = {
    "hidden_size": 80, "intermediate_size": 96, "num_hidden_layers": 3, "first_k_dense_replace": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 40, "vocab_size": 97,
}  # fmt: skip
SPLITS = {  # data, tensor, experts
    "TP2": (1, 2, 1),
    "TP2+EP2": (1, 2, 2),
    "DP2+EP2": (2, 1, 2),
    "DP2xTP2+EP4": (2, 2, 4),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_checkpoint(folder, random_config(3, **SMALL), seed=3)
    return folder


def _said(model: Path, layout: str, kernels: str, *more: str) -> list[dict[str, Any]]:
    """By each rank; nothing by one that died."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, tensor, experts = SPLITS[layout]
    what = [str(port), str(model), kernels, str(data), str(tensor), str(experts), *more]
    ranks = [Partner(main, str(rank), *what) for rank in range(data * tensor)]
    try:
        said = [rank.stdout.readline() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [json.loads(line) if line else {} for line in said]


def _assert_bits_of_one_rank(model: Path, layout: str, kernels: str) -> None:
    said = _said(model, layout, kernels)

    for rank in said:
        assert rank["differences"] == []
        assert rank["two_lanes"] == (2 if layout == "DP2xTP2+EP4" else 5), "or equality says little"
        assert rank["threads"] == []
        assert rank["order"][:2] == [[0, rank["order"][0][1]], [1, rank["order"][0][1]]], "lanes take turns"
    data, tensor, _ = SPLITS[layout]
    for first in range(0, data * tensor, tensor):
        orders = [rank["order"] for rank in said[first : first + tensor]]
        assert orders == orders[:1] * tensor, "ranks of a tensor group exchange the same, in the same order"


@pytest.mark.parametrize(("layout", "kernels"), [("TP2+EP2", "float32"), ("DP2+EP2", "torch")])
def test_states_and_caches_have_the_bits_of_one_lane(small: Path, layout: str, kernels: str) -> None:
    _assert_bits_of_one_rank(small, layout, kernels)


@pytest.mark.full
@pytest.mark.parametrize("kernels", ["torch", "float32", "int8"])
@pytest.mark.parametrize("layout", SPLITS)
def test_so_they_have_on_every_split(small: Path, layout: str, kernels: str) -> None:
    _assert_bits_of_one_rank(small, layout, kernels)


@pytest.mark.full
@pytest.mark.parametrize("kernels", ["torch", "float32", "bf16"])
@pytest.mark.parametrize("layout", ["TP2", "TP2+EP2", "DP2+EP2"])
def test_and_so_has_scout(layout: str, kernels: str) -> None:
    _assert_bits_of_one_rank(resolve_model("scout"), layout, kernels)


@pytest.mark.full
@pytest.mark.parametrize("layout", ["TP2", "TP2+EP2", "DP2+EP2"])
def test_two_lanes_exchange_what_was_worked_out_beforehand(small: Path, layout: str) -> None:
    data, tensor, experts = SPLITS[layout]
    model = ModelConfig.load(small)
    parallel = ParallelConfig(data_parallel_size=data, tensor_parallel_size=tensor, expert_parallel_size=experts)
    one, two = (
        stage_volume(model, Shard.of(parallel, 0, model), range(3), rows=8, sampled=0, all_rows=16, lanes=lanes)
        for lanes in (1, 2)
    )

    for rank in _said(small, layout, "float32"):
        found = Counter(purpose for _, purpose in rank["order"])
        rounds = {purpose: 5 * two[purpose].count + one[purpose].count for purpose in one if purpose != "logits"}
        assert found == rounds, "five rounds of two lanes, and one of one"


@pytest.mark.parametrize("number", [pytest.param("7", marks=pytest.mark.full), "8"])  # first lane, second
def test_a_rank_that_dies_in_either_lane_ends_both_and_is_named(small: Path, number: str) -> None:
    left, gone = _said(small, "TP2", "float32", number)

    assert gone == {}
    assert left["error"].startswith("a rank of ranks 0..1 is gone or late: the exchange of ")
    assert left["error"].endswith(" in round 0")
    assert left["threads"] == []


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process started by Python's name, as ranks are, finds itself on a machine of its own."""
    name, boot_id = tmp_path / "python", "/proc/sys/kernel/random/boot_id"
    inside = (
        f'cat /proc/sys/kernel/random/uuid > "$0.$$" && mount --bind "$0.$$" {boot_id} && exec {sys.executable} "$@"'
    )
    name.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{inside}' {name} \"$@\"\n")
    name.chmod(0o755)
    if subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("needs leave to mount")
    monkeypatch.setattr(sys, "executable", str(name))


@pytest.mark.full
@pytest.mark.parametrize(
    "sizes",
    [
        {"tensor_parallel_size": 2, "expert_parallel_size": 2},
        {"data_parallel_size": 2, "expert_parallel_size": 2},
        {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    ],
    ids=str,
)
def test_engines_on_several_machines_say_the_same_with_two_lanes_as_one_process(
    sizes: dict[str, int], request: pytest.FixtureRequest
) -> None:
    with LLM("scout", kv_cache_memory_bytes=CACHE) as alone:
        wanted = _texts(alone, "off")
    request.getfixturevalue("machines")
    carried = []
    for overlapping in (None, False):
        settings = {"enable_dbo": overlapping, "dbo_token_threshold": 2, **sizes}
        with LLM("scout", kv_cache_memory_bytes=CACHE, **settings) as llm:
            assert _texts(llm, 3) == wanted
            time.sleep(2.5)  # statuses come once a second
            status = llm.status()[-1]
            assert status.carriers == "gloo"
            carried.append(sum(traffic.count for traffic in status.traffic.values()))
    assert carried[0] > 1.5 * carried[1], "nearly every round went as two lanes"


def _texts(llm: LLM, speculation: str | int) -> list[Any]:
    params = [
        SamplingParams(temperature=n % 2, seed=n, max_tokens=16, logprobs=5, speculation=speculation) for n in range(8)
    ]
    prompts = json.loads((Path(__file__).parents[2] / "cluster" / "client" / "prompts.json").read_text())["code"][:8]
    said = [output.outputs[0] for output in llm.generate(prompts, params)]
    return [(each.token_ids, [{n: p.logprob for n, p in row.items()} for row in each.logprobs or ()]) for each in said]


@pytest.mark.full
def test_ranks_that_share_memory_are_told_apart(capfd: pytest.CaptureFixture[str]) -> None:
    with LLM("scout", kv_cache_memory_bytes=CACHE, tensor_parallel_size=2, enable_dbo=True) as llm:
        carrier = llm.status()[0].carriers
    said = capfd.readouterr().err

    refused = "enable_dbo: ranks 0..1 have no asynchronous exchanges (transport: shared memory)"
    assert (refused in said) is (carrier == "shared memory")
