"""Replaces the MTP modules of a running engine.

New ones are read beside those in use, and installed between two rounds.

Drafts never decide which tokens are emitted, so no token changes. The drafter's cache still holds entries from the old
weights. So running sequences, and prompts found in the prefix cache, have a slightly lower acceptance rate at first.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from outrider.workers.config import resolve_model
from outrider.workers.loading.model import ModelPart, Parts, load_module
from outrider.workers.model.weights import Checkpoint
from outrider.workers.types.errors import CheckpointError, OutriderError
from outrider.workers.types.model.model_config import ModelConfig

InstallModule = Callable[[], None]


class ModuleSwap:
    """Loads the MTP modules and draft heads of other checkpoints for a running rank's parts."""

    def __init__(self, wanted: ModelPart, parts: Parts) -> None:
        self._wanted, self._parts = wanted, parts

    def load(self, checkpoint: str) -> InstallModule:
        """Reads the modules of the model or directory `checkpoint`, from any thread. The engine calls the result.

        OutriderError if this rank does not draft, or if the checkpoint differs in shape or number of modules.
        """
        draft_model = self._parts.draft_model
        if draft_model is None:
            raise OutriderError("this engine does not draft with an MTP module: there is none to swap")
        if self._wanted.sharing.stage.size > 1:
            raise OutriderError(
                "a module that several ranks share cannot be swapped: restart with the other checkpoint"
            )
        path = resolve_model(checkpoint)
        self._check(path)
        wanted = replace(self._wanted, checkpoint=Checkpoint(path))
        module = load_module(wanted, self._parts.stage, cache_of=draft_model.module)
        return lambda: draft_model.use(module)

    def _check(self, path: Path) -> None:
        """The module must fit the running layers: same shape. Their own weights are not read."""
        ours, theirs = self._wanted.model, ModelConfig.load(path)
        if theirs != replace(ours, torch_dtype=theirs.torch_dtype, quantization_block=theirs.quantization_block):
            raise CheckpointError(f"{path} is of another shape than the model that runs: its module does not fit")
