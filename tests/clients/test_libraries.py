"""Libraries that need an environment of their own, against a served scout.

The others are in tests/gateway/http/test_clients.py.
"""

import json
import shutil

import pytest
from clients.environments import ROOT, SCOUT, SCRIPTS, output_of, program
from gateway.http.served import MODEL, Served

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


def test_llama_index_chats_completes_and_calls_a_tool(scout: Served) -> None:
    said = json.loads(output_of(program("llama-index"), str(SCRIPTS / "llama_index_chat.py"), scout.url, MODEL))

    assert said["chat"]
    assert said["chat"] == said["chat_streamed"]
    assert said["completion"]
    assert said["completion"] == said["completion_streamed"]
    (call,) = said["calls"]
    assert call["name"] == "add"
    assert {type(call["arguments"][name]) for name in ("a", "b")} == {int}


def test_the_ai_sdk_chats_and_calls_a_tool(scout: Served) -> None:
    node, installed = shutil.which("node"), ROOT / ".venv-clients" / "ai-sdk"
    if node is None or not (installed / "node_modules").is_dir():
        pytest.skip("node or @ai-sdk/openai-compatible is not installed: make test-clients installs the latter")
    script = shutil.copy(ROOT / "tests" / "clients" / "ai-sdk" / "chat.mjs", installed)  # modules are found beside it

    said = json.loads(output_of(node, script, scout.url, MODEL))

    assert said["whole"]
    assert said["whole"] == said["streamed"]
    assert (said["finishReason"], said["usage"], said["streamedUsage"]) == ("length", 20, 20)
    (call,) = said["calls"]
    assert call["name"] == "weather"
    assert len(call["input"]["city"]) <= 12
    assert call["input"]["days"] in range(10)


def test_lm_evals_log_likelihoods_are_those_of_transformers(scout: Served) -> None:
    script = str(SCRIPTS / "lm_eval_likelihoods.py")
    said = json.loads(output_of(program("lm-eval"), script, scout.url, MODEL, str(SCOUT)).splitlines()[-1])

    assert len(said["served"]) == len(said["transformers"]) == 5
    for (served, served_greedy), (reference, greedy) in zip(said["served"], said["transformers"], strict=True):
        assert served == pytest.approx(reference, abs=1e-4)
        assert served_greedy == greedy
    assert any(greedy for _, greedy in said["transformers"])
    assert said["text"]
