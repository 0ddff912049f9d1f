"""The exported checkpoint, read by transformers and by our own loader."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from outrider.workers.training.export import export, load_export
from outrider.workers.training.network import Network
from outrider.workers.training.sampling import continuations
from outrider.workers.training.shape import ModelSizes

ROOT = Path(__file__).parents[4]
SCOUT = ROOT / "models" / "scout"

TINY = ModelSizes(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=3,
    intermediate_size=48,
    num_attention_heads=2,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=12,
    q_lora_rank=16,
    kv_lora_rank=24,
    n_routed_experts=4,
    moe_intermediate_size=16,
)


def exported(folder: Path, dtype: torch.dtype = torch.float32) -> Network:
    torch.manual_seed(0)
    network = Network(TINY)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    for router in network.routers():
        torch.nn.init.normal_(router.e_score_correction_bias, std=0.1)
    export(network, folder, dtype)
    return network


@torch.no_grad()
def test_transformers_computes_the_same_logits_from_the_export(tmp_path: Path) -> None:
    network = exported(tmp_path / "model")
    tokens = torch.randint(TINY.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)(tokens).logits
    ours = network.logits(network.hidden_states(tokens)[0])

    assert (ours - theirs).abs().max() < 1e-4
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def test_an_export_loads_back_to_the_same_network(tmp_path: Path) -> None:
    network = exported(tmp_path / "model")

    loaded = load_export(tmp_path / "model", TINY)

    pairs = zip(network.state_dict().values(), loaded.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_mtp_layer_has_every_tensor_of_deepseeks_layout_and_the_bias_stays_float32(tmp_path: Path) -> None:
    exported(tmp_path / "model", torch.bfloat16)

    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as tensors:
        names = {name.removeprefix("model.layers.3.") for name in tensors.keys() if "layers.3." in name}  # noqa: SIM118
        bias = tensors.get_tensor("model.layers.3.mlp.gate.e_score_correction_bias")
        router = tensors.get_tensor("model.layers.3.mlp.gate.weight")
        head, shared = (tensors.get_tensor(n) for n in ("lm_head.weight", "model.layers.3.shared_head.head.weight"))

    expected = {"enorm", "hnorm", "eh_proj", "embed_tokens", "shared_head.norm", "shared_head.head", "input_layernorm"}
    assert {f"{name}.weight" for name in expected} <= names
    assert {f"mlp.experts.{e}.{kind}_proj.weight" for e in range(4) for kind in ("gate", "up", "down")} <= names
    assert (bias.dtype, router.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(head, shared)


def test_the_settings_are_spelled_as_in_deepseeks_own_config(tmp_path: Path) -> None:
    exported(tmp_path / "model", torch.bfloat16)

    settings = json.loads((tmp_path / "model" / "config.json").read_text())

    assert settings["architectures"] == ["DeepseekV3ForCausalLM"]
    assert (settings["topk_method"], settings["scoring_func"]) == ("noaux_tc", "sigmoid")
    assert (settings["rope_theta"], settings["rope_scaling"], settings["torch_dtype"]) == (10000.0, None, "bfloat16")
    assert settings["num_nextn_predict_layers"] == 1


@torch.no_grad()
def test_transformers_reads_the_bundled_model_as_we_do() -> None:
    prompts = [texts[0] for texts in json.loads((ROOT / "cluster" / "client" / "prompts.json").read_text()).values()]
    tokenizer = AutoTokenizer.from_pretrained(SCOUT)
    theirs = AutoModelForCausalLM.from_pretrained(SCOUT, dtype=torch.float32)
    ours = load_export(SCOUT, ModelSizes())

    for prompt in prompts:
        tokens = torch.tensor([tokenizer.encode(prompt)])
        greedy = continuations(ours, tokens, 16, temperature=0.0, noise=None)
        expected = theirs(tokens).logits

        assert (ours.logits(ours.hidden_states(tokens)[0]) - expected).abs().max() < 1e-4
        assert (
            greedy.tolist() == theirs.generate(tokens, max_new_tokens=16, min_new_tokens=16, do_sample=False).tolist()
        )
