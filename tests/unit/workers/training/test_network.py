"""The trainable network: what its losses can see, and that a checkpoint continues exactly."""

from pathlib import Path

import torch

from outrider.workers.training.evaluate import unrolled_states
from outrider.workers.training.muon import orthogonalised
from outrider.workers.training.network import Network
from outrider.workers.training.sampling import Noise, continuations
from outrider.workers.training.shape import ModelSizes
from outrider.workers.training.train import Recipe, Trainer

TINY = ModelSizes(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=48,
    num_attention_heads=2,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=12,
    q_lora_rank=16,
    kv_lora_rank=24,
    n_routed_experts=4,
    moe_intermediate_size=16,
)


def tiny_network(seed: int = 0) -> Network:
    """Drawn so that everything counts: norm weights that are all 1 would hide a missing norm (a norm of a norm changes
    nothing), and branches as silent as training starts them would hide what they see."""
    torch.manual_seed(seed)
    network = Network(TINY)
    for name, parameter in network.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return network


def random_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(TINY.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def mtp_logits(network: Network, tokens: torch.Tensor) -> torch.Tensor:
    states, _ = network.hidden_states(tokens[:, :-2])
    return network.logits(network.mtp_states(states, tokens[:, 1:-1])[0])


def test_a_draft_sees_no_token_from_its_own_target_on() -> None:
    network, tokens, changed = tiny_network(), random_tokens(1, 14), 9
    other = tokens.clone()
    other[0, changed] = (other[0, changed] + 1) % TINY.vocab_size

    before, after = mtp_logits(network, tokens), mtp_logits(network, other)

    # the pair at i predicts token i + 2 and was given token i + 1
    assert torch.equal(before[0, : changed - 1], after[0, : changed - 1])
    assert not torch.allclose(before[0, changed - 1], after[0, changed - 1])


def test_the_mtp_loss_is_that_of_the_token_after_the_next() -> None:
    network, tokens = tiny_network(), random_tokens(2, 12)

    logits = mtp_logits(network, tokens)
    expected = -logits.log_softmax(-1).gather(-1, tokens[:, 2:, None]).mean()

    assert torch.allclose(network(tokens).mtp, expected, atol=1e-5)


@torch.no_grad()
def test_the_unrolled_steps_equal_a_drafter_that_goes_one_pair_at_a_time() -> None:
    network, depth, length = tiny_network(), 3, 6
    tokens = random_tokens(1, length + depth)
    states, _ = network.hidden_states(tokens[:, :length])

    unrolled = unrolled_states(network, states, tokens, depth)

    for start in range(length):
        pairs = states[:, : start + 1]
        for step in range(1, depth + 1):
            drafted, _ = network.mtp_states(pairs, tokens[:, 1 : start + step + 1])
            assert torch.allclose(unrolled[step - 1][0, start], drafted[0, -1], atol=1e-5)
            pairs = torch.cat([pairs, drafted[:, -1:]], 1)


@torch.no_grad()
def test_cached_sampling_says_what_the_whole_sequence_would() -> None:
    network, prompts = tiny_network(), random_tokens(3, 5)
    noise = Noise(seed=4, rows=3, vocabulary=TINY.vocab_size)

    tokens = continuations(network, prompts, 6, 0.8, noise)

    logits = network.logits(network.hidden_states(tokens)[0])
    for position in range(5, 11):
        expected = (logits[:, position - 1] / 0.8 + noise.at(position)).argmax(-1)
        assert torch.equal(tokens[:, position], expected)


def test_training_continues_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    batches = [random_tokens(2, 10, seed) for seed in range(4)]
    straight = Trainer(tiny_network(), Recipe())
    stopped, resumed = Trainer(tiny_network(), Recipe()), Trainer(tiny_network(seed=1), Recipe())

    for batch in batches:
        straight.advance(batch, 0.1)
    for batch in batches[:2]:
        stopped.advance(batch, 0.1)
    stopped.save(tmp_path / "checkpoint.pt")
    resumed.load(tmp_path / "checkpoint.pt")
    for batch in batches[2:]:
        resumed.advance(batch, 0.1)

    pairs = zip(straight.network.state_dict().items(), resumed.network.state_dict().values(), strict=True)
    assert [name for (name, ours), theirs in pairs if not torch.equal(ours, theirs)] == []
    assert (resumed.step, straight.step) == (4, 4)


def test_training_on_one_batch_lowers_both_losses() -> None:
    trainer, batch = Trainer(tiny_network(), Recipe(muon_warmup_steps=1)), random_tokens(2, 12)
    first = trainer.network(batch)

    for _ in range(15):
        trainer.advance(batch, 0.0)

    last = trainer.network(batch)
    assert last.main < 0.8 * first.main
    assert last.mtp < 0.9 * first.mtp


def test_the_router_bias_moves_towards_the_idle_expert() -> None:
    trainer = Trainer(tiny_network(), Recipe(muon_warmup_steps=1))

    losses = trainer.advance(random_tokens(2, 12), 0.0)

    bias = trainer.network.routers()[0].e_score_correction_bias
    load = losses.loads[0]
    assert bias[load.argmin()] > 0 > bias[load.argmax()]


def test_muon_makes_singular_values_nearly_one_whatever_the_orientation() -> None:
    for shape in ((3, 8, 20), (3, 20, 8)):
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))

        values = torch.linalg.svdvals(orthogonalised(matrices, steps=5).float())

        assert values.min() > 0.4
        assert values.max() < 1.4


def test_rates_warm_up_by_steps_muon_last_and_decay_by_the_clock() -> None:
    recipe = Recipe(muon_warmup_steps=100, adam_warmup_steps=5, constant_until=0.4, final_factor=0.05)

    early, constant, end = (recipe.learning_rates(*at) for at in ((9, 0.0), (200, 0.4), (200, 1.0)))

    assert early == (0.1 * recipe.muon_lr, recipe.adam_lr, recipe.embedding_lr)
    assert constant == (recipe.muon_lr, recipe.adam_lr, recipe.embedding_lr)
    assert all(abs(last / first - 0.05) < 1e-9 for last, first in zip(end, constant, strict=True))
