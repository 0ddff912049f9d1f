"""The divergences, and what is counted."""

import torch
import torch.nn.functional as F

from outrider.workers.training.distill.losses import Judge, kl_divergence, total_variation


def logits(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 7, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def test_divergences_are_torchs_own() -> None:
    draft, target = logits(5, 0), logits(5, 1)
    p, q = target.exp(), draft.exp()

    assert torch.allclose(kl_divergence(draft, target), (p * (target - draft)).sum(-1), atol=1e-6)
    assert torch.allclose(total_variation(draft, target), 1 - torch.minimum(p, q).sum(-1), atol=1e-6)
    assert kl_divergence(target, target).abs().max() < 1e-6


def test_each_step_is_compared_with_the_models_state_so_many_tokens_on_where_it_counts() -> None:
    generator = torch.Generator().manual_seed(2)
    head, truth = torch.randn(7, 4, generator=generator), torch.randn(2, 8, 4, generator=generator)
    drafts = [torch.randn(2, 5, 4, generator=generator) for _ in range(3)]
    counted = torch.tensor([[True, False, True, True, False], [False, False, False, True, True]])

    for step, sums in enumerate(Judge(head, "kl").steps(drafts, truth, counted), start=1):
        target = F.linear(truth[:, step : step + 5], head).log_softmax(-1)
        draft = F.linear(drafts[step - 1], head).log_softmax(-1)
        expected = kl_divergence(draft[counted], target[counted]).sum()
        assert torch.allclose(sums.loss, expected, rtol=1e-4)
        assert int(sums.agreement) == int((draft.argmax(-1) == target.argmax(-1))[counted].sum())
        assert torch.allclose(sums.overlap, torch.minimum(draft.exp(), target.exp()).sum(-1)[counted].sum(), rtol=1e-4)


def test_logits_in_chunks_have_the_same_sums_and_gradients() -> None:
    generator = torch.Generator().manual_seed(3)
    head, truth = torch.randn(7, 4, generator=generator), torch.randn(1, 9, 4, generator=generator)
    found = []
    for rows in (1, 3, 100):
        judge = Judge(head, "tv")
        judge.rows_at_once = rows
        drafts = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(4), requires_grad=True)
        sums = next(iter(judge.steps([drafts], truth, torch.ones(1, 8, dtype=torch.bool))))
        sums.loss.backward()
        found.append((sums.loss.detach(), drafts.grad))

    for loss, gradient in found[1:]:
        assert torch.allclose(loss, found[0][0], rtol=1e-5)
        assert torch.allclose(gradient, found[0][1], atol=1e-6)
