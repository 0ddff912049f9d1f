"""Settings of an engine: frozen, torch-free, checked once. The model's sizes: types/model/model_config.py."""

import dataclasses
import json
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model import hub
from outrider.workers.types.requests.sampling_params import AUTO, DRAFT_MODEL, DRAFTERS, MAX_DRAFT_TOKENS, MTP
from outrider.workers.types.settings import Setting, check_settings

BUNDLED_MODELS = ("scout",)
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
NUMERICS = ("exact", "fast")
KERNELS = ("auto", "compiled", "triton", "torch")
KV_CACHE_DTYPES = ("auto", "fp8")
QUANTIZATIONS = (None, "int8")
DRAFT_QUANTIZATIONS = ("auto", *QUANTIZATIONS)
COUPLED = "coupled"
VERIFICATIONS = (COUPLED, "rejection", "block")


def resolve_model(model: str, *, weights: bool = True) -> Path:
    """The checkpoint's directory, for a bundled model's name, a path, or hf://OWNER/NAME. Raises CheckpointError.

    A checkpoint on the Hub is downloaded; without `weights`, only its small files.
    """
    if hub.is_on_hub(model):
        return hub.fetch(model, weights=weights)
    if model in BUNDLED_MODELS:
        return Path(__file__).resolve().parent.parent / "models" / model
    path = Path(model).expanduser()
    if not (path / "config.json").is_file():
        known = ", ".join(BUNDLED_MODELS)
        raise CheckpointError(
            f"unknown model {model!r}: neither a directory with a config.json nor a bundled model ({known});"
            " a checkpoint on the Hugging Face Hub is named hf://OWNER/NAME"
        )
    return path.resolve()


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """How many ways the model is split. World size = pipeline x data x tensor."""

    tensor_parallel_size: Annotated[int, Setting("Number of ranks that each layer is split over.", least=1)] = 1
    pipeline_parallel_size: Annotated[int, Setting("Number of pipeline stages.", least=1)] = 1
    expert_parallel_size: Annotated[
        int, Setting("1, or data x tensor: experts are spread over the ranks of a stage.", least=1)
    ] = 1
    data_parallel_size: Annotated[int, Setting("Number of data-parallel groups.", least=1)] = 1

    def __post_init__(self) -> None:
        check_settings(self)
        if self.expert_parallel_size not in (1, self.stage_size):
            raise ValueError(
                f"expert_parallel_size must be 1 or data_parallel_size x tensor_parallel_size ="
                f" {self.data_parallel_size} x {self.tensor_parallel_size} = {self.stage_size},"
                f" got {self.expert_parallel_size}"
            )

    @property
    def stage_size(self) -> int:
        """Ranks that share a pipeline stage."""
        return self.data_parallel_size * self.tensor_parallel_size

    @property
    def world_size(self) -> int:
        return self.pipeline_parallel_size * self.stage_size


@dataclass(frozen=True, slots=True)
class EngineConfig(ParallelConfig):
    """All settings of an engine: the parameters of LLM. All ranks have the same."""

    model: Annotated[str, Setting("Name of a bundled model (scout), or a checkpoint directory.")] = "scout"
    _: KW_ONLY
    device: Annotated[str, Setting("Device. auto: a GPU if there is one.", choices=DEVICES)] = "auto"
    dtype: Annotated[
        str, Setting("Data type of the computation. auto: float32 on a CPU, bfloat16 on a GPU.", choices=DTYPES)
    ] = "auto"
    quantization: Annotated[
        str | None,
        Setting("int8: weights in 8 bits with block scales, quantized while loading.", choices=QUANTIZATIONS),
    ] = None
    numerics: Annotated[
        str,
        Setting(
            "exact: every sum has one fixed order, so results do not depend on the batch. fast: any order.",
            choices=NUMERICS,
        ),
    ] = "exact"
    kernels: Annotated[
        str,
        Setting(
            "Kernels that run the model. auto: compiled on a CPU, triton on a GPU, torch where those are unavailable.",
            choices=KERNELS,
        ),
    ] = "auto"
    enforce_eager: Annotated[bool, Setting("Launch GPU kernels one by one instead of as CUDA graphs.")] = False
    weight_cache_dir: Annotated[
        str | None, Setting("Directory for packed weights, which ranks of one machine map and share.")
    ] = None
    weight_cache_max_gib: Annotated[
        float, Setting("Maximum size of weight_cache_dir in GiB. The loaded checkpoint is never evicted.", above=0)
    ] = 64.0
    max_model_len: Annotated[
        int | None, Setting("Maximum length of prompt and output in tokens. By default the model's own.", least=2)
    ] = None
    max_num_seqs: Annotated[int, Setting("Maximum number of sequences that run at once.", least=1)] = 64
    max_num_batched_tokens: Annotated[int, Setting("Maximum number of tokens in a round.", least=1)] = 2048
    block_size: Annotated[int, Setting("Tokens in a block of the KV cache.", least=1)] = 16
    kv_cache_memory_bytes: Annotated[
        int | None, Setting("Size of the KV cache of a rank in bytes. By default a share of the free memory.", least=1)
    ] = None
    kv_cache_dtype: Annotated[
        str,
        Setting(
            "fp8: MLA latents in FP8 (e4m3) with scales; needs triton kernels. auto: dtype.", choices=KV_CACHE_DTYPES
        ),
    ] = "auto"
    enable_prefix_caching: Annotated[bool, Setting("Reuse the KV cache of prompts with a common prefix.")] = True
    speculation: Annotated[
        str | int,
        Setting(
            "Draft tokens per round: auto adapts the number, off loads no drafter, 1..16 is a fixed number.",
            choices=("auto", "off"),
            least=1,
            most=MAX_DRAFT_TOKENS,
        ),
    ] = "auto"
    drafter: Annotated[
        str, Setting("What drafts. auto: all available drafters are loaded, chosen by sequence.", choices=DRAFTERS)
    ] = AUTO
    draft_model: Annotated[str | None, Setting("Checkpoint directory of a draft model with the same tokenizer.")] = None
    draft_quantization: Annotated[
        str | None,
        Setting(
            "Quantization of the drafter. auto: int8 with compiled kernels. None: as the model.",
            choices=DRAFT_QUANTIZATIONS,
        ),
    ] = "auto"
    verification: Annotated[
        str,
        Setting(
            "Rule that accepts drafts. Only with coupled is the text independent of drafts.", choices=VERIFICATIONS
        ),
    ] = COUPLED
    harvest_path: Annotated[
        str | None, Setting("Directory for tokens and hidden states of finished sequences, to train a drafter with.")
    ] = None
    harvest_max_gib: Annotated[float, Setting("Size of harvest_path in GiB at which harvesting ends.", above=0)] = 64.0
    enable_eplb: Annotated[bool, Setting("Move spread experts between ranks to balance their load.")] = False
    num_redundant_experts: Annotated[
        int, Setting("Additional expert slots of a stage, for copies of the most chosen experts.", least=0)
    ] = 0
    eplb_window_size: Annotated[int, Setting("Rounds whose expert loads are counted.", least=1)] = 1000
    eplb_step_interval: Annotated[int, Setting("Rounds between two checks of the expert balance.", least=1)] = 3000
    enable_dbo: Annotated[
        bool | None,
        Setting("Split rounds in two, one half computes while the other communicates. By default where it is faster."),
    ] = None
    dbo_token_threshold: Annotated[
        int, Setting("Minimum number of tokens of a data-parallel group to split a round with dbo.", least=2)
    ] = 32
    round_timeout_s: Annotated[
        float, Setting("Seconds that a rank waits for another rank within a round.", above=0)
    ] = 300.0
    seed: Annotated[int, Setting("Seed from which requests without a seed derive theirs.")] = 0

    def __post_init__(self) -> None:
        ParallelConfig.__post_init__(self)
        self._check_folders()
        self._check_drafting()
        self._check_data_groups()
        self._check_expert_balance()
        self._check_overlap()
        if self.verification != COUPLED:
            self._check_study()

    def _check_folders(self) -> None:
        for name in ("model", "weight_cache_dir", "draft_model", "harvest_path"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} must name a directory, got ''")

    def _check_drafting(self) -> None:
        if self.drafter == DRAFT_MODEL and self.draft_model is None:
            raise ValueError('drafter="draft_model" needs draft_model, the checkpoint to draft with')

    def _check_data_groups(self) -> None:
        """Refuses features that need all sequences on the leader's rank, if there are several data groups."""
        for name in ("draft_model", "harvest_path"):
            if getattr(self, name) is not None and self.data_parallel_size > 1:
                raise ValueError(f"{name} needs data_parallel_size=1, got {self.data_parallel_size}")

    def _check_expert_balance(self) -> None:
        if self.enable_eplb and self.expert_parallel_size == 1:
            raise ValueError("enable_eplb moves experts between ranks: it needs expert_parallel_size above 1")
        if self.num_redundant_experts and not self.enable_eplb:
            raise ValueError(f"num_redundant_experts={self.num_redundant_experts} needs enable_eplb")

    def _check_overlap(self) -> None:
        if self.enable_dbo and self.stage_size == 1:
            raise ValueError(
                "enable_dbo overlaps communication between ranks of a stage: it needs tensor_parallel_size or"
                " data_parallel_size above 1"
            )

    def _check_study(self) -> None:
        """Rules for experiments need a depth independent of the drafts, and drafter and sampler in one process."""
        needs = {
            "a fixed depth, speculation=1..16": isinstance(self.speculation, int),
            "a single rank": self.world_size == 1,
            'the MTP module, drafter="auto" or "mtp", and no draft_model': self.drafter in (AUTO, MTP)
            and self.draft_model is None,
        }
        for need, met in needs.items():
            if not met:
                raise ValueError(f'verification="{self.verification}" is for experiments and needs {need}')

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "EngineConfig":
        return cls(**json.loads(text))
