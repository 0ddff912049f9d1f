"""The shape of a trainable DeepSeek-V3 network, and scout's. Torch-free."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Sizes in the checkpoint's own words; the defaults are scout's. One MTP module, one expert group, no YaRN."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 12
    first_k_dense_replace: int = 1
    intermediate_size: int = 768
    num_attention_heads: int = 4
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 64
    v_head_dim: int = 64
    q_lora_rank: int = 128
    kv_lora_rank: int = 512
    n_routed_experts: int = 8
    n_shared_experts: int = 1
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 128
    routed_scaling_factor: float = 2.0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 4096

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim
