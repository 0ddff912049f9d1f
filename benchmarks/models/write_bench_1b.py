"""Writes bench-1b: a random checkpoint of DeepSeek-V3's architecture, so large that reading weights rules its speed.

    python benchmarks/models/write_bench_1b.py DIRECTORY [--seed 0]

It has R1's proportions at a seventh of the width and a third of the depth: 20 layers (the first dense), hidden 1024,
16 heads with R1's own head sizes and latent cache, 64 experts in 8 groups of which 4 may be chosen, 8 experts a token
and 1 shared, one MTP layer. 1,173 M parameters, of which 68 M are the MTP layer's; in bfloat16 2.35 GB. A token reads
264 M of them (0.53 GB in bfloat16); tokens that choose different experts read up to 1,101 M together. Its tokenizer is
scout's, so that the same prompts do for both; its text means nothing, and its drafts are right by chance only.

The same seed gives the same bytes, however the weights are spread over files. One file's weights are in memory at once.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.results import ROOT

SCOUT = ROOT / "models" / "scout"
LAYERS_PER_FILE = 2
SHAPE = {
    "hidden_size": 1024,
    "num_hidden_layers": 20,
    "first_k_dense_replace": 1,
    "intermediate_size": 2560,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": 256,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "moe_intermediate_size": 256,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 8192,
}
Shapes = dict[str, tuple[int, ...]]


def mlp_shapes(prefix: str, width: int) -> Shapes:
    hidden = SHAPE["hidden_size"]
    return {
        f"{prefix}.gate_proj.weight": (width, hidden),
        f"{prefix}.up_proj.weight": (width, hidden),
        f"{prefix}.down_proj.weight": (hidden, width),
    }


def attention_shapes(prefix: str) -> Shapes:
    hidden, heads = SHAPE["hidden_size"], SHAPE["num_attention_heads"]
    rank, query_rank, rope = SHAPE["kv_lora_rank"], SHAPE["q_lora_rank"], SHAPE["qk_rope_head_dim"]
    nope, value = SHAPE["qk_nope_head_dim"], SHAPE["v_head_dim"]
    return {
        f"{prefix}.q_a_proj.weight": (query_rank, hidden),
        f"{prefix}.q_a_layernorm.weight": (query_rank,),
        f"{prefix}.q_b_proj.weight": (heads * (nope + rope), query_rank),
        f"{prefix}.kv_a_proj_with_mqa.weight": (rank + rope, hidden),
        f"{prefix}.kv_a_layernorm.weight": (rank,),
        f"{prefix}.kv_b_proj.weight": (heads * (nope + value), rank),
        f"{prefix}.o_proj.weight": (hidden, heads * value),
    }


def layer_shapes(layer: int) -> Shapes:
    prefix, hidden, experts = f"model.layers.{layer}", SHAPE["hidden_size"], SHAPE["n_routed_experts"]
    shapes: Shapes = {
        f"{prefix}.input_layernorm.weight": (hidden,),
        f"{prefix}.post_attention_layernorm.weight": (hidden,),
    }
    shapes |= attention_shapes(f"{prefix}.self_attn")
    if layer < SHAPE["first_k_dense_replace"]:
        return shapes | mlp_shapes(f"{prefix}.mlp", SHAPE["intermediate_size"])
    shapes |= {f"{prefix}.mlp.gate.weight": (experts, hidden), f"{prefix}.mlp.gate.e_score_correction_bias": (experts,)}
    for name in ["shared_experts", *(f"experts.{expert}" for expert in range(experts))]:
        shapes |= mlp_shapes(f"{prefix}.mlp.{name}", SHAPE["moe_intermediate_size"])
    return shapes


def mtp_shapes(layer: int, vocabulary: int) -> Shapes:
    """The MTP layer's, with its copies of the embedding and the head, as R1 stores them."""
    prefix, hidden = f"model.layers.{layer}", SHAPE["hidden_size"]
    return layer_shapes(layer) | {
        f"{prefix}.enorm.weight": (hidden,),
        f"{prefix}.hnorm.weight": (hidden,),
        f"{prefix}.eh_proj.weight": (hidden, 2 * hidden),
        f"{prefix}.shared_head.norm.weight": (hidden,),
        f"{prefix}.embed_tokens.weight": (vocabulary, hidden),
        f"{prefix}.shared_head.head.weight": (vocabulary, hidden),
    }


def files(vocabulary: int) -> Iterator[Shapes]:
    """The shapes of each file's tensors."""
    hidden, layers = SHAPE["hidden_size"], SHAPE["num_hidden_layers"]
    yield {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    } | mtp_shapes(layers, vocabulary)
    for first in range(0, layers, LAYERS_PER_FILE):
        shapes: Shapes = {}
        for layer in range(first, min(first + LAYERS_PER_FILE, layers)):
            shapes |= layer_shapes(layer)
        yield shapes


def draw(name: str, shape: tuple[int, ...], seed: int, mtp_layer: int) -> torch.Tensor:
    """A tensor by its name: norms are one, the router's bias zero, and a matrix keeps the variance of its input."""
    if name.endswith("e_score_correction_bias"):
        return torch.zeros(shape, dtype=torch.float32)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    # the MTP layer's embedding and head are copies of the model's own
    name = {
        f"model.layers.{mtp_layer}.embed_tokens.weight": "model.embed_tokens.weight",
        f"model.layers.{mtp_layer}.shared_head.head.weight": "lm_head.weight",
    }.get(name, name)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    scale = 1.0 if name == "model.embed_tokens.weight" else shape[-1] ** -0.5
    return torch.randn(shape, generator=generator).mul_(scale).to(torch.bfloat16)


def write(directory: Path, seed: int) -> dict[str, int]:
    """Writes the checkpoint and returns what its index's metadata says."""
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((SCOUT / "config.json").read_text()) | SHAPE | {"routed_scaling_factor": 2.5}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(SCOUT / name, directory / name)
    parts = list(files(config["vocab_size"]))
    places: dict[str, str] = {}
    size = parameters = 0
    for number, shapes in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        tensors = {name: draw(name, shape, seed, SHAPE["num_hidden_layers"]) for name, shape in shapes.items()}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
        parameters += sum(tensor.numel() for tensor in tensors.values())
        print(f"{file}: {len(tensors)} tensors, {size / 1e9:.2f} GB so far")
    metadata = {"total_size": size, "total_parameters": parameters}
    index = {"metadata": metadata, "weight_map": dict(sorted(places.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return metadata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    metadata = write(args.directory, args.seed)
    print(f"{args.directory}: {metadata['total_parameters']:,} parameters, {metadata['total_size']:,} bytes")


if __name__ == "__main__":
    main()
