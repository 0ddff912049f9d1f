"""Selects an engine's drafters, and combines them into one Drafter."""

import logging
from collections.abc import Callable

from outrider.workers.config import COUPLED, EngineConfig
from outrider.workers.drafting.choosing_drafter import ChoosingDrafter, DraftValues, only_drafter
from outrider.workers.drafting.drafter import Drafter
from outrider.workers.drafting.lookup_drafter import LookupDrafter
from outrider.workers.drafting.mtp_drafter import MtpDrafter
from outrider.workers.drafting.separate_model import SeparateModel, SeparateModelDrafter
from outrider.workers.drafting.shared_drafts import SharedDrafts
from outrider.workers.loading.model import Parts
from outrider.workers.model.weights import mtp_marker
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.requests.sampling_params import AUTO, DRAFT_MODEL, LOOKUP, MTP
from outrider.workers.types.rounds.sequence import Sequence

log = logging.getLogger("outrider.loading")


def resolve_drafters(config: EngineConfig, has_mtp: bool) -> tuple[str, ...]:
    """The drafters that the engine loads, models first. CheckpointError if the requested one is not available."""
    if config.speculation == "off":
        if config.draft_model is not None:
            log.warning('draft_model %s is not loaded: speculation="off"', config.draft_model)
        return ()
    if config.verification != COUPLED:
        log.warning('verification="%s" is for experiments: the text depends on the drafts', config.verification)
        return (MTP,)
    has = {MTP: has_mtp, DRAFT_MODEL: config.draft_model is not None, LOOKUP: True}
    if config.drafter == AUTO:
        return tuple(name for name, there in has.items() if there)
    if not has[config.drafter]:
        raise CheckpointError(
            f'checkpoint {config.model} has no MTP weights, so drafter="{config.drafter}" is not available'
        )
    return (config.drafter,)


def resolve_speculation(config: EngineConfig, has_mtp: bool) -> str | int:
    """The engine's setting. Without a draft model a fixed depth is an error, and "auto" uses prompt lookup only."""
    if has_mtp or config.speculation == "off" or config.draft_model is not None or config.drafter == LOOKUP:
        return config.speculation
    missing = f"checkpoint {config.model} has no MTP weights"
    if config.speculation == "auto":
        log.warning("%s: serving without MTP drafts; prompt lookup still drafts", missing)
        return config.speculation
    raise CheckpointError(
        f'{missing}, so speculation={config.speculation} is not available: use "auto" or "off", drafter="lookup" or a'
        " draft_model"
    )


def warn_of_missing_modules(config: EngineConfig, model: ModelConfig, found: int) -> None:
    """Warns if the checkpoint has weights of fewer MTP modules than its config declares."""
    if found < model.num_nextn_predict_layers:
        log.warning(
            "checkpoint %s has weights of %d of its %d MTP modules (%s is missing): drafting with those",
            config.model, found, model.num_nextn_predict_layers, mtp_marker(model, found),
        )  # fmt: skip


def make_mtp_drafter(
    parts: Parts, starts: SequenceStarts, block_size: int, shared: SharedDrafts | None
) -> MtpDrafter | None:
    """The drafter for the model's own MTP modules; None on a rank without them. `shared`: see MtpDrafter."""
    return MtpDrafter(parts.draft_model, starts, block_size, shared=shared) if parts.draft_model is not None else None


def make_drafter(
    names: tuple[str, ...],
    draft_parts: Parts | None,
    starts: SequenceStarts,
    config: EngineConfig,
    speculation: str | int,
    live: Callable[[int], Sequence | None],
    values: DraftValues,
    mtp: Drafter | None,
) -> Drafter | None:
    """All drafters of these names combined; None without names. `live` and `values`: see ChoosingDrafter.

    `draft_parts`: the separate model's. `mtp`: the drafter for the model's own module, if it is among them.
    """
    if not names:
        return None
    models: dict[str, Drafter] = {MTP: mtp} if mtp is not None else {}
    if draft_parts is not None and draft_parts.head is not None:
        separate = SeparateModel(draft_parts.stage, draft_parts.head)
        models[DRAFT_MODEL] = SeparateModelDrafter(separate, starts, config.block_size)

    def looks_up(sequence: Sequence) -> bool:
        only = only_drafter(sequence.request.params, speculation, models)
        return only in (None, LOOKUP) and values.looks_up(sequence.sequence_id)

    def always(sequence: Sequence) -> bool:
        no_other = not models or only_drafter(sequence.request.params, speculation, models) == LOOKUP
        return no_other or values.lookup_common

    lookup = LookupDrafter(live, looks_up, always) if LOOKUP in names else None
    return ChoosingDrafter(models, lookup, live, speculation, values)
