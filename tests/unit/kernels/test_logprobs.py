"""Log-probabilities and entropies in chunks equal those of the full softmax, and so do the gradients."""

from __future__ import annotations

import pytest
import torch

from rlhf.kernels import logprobs
from rlhf.kernels.logprobs import token_logprobs

M, D, V = 7, 5, 11


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three tokens: two full ones and a remainder."""
    monkeypatch.setitem(logprobs.CHUNK, "cpu", 3)


def tensors(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(M, D, dtype=dtype), torch.randn(V, D, dtype=dtype), torch.randint(V, (M,))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_log_probabilities_and_entropy_equal_the_full_softmax(temperature: float) -> None:
    hidden, head, targets = tensors(torch.float32)
    whole = torch.log_softmax(hidden @ head.T / temperature, dim=1)
    logps, entropy = token_logprobs(hidden, head, targets, temperature)
    assert torch.allclose(logps, whole[torch.arange(M), targets], atol=1e-6)
    assert torch.allclose(entropy, -(whole.exp() * whole).sum(dim=1), atol=1e-5)


def test_log_probabilities_are_the_same_without_entropy() -> None:
    hidden, head, targets = tensors(torch.float32)
    logps, entropy = token_logprobs(hidden, head, targets, 0.5, entropy=False)
    assert torch.equal(logps, token_logprobs(hidden, head, targets, 0.5)[0])
    assert torch.equal(entropy, torch.zeros(M))


@pytest.mark.parametrize("trained", ["hidden", "head"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_equals_that_of_the_full_softmax(temperature: float, trained: str) -> None:
    hidden, head, targets = tensors(torch.float32)
    weights = torch.linspace(-1, 2, M)
    ours, plain = ({"hidden": hidden.clone(), "head": head.clone()} for _ in range(2))
    for inputs in (ours, plain):
        inputs[trained].requires_grad_()
    logps, _ = token_logprobs(ours["hidden"], ours["head"], targets, temperature)
    (logps * weights).sum().backward()
    whole = torch.log_softmax(plain["hidden"] @ plain["head"].T / temperature, dim=1)
    (whole[torch.arange(M), targets] * weights).sum().backward()
    gradient, expected = ours[trained].grad, plain[trained].grad
    assert gradient is not None and expected is not None
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_a_frozen_head_and_the_entropy_have_no_gradient() -> None:
    hidden, head, targets = tensors(torch.float32)
    logps, entropy = token_logprobs(hidden.requires_grad_(), head, targets, 1.0)
    assert logps.requires_grad and not entropy.requires_grad
    logps.sum().backward()
    assert head.grad is None


def test_a_trained_head_uses_autocasts_dtype_and_has_a_float32_gradient() -> None:
    hidden, head, targets = tensors(torch.float32)
    ours = head.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logps, _ = token_logprobs(hidden, ours, targets, 1.0)
    rounded = token_logprobs(hidden.bfloat16(), head.bfloat16(), targets, 1.0)[0]
    assert torch.equal(logps, rounded) and not torch.equal(
        logps, token_logprobs(hidden, head, targets, 1.0)[0]
    )
    logps.sum().backward()
    assert ours.grad is not None and ours.grad.dtype == torch.float32
    assert not torch.equal(ours.grad, ours.grad.bfloat16().float())


def test_bfloat16_products_give_float32_results() -> None:
    hidden, head, targets = tensors(torch.float32)
    exact, _ = token_logprobs(hidden, head, targets, 1.0)
    logps, entropy = token_logprobs(hidden, head.bfloat16(), targets, 1.0)
    assert logps.dtype == entropy.dtype == torch.float32
    assert (logps - exact).abs().max() < 0.1
    trained = hidden.clone().requires_grad_()
    token_logprobs(trained, head.bfloat16(), targets, 1.0)[0].sum().backward()
    assert trained.grad is not None and trained.grad.dtype == torch.float32


def test_no_tokens() -> None:
    hidden = torch.zeros(0, D, requires_grad=True)
    logps, entropy = token_logprobs(hidden, torch.randn(V, D), torch.zeros(0, dtype=torch.long), 1.0)
    assert logps.shape == entropy.shape == (0,)
    logps.sum().backward()
    assert hidden.grad is not None and hidden.grad.shape == (0, D)


def test_shapes_that_do_not_match_are_refused() -> None:
    hidden, head, targets = tensors()
    with pytest.raises(ValueError, match="shapes"):
        token_logprobs(hidden, head, targets[:-1], 1.0)
    with pytest.raises(ValueError, match="shapes"):
        token_logprobs(hidden[:, :-1], head, targets, 1.0)
