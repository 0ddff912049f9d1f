"""How many drafts scout's own text accepts, by position.

A drafter that is fed the wrong state still drafts, only worse: no other test would notice.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider import LLM, SamplingParams

DEPTH = 4
# Of each draft, given that those before it were accepted: what was measured here, less a margin for other processors.
LEAST = {("code", 0.0): 0.84, ("prose", 0.0): 0.84, ("code", 0.8): 0.62, ("prose", 0.8): 0.66}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("scout", kv_cache_memory_bytes=256 << 20) as llm:
        yield llm


@pytest.mark.parametrize(("kind", "temperature"), LEAST)
def test_drafts_land_at_every_depth(llm: LLM, kind: str, temperature: float) -> None:
    prompts = json.loads((Path(__file__).parents[2] / "cluster" / "client" / "prompts.json").read_text())[kind][:8]
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=64, ignore_eos=True, speculation=DEPTH)

    accepted, drafted = [0] * DEPTH, [0] * DEPTH
    for out in llm.generate(prompts, params):
        summary = out.outputs[0].speculation
        assert summary is not None
        accepted = [a + b for a, b in zip(accepted, [*summary.accepted_per_position, *[0] * DEPTH], strict=False)]
        drafted = [a + b for a, b in zip(drafted, [*summary.drafted_per_position, *[0] * DEPTH], strict=False)]

    conditional = [a / max(1, b) for a, b in zip(accepted, [drafted[0], *accepted], strict=False)]
    assert min(conditional) >= LEAST[kind, temperature], conditional
