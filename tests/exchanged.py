"""How many collectives a round makes, and how many bytes a rank gives to them: what is measured, worked out beforehand.

Worked out apart from the planner, which counts a whole stage: what ranks exchange is held against both.
"""

from collections.abc import Iterable

from outrider.workers.parallel.collectives.traffic import Traffic
from outrider.workers.parallel.shard import Shard
from outrider.workers.types.model.model_config import ModelConfig

Volume = dict[str, Traffic]  # by purpose; no seconds
_COUNTS = "counts of rows"


def stage_volume(
    model: ModelConfig,
    shard: Shard,
    layers: range,
    *,
    rows: int,
    sampled: int,
    all_rows: int,
    value_bytes: int = 4,
    lanes: int = 1,
) -> Volume:
    """Of one round without drafts, on one rank: it has `rows` rows, and its data group samples at most `sampled`.

    `all_rows` are those of all data groups. What goes to spread experts and back depends on the routing: its bytes are
    the mean over the ranks of a stage, if every row's experts were as likely here as there. `lanes`: 2 where one
    computes while the other exchanges, each with some of the rows.
    """
    ranks = shard.datas * shard.tensors
    parts: list[Volume] = []
    if layers.start == 0:
        parts.append(_columns(shard, {"embeddings": model.hidden_size}, rows, value_bytes))
    for layer in layers:
        parts.append(_attention(model, shard, rows, value_bytes))
        if model.is_moe_layer(layer):
            parts.append(_experts(model, shard, rows, all_rows, value_bytes))
        else:
            widths = {"inner activations": model.intermediate_size, "layer outputs": model.hidden_size}
            parts.append(_columns(shard, widths, rows, value_bytes))
    parts = [_in_lanes(part, lanes) for part in parts]
    if layers.stop == model.num_hidden_layers and ranks > 1:
        parts.append({"logits": Traffic(1, sampled * shard.vocabulary(model.vocab_size).widest * 4)})
    return _added(parts)


def _attention(model: ModelConfig, shard: Shard, rows: int, value_bytes: int) -> Volume:
    widths = {
        "latents": (model.q_lora_rank or 0) + model.head_dim_latent,
        "heads": model.num_attention_heads * model.v_head_dim,
        "attention outputs": model.hidden_size,
    }
    return _columns(shard, widths, rows, value_bytes)


def _experts(model: ModelConfig, shard: Shard, rows: int, all_rows: int, value_bytes: int) -> Volume:
    shared = model.n_shared_experts * model.moe_intermediate_size
    outputs = _columns(shard, {"layer outputs": model.hidden_size}, rows, value_bytes)
    if shard.spread:
        inner = _columns(shard, {"inner activations": shared} if shared else {}, rows, value_bytes)
        return _added([outputs, inner, _spread(model, shard, all_rows, value_bytes)])
    widest = max(shard.cut(width).widest for width in (model.moe_intermediate_size, shared))
    pairs = rows * (model.num_experts_per_tok + (shared > 0))
    if shard.tensors == 1:
        return outputs
    return _added([outputs, {"inner activations": Traffic(1, pairs * widest * value_bytes)}])


def _spread(model: ModelConfig, shard: Shard, all_rows: int, value_bytes: int) -> Volume:
    ranks = shard.datas * shard.tensors
    pairs = all_rows * model.num_experts_per_tok / ranks
    elsewhere = pairs * model.hidden_size * value_bytes * (1 - 1 / ranks)
    volume = {"expert outputs": Traffic(1, round(elsewhere))}
    if shard.datas == 1:
        return volume
    chosen = 1 - (1 - 1 / ranks) ** model.num_experts_per_tok  # that a row has an expert on a given rank
    packet = model.hidden_size * value_bytes + model.num_experts_per_tok * 4
    sent = round(all_rows / shard.datas * (shard.datas - 1) * chosen * packet)
    return {**volume, _COUNTS: Traffic(1, ranks * 8), "rows to experts": Traffic(1, sent)}


def _in_lanes(volume: Volume, lanes: int) -> Volume:
    """Of rows in so many lanes: each exchanges its own rows, and says how many it sends."""
    return {
        purpose: Traffic(lanes * each.count, each.bytes * (lanes if purpose == _COUNTS else 1))
        for purpose, each in volume.items()
    }


def _columns(shard: Shard, widths: dict[str, int], rows: int, value_bytes: int) -> Volume:
    """Slices of so many columns; nothing is exchanged by a tensor group of one, or for no rows."""
    if shard.tensors == 1 or not rows:
        return {}
    return {purpose: Traffic(1, rows * shard.cut(width).widest * value_bytes) for purpose, width in widths.items()}


def _added(parts: Iterable[Volume]) -> Volume:
    total: Volume = {}
    for part in parts:
        for purpose, traffic in part.items():
            total[purpose] = total.get(purpose, Traffic()) + traffic
    return total
