"""Every drafter is lossless: the text is the plainest run's, whoever drafts, how deep, in whatever company.

And a separate model's cache is right: scout drafting for itself is never wrong, through prefix hits and preemption.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import random_config, write_checkpoint
from safetensors.torch import load_file, save_file

from outrider import LLM, SamplingParams
from outrider.workers.config import resolve_model
from outrider.workers.types.errors import CheckpointError

CACHE = 256 << 20
DRAFTERS = ("mtp", "lookup", "draft_model", "auto")
SAMPLINGS: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0.0}, "drawn": {"temperature": 1.0}}


@pytest.fixture(scope="module")
def few_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scout's first layers as a model of their own: a cheap drafter that is often wrong."""
    path, scout = tmp_path_factory.mktemp("few-layers"), resolve_model("scout")
    config = json.loads((scout / "config.json").read_text())
    layers = 3
    kept = {
        name: tensor
        for name, tensor in load_file(scout / "model.safetensors").items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < layers
    }
    (path / "config.json").write_text(
        json.dumps({**config, "num_hidden_layers": layers, "num_nextn_predict_layers": 0})
    )
    save_file(kept, path / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(scout / name, path)
    return path


@pytest.fixture(scope="module")
def one_stage(few_layers: Path) -> Iterator[LLM]:
    with LLM("scout", kv_cache_memory_bytes=CACHE, draft_model=str(few_layers)) as llm:
        yield llm


@pytest.fixture(scope="module")
def two_stages(few_layers: Path) -> Iterator[LLM]:
    settings: dict[str, Any] = {"pipeline_parallel_size": 2, "kv_cache_memory_bytes": CACHE}
    with LLM("scout", draft_model=str(few_layers), **settings) as llm:
        yield llm


def _prompts(llm: LLM) -> list[list[int]]:
    """Held-out code and prose, and a text that repeats itself, which lookup drafts for."""
    texts = json.loads((Path(__file__).parents[2] / "cluster" / "client" / "prompts.json").read_text())
    assert llm.tokenizer is not None
    encode = llm.tokenizer.encode
    return [encode(texts["code"][0]), encode(texts["prose"][1]), encode(texts["code"][2]) * 3]


def _texts(llm: LLM, sampling: str, *, together: bool, tokens: int = 24, **speculation: Any) -> list[list[int]]:
    prompts = _prompts(llm)
    params = [
        SamplingParams(seed=50 + i, max_tokens=tokens, ignore_eos=True, **SAMPLINGS[sampling], **speculation)
        for i in range(len(prompts))
    ]
    batches = [(prompts, params)] if together else [([p], [q]) for p, q in zip(prompts, params, strict=True)]
    return [out.outputs[0].token_ids for some, own in batches for out in llm.generate(some, own)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_text_is_the_same_whoever_drafts(one_stage: LLM, sampling: str) -> None:
    """The repeats hit the prefix cache, with the drafters' entries in it."""
    expected = _texts(one_stage, sampling, together=False, speculation="off")

    for drafter in DRAFTERS:
        for speculation, together in ((1, True), (4, False), ("auto", True)):
            texts = _texts(one_stage, sampling, together=together, speculation=speculation, drafter=drafter)
            assert texts == expected, (drafter, speculation, together)


FEATURES: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    "banned": {"bad_words": ["return", "the", "self."], "logit_bias": {10: 2.0}},
    "cut": {"top_p": 0.9, "top_k": 40, "min_p": 0.02, "logprobs": 1},
    "json": {"structured_outputs": {"json": {"type": "object"}}},
    "grammar": {"structured_outputs": {"grammar": 'start: (WORD " ")+\nWORD: /[a-z]+/'}, "temperature": 0.0},
    "several": {"n": 2, "stop": ["e", "("], "min_tokens": 4},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_every_sampling_feature_is_the_same_whoever_drafts(one_stage: LLM, feature: str) -> None:
    """What is looked up may break a rule; then it does not stand."""
    seen = []
    for own in ({"speculation": "off"}, *({"speculation": 4, "drafter": name} for name in DRAFTERS)):
        params = SamplingParams(**{"temperature": 0.8, "seed": 3, "max_tokens": 24, **FEATURES[feature], **own})  # type: ignore[arg-type]  # a table
        outputs = one_stage.generate(_prompts(one_stage), params)
        seen.append([(one.token_ids, one.text, one.finish_reason) for out in outputs for one in out.outputs])

    assert all(each == seen[0] for each in seen), feature


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_text_is_the_same_at_every_depth_on_one_and_two_stages(
    one_stage: LLM, two_stages: LLM, sampling: str, together: bool
) -> None:
    expected = _texts(one_stage, sampling, together=False, tokens=48, speculation="off")

    for llm in (one_stage, two_stages):
        for drafter in DRAFTERS:
            for speculation in (1, 2, 5, 16, "auto"):
                own = {"speculation": speculation, "drafter": drafter}
                assert _texts(llm, sampling, together=together, tokens=48, **own) == expected, (llm, own)


@pytest.mark.parametrize(
    "drafter",
    [pytest.param(name, marks=[] if name in ("auto", "draft_model") else pytest.mark.full) for name in DRAFTERS],
)
def test_preemption_changes_nothing_but_the_order_of_work(few_layers: Path, drafter: str) -> None:
    texts = []
    for cache, chunk in ((CACHE, 2048), (8 << 20, 24)):
        settings: dict[str, Any] = {
            "max_model_len": 96,
            "max_num_batched_tokens": chunk,
            "kv_cache_memory_bytes": cache,
        }
        with LLM("scout", draft_model=str(few_layers), **settings) as llm:
            prompts = [list(range(10 + i, 40 + i)) for i in range(6)]
            params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, speculation=3, drafter=drafter)
            texts.append([out.outputs[0].token_ids for out in llm.generate(prompts, params)])

    assert texts[0] == texts[1]


def _judged(llm: LLM, prompts: list[list[int]], temperature: float) -> tuple[int, int, int]:
    """Drafts accepted, drafts verified, and prompt tokens found in the cache, with scout drafting for itself."""
    params = [
        SamplingParams(
            temperature=temperature, seed=i, max_tokens=30, ignore_eos=True, speculation=3, drafter="draft_model"
        )
        for i in range(len(prompts))
    ]
    outputs = llm.generate(prompts, params)
    summaries = [out.outputs[0].speculation for out in outputs]
    assert all(summary is not None for summary in summaries)
    accepted, drafted = (sum(getattr(s, name) for s in summaries) for name in ("accepted", "drafted"))
    return accepted, drafted, sum(out.num_cached_tokens for out in outputs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_drafts_for_itself_is_never_wrong(temperature: float) -> None:
    """Through prompts in chunks, prefix hits and other companions: any wrong entry of its cache would show."""
    prompts = [list(range(20 + i, 90 + i)) for i in range(4)]
    with LLM("scout", draft_model="scout", kv_cache_memory_bytes=CACHE, max_num_batched_tokens=40) as llm:
        alone = _judged(llm, prompts[:1], temperature)
        again = _judged(llm, [prompts[0], *prompts], temperature)

    assert alone[0] == alone[1] > 0
    assert again[0] == again[1] > 60
    assert again[2] >= 64


def test_a_model_that_drafts_for_itself_is_never_wrong_after_preemption() -> None:
    prompts = [list(range(20 + i, 50 + i)) for i in range(6)]
    settings: dict[str, Any] = {"max_model_len": 96, "kv_cache_memory_bytes": 12 << 20, "max_num_batched_tokens": 64}
    with LLM("scout", draft_model="scout", **settings) as llm:
        accepted, drafted, _ = _judged(llm, prompts, 0.0)

    assert accepted == drafted > 100


def test_lookup_drafts_for_a_checkpoint_without_mtp_weights(few_layers: Path) -> None:
    texts, accepted = [], []
    for settings in ({"speculation": "off"}, {}, {"drafter": "lookup", "speculation": 4}):
        with LLM(str(few_layers), kv_cache_memory_bytes=CACHE, **settings) as llm:  # type: ignore[arg-type]  # a table
            out = llm.generate([[30, 31, 32]], SamplingParams(temperature=0, max_tokens=80, ignore_eos=True))[0]
        texts.append(out.outputs[0].token_ids)
        assert out.outputs[0].speculation is not None
        accepted.append(out.outputs[0].speculation.accepted)

    assert texts[0] == texts[1] == texts[2]
    assert accepted[0] == 0
    assert accepted[2] > 20  # greedy text of a cut model loops; of itself it drafts as time allows


def test_a_drafter_that_is_not_loaded_is_refused_by_name() -> None:
    with (
        LLM("scout", kv_cache_memory_bytes=CACHE, drafter="lookup") as llm,
        pytest.raises(ValueError, match=r"drafter must be one that this engine loaded \(auto, lookup\), got 'mtp'"),
    ):
        llm.generate([[5]], SamplingParams(drafter="mtp"))
    with pytest.raises(ValueError, match='drafter="draft_model" needs draft_model'):
        LLM("scout", drafter="draft_model")


def test_a_draft_model_with_other_tokens_is_refused_by_name(tmp_path: Path, few_layers: Path) -> None:
    write_checkpoint(tmp_path / "other", random_config(1, vocab_size=300))
    with pytest.raises(
        CheckpointError, match=r"draft_model .*other has a vocabulary of 300, and the model one of 4096"
    ):
        LLM("scout", draft_model=str(tmp_path / "other"))

    shutil.copytree(few_layers, tmp_path / "renamed")
    file = tmp_path / "renamed" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[300:302]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"must have the model's own tokenizer: token \d+ is"):
        LLM("scout", draft_model=str(tmp_path / "renamed"))
    with pytest.raises(CheckpointError, match="unknown model 'nowhere'"):
        LLM("scout", draft_model="nowhere")
