"""Re-estimation of batch statistics, and normalisation that is folded away."""

from __future__ import annotations

import pytest
import torch
from tiny_training import fresh_net
from torch import nn

from ddn_fast.errors import InputError
from ddn_fast.network import BatchNorm
from ddn_fast.training.bn import add_batch_norm, fold_batch_norm, reestimate

CLASSES = ("ant", "bee", "cow")


def batches(mean: float = 3.0, deviation: float = 1.0) -> list[torch.Tensor]:
    """Of different sizes: every batch counts equally, whatever it holds."""
    generator = torch.Generator().manual_seed(2)
    sizes = ((2, 5, 3), (4, 1, 7), (1, 2, 2), (3, 6, 6))
    return [mean + deviation * torch.randn(n, 4, h, w, generator=generator) for n, h, w in sizes]


def test_reestimation_is_the_plain_average_of_mean_and_biased_variance() -> None:
    layer, data = BatchNorm(4), batches()
    assert reestimate(layer, data, layer) == 4
    means = [x.double().mean((0, 2, 3)) for x in data]
    variances = [x.double().var((0, 2, 3), correction=0) for x in data]
    torch.testing.assert_close(layer.running_mean.double(), sum(means) / 4, rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.running_var.double(), sum(variances) / 4, rtol=1e-6, atol=0)


def test_variance_is_right_where_the_mean_is_a_thousand_deviations() -> None:
    """E[x^2] - E[x]^2 in float32, as the release has it, is off by a tenth and more here, or negative."""
    layer, data = BatchNorm(4), batches(100.0, 0.1)
    reestimate(layer, data, layer)
    wanted = sum(x.double().var((0, 2, 3), correction=0) for x in data) / 4
    torch.testing.assert_close(layer.running_var.double(), wanted, rtol=1e-4, atol=0)


def test_later_layers_see_batches_normalised_by_their_own_statistics() -> None:
    model = nn.Sequential(BatchNorm(4), nn.ReLU(), BatchNorm(4)).eval()
    data = batches()
    reestimate(model, data, model)
    first, second = model[0], model[2]
    wanted = []
    for x in data:
        x = x.double()
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        wanted.append(((x - mean) / (var + 1e-9).sqrt() + 0.001).relu().mean((0, 2, 3)))
    torch.testing.assert_close(second.running_mean.double(), sum(wanted) / 4, rtol=1e-5, atol=1e-6)
    assert not first.running_mean.eq(0).any()


def test_reestimation_leaves_training_flags_and_parameters_as_they_were() -> None:
    model = nn.Sequential(BatchNorm(4), nn.Dropout(0.5), BatchNorm(4))
    model.eval()
    model[0].train()
    before = [p.clone() for p in model.parameters()]
    reestimate(model, batches(), model)
    assert [m.training for m in model.modules()] == [False, True, False, False]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_failed_batch_leaves_flags_statistics_and_hooks_as_they_were() -> None:
    layer = BatchNorm(4).eval()

    def forward(x: torch.Tensor) -> None:
        layer(x)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        reestimate(layer, batches(), forward)
    assert not layer.training
    assert not layer._forward_pre_hooks
    assert torch.equal(layer.running_mean, torch.zeros(4))
    assert torch.equal(layer.running_var, torch.ones(4))


def test_reestimation_without_batches_is_refused() -> None:
    with pytest.raises(InputError, match="at least one batch"):
        reestimate(BatchNorm(4), [], lambda x: x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folding_added_normalisation_keeps_the_function(dtype: torch.dtype) -> None:
    net = fresh_net(CLASSES).to(dtype)
    plain = {name: type(module) for name, module in net.named_modules()}
    add_batch_norm(net)
    generator = torch.Generator().manual_seed(4)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 13 + 2
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(1 + 0.2 * torch.randn(norm.weight.shape, generator=generator))
            norm.bias.copy_(0.2 * torch.randn(norm.bias.shape, generator=generator))
        x = 60 * torch.randn(4, 3, 64, 64, generator=generator).to(dtype)
        net.train()
        for _ in range(30):
            net.encode(x)  # running statistics other than 0 and 1
        net.eval()
        before = net.encode(x)[1].score_map
        fold_batch_norm(net)
        after = net.encode(x)[1].score_map
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    assert before.std() > 1e-3
    assert {name: type(module) for name, module in net.named_modules()} == plain


def test_folded_network_has_the_state_of_a_plain_one() -> None:
    net = fresh_net(CLASSES)
    keys = list(net.state_dict())
    add_batch_norm(net)
    assert list(net.state_dict()) != keys
    fold_batch_norm(net)
    assert set(net.state_dict()) == set(keys)
    net.load_state_dict(fresh_net(CLASSES).state_dict())
