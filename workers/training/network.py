"""A trainable DeepSeek-V3 with one MTP module. Does no loading or saving; export.py knows the checkpoint's layout."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outrider.workers.training.layers import (
    RMSNorm,
    TrainableDecoderLayer,
    TrainableLinear,
    TrainableRouter,
    rotary_table,
)
from outrider.workers.training.shape import ModelSizes


class TrainableSharedHead(nn.Module):
    """The norm before the MTP module's use of the shared head. Its output is the recursion's next input."""

    def __init__(self, shape: ModelSizes) -> None:
        super().__init__()
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.norm(x))


class MtpLayer(TrainableDecoderLayer):
    """The Multi-Token-Prediction module: joins a state with the token that follows it, then is a decoder layer."""

    def __init__(self, shape: ModelSizes, dtype: torch.dtype) -> None:
        super().__init__(shape, dense=False, dtype=dtype)
        self.enorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps, dtype)
        self.hnorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps, dtype)
        self.eh_proj = TrainableLinear(2 * shape.hidden_size, shape.hidden_size)
        self.shared_head = TrainableSharedHead(shape)

    def join(self, embedding: Tensor, state: Tensor) -> Tensor:
        """The layer's input: embedding of t_{i+1} first, state h_i second (float32 [batch, tokens, hidden])."""
        return torch.as_tensor(self.eh_proj(torch.cat([self.enorm(embedding), self.hnorm(state)], -1))).float()


class TrainableDecoder(nn.Module):
    """Embedding, layers and final norm. The MTP module is the layer after the last, as in the checkpoint."""

    def __init__(self, shape: ModelSizes, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=1.0)
        layers = [
            TrainableDecoderLayer(shape, i < shape.first_k_dense_replace, dtype) for i in range(shape.num_hidden_layers)
        ]
        self.layers = nn.ModuleList([*layers, MtpLayer(shape, dtype)])
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps, torch.float32)


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean losses in nats a token, and how many tokens chose each expert in each layer."""

    main: Tensor
    mtp: Tensor
    loads: list[Tensor]


class Network(nn.Module):
    """DeepSeek-V3, trainable. Products run in `dtype`; parameters, residual stream, norms and losses are float32."""

    def __init__(self, shape: ModelSizes, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape = shape
        self.dtype = dtype
        self.model = TrainableDecoder(shape, dtype)
        self.lm_head = TrainableLinear(shape.hidden_size, shape.vocab_size)

    @property
    def mtp(self) -> MtpLayer:
        """The MTP module."""
        layer = self.model.layers[-1]
        assert isinstance(layer, MtpLayer)
        return layer

    def decoder_layers(self) -> list[TrainableDecoderLayer]:
        """The main model's layers, without the MTP module."""
        return [layer for layer in self.model.layers if isinstance(layer, TrainableDecoderLayer)][:-1]

    def routers(self) -> list[TrainableRouter]:
        """Every layer's router, the MTP module's last."""
        return [module for module in self.modules() if isinstance(module, TrainableRouter)]

    def compile_layers(self) -> None:
        """Compiles each layer and the loss in place; worth it from a few hundred steps on."""
        for layer in self.model.layers:
            layer.compile(dynamic=False)
        self.head_loss = torch.compile(self.head_loss, dynamic=False)  # type: ignore[method-assign]  # same call

    def rotary(self, start: int, end: int) -> Tensor:
        """The rotary table of the positions start..end-1."""
        return rotary_table(self.shape, torch.arange(start, end))

    def hidden_states(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """States after the final norm, float32 [batch, tokens, hidden], and the experts' loads by layer."""
        rotary = self.rotary(0, tokens.shape[1])
        x, loads = self.model.embed_tokens(tokens), []
        for layer in self.decoder_layers():
            x, load = layer(x, rotary)
            loads.append(load)
        return self.model.norm(x), loads

    def mtp_states(self, states: Tensor, next_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The MTP module's states after its shared_head.norm for the pairs (h_i, t_{i+1}), and its experts' load."""
        x = self.mtp.join(self.model.embed_tokens(next_tokens), states)
        x, load = self.mtp(x, self.rotary(0, next_tokens.shape[1]))
        return self.mtp.shared_head(x), load

    def logits(self, states: Tensor) -> Tensor:
        """Logits, float32, of states after a final norm or after shared_head.norm: both use the one head."""
        return torch.as_tensor(self.lm_head(states.to(self.dtype))).float()

    def head_loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats a token of the logits of `states` [batch, tokens, hidden]."""
        return F.cross_entropy(self.logits(states).flatten(0, -2), targets.flatten())

    def forward(self, tokens: Tensor) -> Losses:
        """Losses over tokens [batch, n + 2]: position i < n predicts t_{i+1}, and its MTP pair predicts t_{i+2}."""
        states, loads = self.hidden_states(tokens[:, :-2])
        drafts, mtp_load = self.mtp_states(states, tokens[:, 1:-1])
        main = self.head_loss(states, tokens[:, 1:-1])
        mtp = self.head_loss(drafts, tokens[:, 2:])
        return Losses(main, mtp, [load for load in [*loads, mtp_load] if load.numel()])
