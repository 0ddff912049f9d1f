"""Loads a separate draft model, after checking that it has the main model's tokenizer."""

from dataclasses import replace
from pathlib import Path

import tokenizers

from outrider.workers.config import resolve_model
from outrider.workers.loading.model import ModelPart, Parts, draft_quantization, load_parts
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_config import ModelConfig


def load_draft_model(wanted: ModelPart, name: str, max_model_len: int) -> Parts:
    """Loads all layers of checkpoint `name` with the settings of `wanted`, the main model.

    CheckpointError if unsuitable.
    """
    path = resolve_model(name)
    shape = ModelConfig.load(path)
    check_draft_model(name, path, shape, wanted.checkpoint.path, wanted.model, max_model_len)
    config = wanted.config
    if wanted.kernels == "compiled":
        config = replace(config, quantization=draft_quantization(config) or config.quantization)
    layers, checkpoint = range(shape.num_hidden_layers), Checkpoint(path)
    return load_parts(
        replace(
            wanted, config=config, model=shape, checkpoint=checkpoint, layers=layers, drafts=False, sharing=Sharing()
        )
    )


def check_draft_model(
    name: str, path: Path, shape: ModelConfig, main_path: Path, main: ModelConfig, max_model_len: int
) -> None:
    """CheckpointError if the draft model differs from the main model where it must not; it names the difference."""
    if shape.vocab_size != main.vocab_size:
        raise CheckpointError(
            f"draft_model {name} has a vocabulary of {shape.vocab_size}, and the model one of {main.vocab_size}:"
            " they must have the same tokenizer"
        )
    if difference := tokenizer_difference(path, main_path):
        raise CheckpointError(f"draft_model {name} must have the model's own tokenizer: {difference}")
    if shape.max_position_embeddings < max_model_len:
        raise CheckpointError(
            f"draft_model {name} reads at most {shape.max_position_embeddings} tokens, and max_model_len is"
            f" {max_model_len}: lower max_model_len"
        )


def tokenizer_difference(path: Path, main_path: Path) -> str | None:
    """The first token that differs between two checkpoints' tokenizers, as text; None if there is none."""
    own, main = _vocabulary(path), _vocabulary(main_path)
    if own is None or main is None:  # requests have token ids only; the client knows their meaning
        return None if own is main else f"only {path if main is None else main_path} has one"
    for token_id in sorted(own.keys() | main.keys()):
        if own.get(token_id) != main.get(token_id):
            return f"token {token_id} is {own.get(token_id)!r} there and {main.get(token_id)!r} in the model's"
    return None


def _vocabulary(path: Path) -> dict[int, str] | None:
    file = path / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(f"{file} is damaged: {error}") from error
    return {token_id: token for token, token_id in backend.get_vocab(with_added_tokens=True).items()}
