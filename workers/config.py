"""Settings of an engine: frozen, torch-free, checked once. The model's own shape is model/config.py's business."""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outrider.workers import hub
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.sampling_params import AUTO, DRAFT_MODEL, DRAFTERS, MTP, check_speculation

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
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "device": DEVICES,
    "dtype": DTYPES,
    "quantization": QUANTIZATIONS,
    "draft_quantization": DRAFT_QUANTIZATIONS,
    "numerics": NUMERICS,
    "kernels": KERNELS,
    "kv_cache_dtype": KV_CACHE_DTYPES,
    "drafter": DRAFTERS,
    "verification": VERIFICATIONS,
}
_LEAST = {
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "block_size": 1,
    "max_model_len": 2,  # a prompt and a token
    "kv_cache_memory_bytes": 1,
    "num_redundant_experts": 0,
    "eplb_window_size": 1,
    "eplb_step_interval": 1,
    "dbo_token_threshold": 2,
}


def resolve_model(model: str, *, weights: bool = True) -> Path:
    """The checkpoint's directory: a bundled model's name, a path, or hf://OWNER/NAME. CheckpointError if there is none.

    A checkpoint on the Hub is fetched; without `weights`, only its small files are.
    """
    if hub.is_on_hub(model):
        return hub.fetch(model, weights=weights)
    if model in BUNDLED_MODELS:
        return Path(__file__).resolve().parent.parent / "models" / model
    path = Path(model).expanduser()
    if not (path / "config.json").is_file():
        known = ", ".join(BUNDLED_MODELS)
        raise CheckpointError(
            f"unknown model {model!r}: no directory with a config.json of that name, and not a bundled one ({known});"
            " a checkpoint on the Hugging Face Hub is named hf://OWNER/NAME"
        )
    return path.resolve()


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """How many ways the model is split. World size = pipeline x data x tensor."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    expert_parallel_size: int = 1
    data_parallel_size: int = 1

    def __post_init__(self) -> None:
        for name in (each.name for each in dataclasses.fields(self)):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything a rank needs to know to be built, but for its own number."""

    model: str = "scout"
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None  # "int8": weights in 8 bits with block scales, made as they are loaded
    numerics: str = "exact"
    kernels: str = "auto"  # "compiled" on a CPU and "triton" on a GPU where they can be had, else "torch"
    enforce_eager: bool = False  # on a GPU: every kernel is launched by itself, and not as a captured graph
    weight_cache_dir: str | None = None  # a folder: packed weights stay there, mapped by all ranks that need the same
    weight_cache_max_gib: float = 64.0  # what it may hold; the checkpoint that is loaded stays whole
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    kv_cache_dtype: str = "auto"  # "fp8", on GPU kernels: MLA latents in e4m3 with scales; "auto": as the model
    enable_prefix_caching: bool = True
    speculation: str | int = "auto"
    drafter: str = AUTO  # "auto" loads every drafter there is, and each sequence has the one that pays
    draft_model: str | None = None  # a checkpoint with the same tokenizer, to draft with
    draft_quantization: str | None = "auto"  # of what drafts: "int8" on the compiled kernels; None: as the model
    verification: str = COUPLED  # the other rules are for study: with them the text depends on the drafts
    seed: int = 0
    harvest_path: str | None = None  # a folder: finished sequences' tokens and hidden states are kept there
    harvest_max_gib: float = 64.0  # what that folder may hold before harvesting ends
    enable_eplb: bool = False  # spread experts move between ranks as their loads ask for
    num_redundant_experts: int = 0  # slots of a stage beyond one for each expert, for copies of those chosen most
    eplb_window_size: int = 1000  # rounds whose loads count
    eplb_step_interval: int = 3000  # rounds between two looks at them
    enable_dbo: bool | None = None  # rounds go as two lanes, one computing while the other exchanges; None: if it pays
    dbo_token_threshold: int = 32  # rows of a data group from which on they do
    round_timeout_s: float = 300.0  # deadline of every wait for another rank within a round

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        self._check_folders()
        self._check_drafting()
        self._check_data_groups()
        self._check_expert_balance()
        self._check_overlap()
        if self.verification != COUPLED:
            self._check_study()

    def _check_choices(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}")

    def _check_numbers(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        for name in ("round_timeout_s", "harvest_max_gib", "weight_cache_max_gib"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("enable_prefix_caching", "enable_eplb", "enforce_eager"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if type(self.seed) is not int:
            raise ValueError(f"seed must be an integer, got {self.seed!r}")

    def _check_drafting(self) -> None:
        if self.speculation is None:
            raise ValueError('speculation must be "auto", "off" or 1..16, got None')
        check_speculation(self.speculation)
        if self.drafter == DRAFT_MODEL and self.draft_model is None:
            raise ValueError('drafter="draft_model" needs draft_model, the checkpoint to draft with')

    def _check_folders(self) -> None:
        """A path is taken as its text, which travels to ranks."""
        for name in ("model", "weight_cache_dir", "draft_model", "harvest_path"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, value := os.fspath(value))
            if value == "" or not (isinstance(value, str) or (value is None and name != "model")):
                raise ValueError(f"{name} must name a folder, got {value!r}")

    def _check_data_groups(self) -> None:
        """What needs all sequences on the leader's rank, their blocks or their states, cannot have them elsewhere."""
        for name in ("draft_model", "harvest_path"):
            if getattr(self, name) is not None and self.parallel.data_parallel_size > 1:
                raise ValueError(f"{name} needs data_parallel_size=1, got {self.parallel.data_parallel_size}")

    def _check_expert_balance(self) -> None:
        if self.enable_eplb and self.parallel.expert_parallel_size == 1:
            raise ValueError("enable_eplb moves experts between ranks: it needs expert_parallel_size above 1")
        if self.num_redundant_experts and not self.enable_eplb:
            raise ValueError(f"num_redundant_experts={self.num_redundant_experts} needs enable_eplb")

    def _check_overlap(self) -> None:
        if self.enable_dbo is not None and type(self.enable_dbo) is not bool:
            raise ValueError(f"enable_dbo must be True, False or None, got {self.enable_dbo!r}")
        if self.enable_dbo and self.parallel.stage_size == 1:
            raise ValueError(
                "enable_dbo overlaps what ranks of a stage exchange: it needs tensor_parallel_size or"
                " data_parallel_size above 1"
            )

    def _check_study(self) -> None:
        """What the rules for study need: a depth that no draft has a say in, and drafter and sampler side by side."""
        needs = {
            "a fixed depth, speculation=1..16": isinstance(self.speculation, int),
            "a single rank": self.parallel.world_size == 1,
            'the MTP module, drafter="auto" or "mtp", and no draft_model': self.drafter in (AUTO, MTP)
            and self.draft_model is None,
        }
        for need, met in needs.items():
            if not met:
                raise ValueError(f'verification="{self.verification}" is for study and needs {need}')

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "EngineConfig":
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, "parallel": ParallelConfig(**values["parallel"])})
