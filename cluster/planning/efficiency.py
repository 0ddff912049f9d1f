"""Achievable shares of data sheet figures, from published measurements of single kernels and links.

They are not fitted to measurements of complete servers; docs/planning.md compares predictions with those.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Shares of data sheet figures, and times in seconds."""

    # DeepGEMM's own table (README of February 2025, H800), grouped and masked: 4 groups of 256 rows, 4096 x 7168: 2064
    # of 3350 GB/s; 1 group of 1024: 1233 of 1979 TFLOPS.
    weight_bandwidth: float = 0.62
    linear_flops: float = 0.62
    # FlashMLA's README (H800): 3000 of 3350 GB/s if memory-bound, 660 of 989 TFLOPS if compute-bound.
    cache_bandwidth: float = 0.90
    attention_flops: float = 0.667
    # One-shot all-reduce on 8 H100 (sgl-project/sglang pull request 2904): 5.9 us at 512 bytes, 33.8 us at 1 MiB, which
    # is 7 MiB read in 28 us: 262 of 450 GB/s.
    link: float = 0.58
    link_latency_s: float = 6e-6
    # DeepEP's low-latency kernels (H800, 400 Gb/s): 39 GB/s of 50 at 128 ranks. The time at 16 and 32 ranks
    # that bytes do not explain is 10 to 20 us.
    network: float = 0.78
    exchange_latency_s: float = 10e-6
    # The values below are assumed. Collectives over nodes: tens of microseconds, as is usual for NCCL.
    network_latency_s: float = 40e-6
    # Kernels per layer, with a fused all-reduce within a node. tests/gpu/test_rounds.py counts them.
    dense_launches: int = 11
    moe_launches: int = 13
    # More per MoE layer if rows are sent to experts of other data groups. tests/gpu/test_spread_experts.py counts them.
    dispatch_launches: int = 29
    # The same if the GPUs of a stage access each other's memory; such rounds run in CUDA graphs.
    peer_dispatch_launches: int = 7
    # Overhead per kernel in a CUDA graph, in addition to the time for bytes and operations; and outside of graphs,
    # where the host launches each. Rounds with AllToAll run outside.
    launch_s: float = 3e-6
    eager_launch_s: float = 5e-6
    # Scheduling, sampling and sending results; most of it overlaps with the previous round.
    round_overhead_s: float = 0.5e-3
    # Load of the fullest rank / mean, after balancing: 1.07 to 1.45 (EPLB on Zipf loads of 0.6 and 1.0).
    expert_imbalance: float = 1.2
    # Whether a batch is split in halves, so that one computes while the other communicates.
    overlap: bool = True
    # Device memory for the driver's context, the communication library and graphs.
    runtime_bytes: int = 3 * 1024**3
    # Share of the memory left by weights and buffers that the cache gets (as in workers/engine/execution/memory.py).
    cache_share: float = 0.9
    # Names of the fields that were measured on outrider's kernels (basis.py).
    measured: tuple[str, ...] = ()
    measured_on: str = ""

    def layer_launches(self, *, moe: bool, dispatched: bool = False, peers: bool = False) -> int:
        """`dispatched`: its rows are sent to experts of other data groups; `peers`: over memory that GPUs share."""
        more = self.peer_dispatch_launches if peers else self.dispatch_launches if dispatched else 0
        return self.moe_launches + more if moe else self.dense_launches


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The workload of a replica."""

    concurrency: int = 16  # sequences in flight, over all data groups
    context: int = 4096  # tokens per sequence: prompt and output
    draft_steps: int = 2  # drafts per round
    acceptance: float = 0.8  # probability of each draft, given that the previous ones are accepted
    numerics: str = "exact"  # "fast": all-reduce
    sends_copies: bool = False  # a row is sent once per chosen expert, not once per rank, as some other servers do
    redundant_experts: int = 0
    one_sampler: bool = True  # one rank samples for all data groups; False: each group samples its own tokens
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256  # maximum per data group

    def __post_init__(self) -> None:
        for name in ("concurrency", "context", "max_num_batched_tokens", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.draft_steps <= 16:
            raise ValueError(f"draft_steps must be 0..16, got {self.draft_steps}")
        if not 0 <= self.acceptance <= 1:
            raise ValueError(f"acceptance must be 0..1, got {self.acceptance}")
        if self.numerics not in ("exact", "fast"):
            raise ValueError(f"numerics must be exact or fast, got {self.numerics!r}")
        if self.redundant_experts < 0:
            raise ValueError(f"redundant_experts must be at least 0, got {self.redundant_experts}")

    @property
    def rows_per_sequence(self) -> int:
        """Query tokens per sequence and round: its last token and its drafts."""
        return 1 + self.draft_steps

    @property
    def tokens_per_round(self) -> float:
        """Expected tokens per sequence and round: the accepted drafts and one more."""
        return sum(self.acceptance**n for n in range(self.draft_steps + 1))
