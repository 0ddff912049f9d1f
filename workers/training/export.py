"""Writes a trained network as a DeepSeek-V3 checkpoint: `python -m outrider.workers.training.export`."""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from outrider.workers.training.network import Network
from outrider.workers.training.shape import ModelSizes
from outrider.workers.training.tokenizer import save

_FIXED_SETTINGS: dict[str, object] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "ep_size": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "moe_layer_freq": 1,
    "n_group": 1,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 1,
    "rope_scaling": None,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "use_cache": True,
}


def checkpoint_tensors(network: Network, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The network's tensors under the checkpoint's names: experts unstacked, embedding and head duplicated for MTP."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        for part, value in named_parts(name, tensor):
            kept = torch.float32 if part.endswith("e_score_correction_bias") else dtype
            tensors[part] = value.detach().to(kept).clone()
    mtp = f"model.layers.{network.shape.num_hidden_layers}"
    tensors[f"{mtp}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[f"{mtp}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    return tensors


def named_parts(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """A stacked expert tensor as one tensor per expert; other tensors unchanged."""
    for kind in ("gate", "up", "down"):
        if name.endswith(f".experts_{kind}"):
            prefix = name.removesuffix(f"_{kind}")
            return [(f"{prefix}.{e}.{kind}_proj.weight", tensor[e]) for e in range(tensor.shape[0])]
    return [(name, tensor)]


def model_settings(shape: ModelSizes) -> dict[str, object]:
    """config.json in DeepSeek-V3's original spelling, which transformers, vLLM and llama.cpp read."""
    settings = _FIXED_SETTINGS | asdict(shape) | {"num_key_value_heads": shape.num_attention_heads}
    return dict(sorted(settings.items()))


def export(network: Network, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes weights and settings; each file is written to a temporary name and renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = model_settings(network.shape) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    generation = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "do_sample": True, "temperature": 0.8}
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        part = Path(name)
        save_file(checkpoint_tensors(network, dtype), part / "model.safetensors", metadata={"format": "pt"})
        (part / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        (part / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        for path in part.iterdir():
            path.chmod(0o644)
            path.replace(folder / path.name)


def load_export(folder: Path, shape: ModelSizes, dtype: torch.dtype = torch.float32) -> Network:
    """A network with the weights of an exported checkpoint, as the engine sees them."""
    tensors = load_file(folder / "model.safetensors")
    network = Network(shape, dtype)
    state = network.state_dict()
    for name, tensor in state.items():
        parts = [tensors[part] for part, _ in named_parts(name, tensor)]
        tensor.copy_(torch.stack(parts) if ".experts_" in name else parts[0])
    return network


def main() -> None:
    """Exports checkpoint.pt below --work with the tokenizer to --out."""
    parser = argparse.ArgumentParser(description="Write the demo model in DeepSeek-V3's layout.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    network = Network(ModelSizes())
    network.load_state_dict(torch.load(arguments.work / "checkpoint.pt", weights_only=True)["network"])
    export(network, arguments.out)
    save(Tokenizer.from_file(str(arguments.tokenizer / "tokenizer.json")), arguments.out)
    print(f"exported to {arguments.out}")


if __name__ == "__main__":
    main()
