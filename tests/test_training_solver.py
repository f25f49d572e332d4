"""The solver against a scalar loop, torch.optim.SGD, and the rules of SPEC section 8."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tiny_training import fresh_net, tiny_recipe
from torch import nn

from ddn_fast.network import BatchNorm, DecoupledNet
from ddn_fast.training.bn import add_batch_norm
from ddn_fast.training.loss import segmentation_loss
from ddn_fast.training.segmenter import training_scores
from ddn_fast.training.solver import (
    MomentumSGD,
    build_optimizer,
    parameter_groups,
    set_learning_rate,
    trained_modules,
)


@pytest.fixture
def net() -> DecoupledNet:
    return fresh_net(("ant", "bee", "cow"))


def gradients(count: int, shape: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize(("lr_mult", "decay", "accumulate"), [(1.0, 0.05, 16), (2.0, 0.0, 4), (10.0, 0.01, 1)])
def test_solver_equals_a_scalar_loop_over_a_drop_of_the_rate(lr_mult: float, decay: float, accumulate: int) -> None:
    weight = nn.Parameter(torch.tensor([[0.5, -2.0], [3.0, 0.0]], dtype=torch.float64))
    optimizer = MomentumSGD(
        [{"params": [weight], "lr_mult": lr_mult, "weight_decay": decay}], lr=0.1, momentum=0.9, accumulate=accumulate
    )
    wanted, history = weight.flatten().tolist(), [0.0] * 4
    for step, gradient in enumerate(gradients(60, (2, 2))):
        lr = 0.1 if step < 25 else 0.01
        set_learning_rate(optimizer, lr)
        weight.grad = gradient.clone()
        optimizer.step()
        for k, g in enumerate(gradient.flatten().tolist()):
            history[k] = 0.9 * history[k] + lr * lr_mult * (g / accumulate + decay / accumulate * wanted[k])
            wanted[k] -= history[k]
    torch.testing.assert_close(weight.flatten().detach(), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-13)


def train_both(rates: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    ours, theirs = (nn.Parameter(torch.arange(6.0, dtype=torch.float64)) for _ in range(2))
    optimizers = [
        MomentumSGD([{"params": [ours], "weight_decay": 0.1}], lr=0.05, momentum=0.8, accumulate=1),
        torch.optim.SGD([theirs], lr=0.05, momentum=0.8, weight_decay=0.1),
    ]
    for lr, gradient in zip(rates, gradients(len(rates), (6,)), strict=True):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_learning_rate(optimizer, lr)
            parameter.grad = gradient.clone()
            optimizer.step()
    return ours.detach(), theirs.detach()


def test_solver_equals_torch_sgd_while_the_rate_is_constant() -> None:
    ours, theirs = train_both([0.05] * 40)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_steps_taken_before_a_drop_of_the_rate_keep_their_size_in_the_momentum() -> None:
    ours, theirs = train_both([0.05] * 5 + [0.005])
    assert (ours - theirs).abs().max() > 1e-3


def test_parameter_without_gradient_stays() -> None:
    moved, kept = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = MomentumSGD([{"params": [moved, kept], "weight_decay": 0.1}], lr=1.0, momentum=0.9, accumulate=1)
    moved.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(kept, torch.ones(2))
    assert not torch.equal(moved, torch.ones(2))


@pytest.mark.parametrize("rates", [[0.05] * 6, [0.05] * 3 + [0.005] * 3])
def test_absorbed_gradients_make_the_same_steps_and_leave_nothing_behind(rates: list[float]) -> None:
    """Two sub-batches a step, of which the second does not reach one parameter, and of the third step none does."""
    found = []
    for absorb in (False, True):
        weights = [nn.Parameter(torch.arange(1.0, 4.0, dtype=torch.float64)) for _ in range(3)]
        groups = [
            {"params": weights[:2], "weight_decay": 0.1},
            {"params": weights[2:], "lr_mult": 2.0},
        ]
        optimizer = MomentumSGD(groups, lr=0.05, momentum=0.9, accumulate=2)
        with optimizer.absorbing() if absorb else contextlib.nullcontext():
            for step, lr in enumerate(rates):
                set_learning_rate(optimizer, lr)
                optimizer.zero_grad()
                if step != 2:
                    ((weights[0] * weights[1]).square().sum() + weights[2].square().sum()).backward()
                    (weights[0] * weights[2]).sum().backward()
                assert all((p.grad is None) == (absorb or step == 2) for p in weights)
                optimizer.step()
        found.append([p.detach().clone() for p in weights])
        (weights[0] * weights[1] * weights[2]).sum().backward()  # outside nothing is absorbed
        assert all(p.grad is not None for p in weights)
    for kept, absorbed in zip(*found, strict=True):
        torch.testing.assert_close(absorbed, kept, rtol=1e-13, atol=0)


def test_closure_may_differentiate() -> None:
    weight = nn.Parameter(torch.tensor(2.0))
    optimizer = MomentumSGD([{"params": [weight]}], lr=0.25, momentum=0.0, accumulate=1)

    def closure() -> float:
        loss = weight.square()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert weight.item() == 1.0


def rates(net: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found = [(names[id(p)], (group["lr_mult"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


def test_stage_2_groups_are_those_of_section_8(net: DecoupledNet) -> None:
    recipe = tiny_recipe("segmenter", weight_decay=5e-4)
    got = rates(net, parameter_groups(trained_modules(net, "segmenter"), recipe))
    modules = dict(net.named_modules())
    assert got.keys() == {name for name, _ in net.named_parameters() if name.startswith(("bridge.", "decoder."))}
    for name, rate in got.items():
        owner, _, kind = name.rpartition(".")
        if isinstance(modules[owner], BatchNorm) or kind == "weight":
            assert rate == (1.0, 5e-4), name
        else:
            assert rate == (2.0, 0.0), name


def test_stage_1_last_layer_learns_ten_times_as_fast(net: DecoupledNet) -> None:
    recipe = tiny_recipe("classifier", weight_decay=5e-4)
    add_batch_norm(net)
    groups = parameter_groups(trained_modules(net, "classifier"), recipe, net.head.cls_score)
    got = rates(net, groups)
    assert got.keys() == {name for name, _ in net.named_parameters() if name.startswith(("encoder.", "head."))}
    assert got["head.cls_score.weight"] == (10.0, 5e-4)
    assert got["head.cls_score.bias"] == (20.0, 0.0)
    assert got["head.fc7.0.weight"] == (1.0, 5e-4)
    assert got["head.fc7.0.bias"] == (2.0, 0.0)
    assert got["head.fc7.1.weight"] == got["head.fc7.1.bias"] == (1.0, 5e-4)  # the normalisation's
    assert len(groups) == 4


def test_decay_and_gradient_are_divided_by_the_sub_batches_in_a_built_optimizer(net: DecoupledNet) -> None:
    recipe = tiny_recipe("segmenter", lr=1.0, momentum=0.0, weight_decay=0.5, accumulate=16)
    optimizer = build_optimizer(trained_modules(net, "segmenter"), recipe)
    weight, bias = net.decoder.seg_score.weight, net.decoder.seg_score.bias
    before, before_bias = weight.detach().clone(), bias.detach().clone()
    weight.grad, bias.grad = torch.full_like(weight, 3.0), torch.full_like(bias, 3.0)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before - (3.0 + 0.5 * before) / 16)
    torch.testing.assert_close(bias.detach(), before_bias - 2 * 3.0 / 16)


def test_adamw_is_built_over_the_same_parameters(net: DecoupledNet) -> None:
    recipe = tiny_recipe("segmenter", optimizer="adamw", weight_decay=0.01)
    optimizer = build_optimizer(trained_modules(net, "segmenter"), recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    held = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    wanted = {id(p) for module in (net.bridge, net.decoder) for p in module.parameters()}
    assert held.keys() == wanted
    assert held[id(net.decoder.seg_score.bias)] == 0
    assert held[id(net.decoder.seg_score.weight)] == 0.01


def test_gradients_of_all_sub_batches_are_summed_for_batch_norm_too(net: DecoupledNet) -> None:
    """The release keeps only the last sub-batch's gradient of BN scale and shift (a known fault)."""
    generator = torch.Generator().manual_seed(0)
    net = net.double()
    for module in trained_modules(net, "segmenter"):
        module.train()
    batches = [
        {
            "data": 60 * torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64),
            "subset": torch.ones(2, 3),
            "target": torch.randint(0, 2, (2, 64, 64), generator=generator),
        }
        for _ in range(3)
    ]
    trained = [p for module in trained_modules(net, "segmenter") for p in module.parameters()]
    alone = []
    for batch in batches:
        loss = segmentation_loss(training_scores(net, batch), batch["target"])
        assert loss is not None
        alone.append(torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True))
    before = [p.detach().clone() for p in trained]
    recipe = tiny_recipe("segmenter", accumulate=3, weight_decay=0.0, momentum=0.0, lr=0.5)
    optimizer = build_optimizer(trained_modules(net, "segmenter"), recipe)
    for batch in batches:
        loss = segmentation_loss(training_scores(net, batch), batch["target"])
        assert loss is not None
        loss.backward()
    optimizer.step()
    mult = {id(p): group["lr_mult"] for group in optimizer.param_groups for p in group["params"]}
    for old, p, *parts in zip(before, trained, *alone, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.5 * mult[id(p)] * sum(parts) / 3, rtol=1e-9, atol=1e-12)
    norm = net.bridge.fc6_seg_bn.bias
    assert any(p is norm for p in trained)
