"""The trainable MTP module, unrolled from every position of a text in the same way as it drafts when serving.

The input of step 1 is the model's true states; that of step j > 1 its own states of the previous step, **after**
shared_head.norm. Its cache holds the true pairs up to the start, and its own entries after. Does not know losses, data
or DeepSpeed.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from outrider.workers.model.rotary import rotary_table
from outrider.workers.training.distill.layers import (
    DistilledAttention,
    DistilledLinear,
    DistilledMlp,
    DistilledMoE,
    DistilledRmsNorm,
)
from outrider.workers.training.unrolled import attend_unrolled
from outrider.workers.types.model.model_config import ModelConfig


class DistilledSharedHead(nn.Module):
    """The norm before the head. Its output is the state that recursion recycles."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = DistilledRmsNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.norm(x))


class TrainableMtp(nn.Module):
    """The MTP module of a model that has one. Its parameters are empty until they are loaded (names.py)."""

    def __init__(self, config: ModelConfig, expert_group_size: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.config = config
        self.enorm, self.hnorm = DistilledRmsNorm(hidden, eps), DistilledRmsNorm(hidden, eps)
        self.eh_proj = DistilledLinear(2 * hidden, hidden)
        self.input_layernorm, self.post_attention_layernorm = (
            DistilledRmsNorm(hidden, eps),
            DistilledRmsNorm(hidden, eps),
        )
        self.self_attn = DistilledAttention(config)
        routed = config.is_moe_layer(config.num_hidden_layers)
        self.mlp: DistilledMoE | DistilledMlp = (
            DistilledMoE(config, expert_group_size) if routed else DistilledMlp(hidden, config.intermediate_size)
        )
        self.shared_head = DistilledSharedHead(config)
        self._rotary: Tensor | None = None  # created when needed

    def unrolled(self, embedded: Tensor, states: Tensor, depth: int) -> Iterator[Tensor]:
        """The states after steps 1..depth from every start i, each [batch, n, hidden].

        `states` [batch, n, hidden] are the model's after its final norm; `embedded` [batch, n + depth, hidden] the
        text's embeddings, whose entry i + j is fed to step j. Step j's state predicts the token at i + j + 1.
        """
        length = states.shape[1]
        rotary = self._rotation(length + depth, states.device)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for step in range(1, depth + 1):
            x = self.eh_proj(torch.cat([self.enorm(embedded[:, step : step + length]), self.hnorm(states)], -1))
            rotation = rotary[step - 1 : step - 1 + length]
            query, key, value = self.self_attn.project(self.input_layernorm(x), rotation)
            keys.append(key)
            values.append(value)
            x = x + self.self_attn.combine(attend_unrolled(query, keys, values, self.config.softmax_scale))
            x = x + self.mlp(self.post_attention_layernorm(x))
            states = self.shared_head(x)
            yield states

    def set_router_bias(self, bias: Tensor) -> None:
        """The router's balancing bias, float32 [experts], which is never trained."""
        assert isinstance(self.mlp, DistilledMoE), "a dense module has no router"
        self.mlp.gate.bias = bias

    @property
    def is_routed(self) -> bool:
        return isinstance(self.mlp, DistilledMoE)

    def _rotation(self, length: int, device: torch.device) -> Tensor:
        """Cosines and signed sines of positions 0..length-1, [length, 2, rope]."""
        if self._rotary is None:
            self._rotary = torch.from_numpy(rotary_table(self.config)).to(device)
        return self._rotary[:length]
