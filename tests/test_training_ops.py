"""The ops of training: gradients, moments, what a chain of layers equals, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_cases import Deconv3x3Moments, SegScore, small_case
from test_ops_inference import map_tensors
from torch import Tensor

from ddn_fast import ops, reference

LAYER, SCORED = Deconv3x3Moments(2, 40, 33, 3, 5, True), SegScore(2, 40, 5, 3)


class _Moments(torch.autograd.Function):
    """The plain formulas of a layer and of its gradients, put together."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, var = reference.deconv3x3_moments(*args)
        ctx.save_for_backward(y, mean, *args)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *reference.deconv3x3_moments_backward(*grads, *ctx.saved_tensors), None


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> Tensor:
        ctx.save_for_backward(*args[:4])
        return reference.seg_score(*args)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        return reference.seg_score_backward(grad_y, *ctx.saved_tensors)


def doubles(args: tuple) -> list[Any]:
    """The same in float64, as leaves that want gradients."""
    return [
        value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in map_tensors(Tensor.double, args)
    ]


@pytest.mark.parametrize("pooled", [False, True])
def test_plain_gradients_of_a_layer_pass_gradcheck_in_float64(pooled: bool) -> None:
    case = Deconv3x3Moments(2, 5, 4, 3, 2, pooled)
    assert torch.autograd.gradcheck(_Moments.apply, doubles(case(torch.float64)))


def test_plain_gradients_of_the_score_pass_gradcheck_in_float64() -> None:
    assert torch.autograd.gradcheck(_Score.apply, doubles(SegScore(2, 5, 3, 2)(torch.float64)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "case"), [("deconv3x3_moments", LAYER), ("seg_score", SCORED)])
def test_backward_gives_what_autograd_gives_of_the_plain_formula(name: str, case: Any, dtype: torch.dtype) -> None:
    found = []
    for space, args in ((ops, case(dtype)), (reference, map_tensors(Tensor.double, case(dtype)))):
        leaves = [a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        given = getattr(space, name)(*leaves)
        given = given if isinstance(given, tuple) else (given,)
        generator = torch.Generator().manual_seed(4)
        sum((y * torch.randn(y.shape, generator=generator)).double().sum() for y in given).backward()
        found.append([leaf.grad for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()])
    for place, (got, wanted) in enumerate(zip(*found, strict=True)):
        assert got.dtype == (dtype if place == 0 else torch.float32)
        tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5  # y is kept in bfloat16
        assert (got.double() - wanted).abs().max() <= tolerance * wanted.abs().max(), place


def test_two_layers_are_unpooling_deconvolution_batch_normalisation_and_relu() -> None:
    """Section 6 put together from torch's own layers, in float64: values and every gradient."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, w1, w2, gamma, beta = leaf(2, 6, 4, 5), leaf(6, 5, 3, 3), leaf(5, 4, 3, 3), leaf(5), leaf(5)
    score, bias = leaf(2, 4), leaf(2)
    big = torch.randn(2, 6, 8, 10, generator=generator, dtype=torch.float64)
    _, index = F.max_pool2d(big, 2, return_indices=True)
    switches = reference.max_pool2x2(big)[1]
    ones, zeros = torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)

    def affine(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        scale = gamma * torch.rsqrt(var + 1e-9)
        return scale, beta - mean * scale

    y, mean, var = reference.deconv3x3_moments(x, w1, ones, zeros, switches)
    y, mean, var = reference.deconv3x3_moments(y, w2, *affine(mean, var))
    one, zero = torch.ones_like(mean), torch.zeros_like(mean)
    ours = reference.seg_score(y, one, zero, score, bias) + mean.sum() + var.sum()

    a = F.conv_transpose2d(F.max_unpool2d(F.relu(x), index, 2), w1, padding=1)
    a = F.relu(F.batch_norm(a, None, None, gamma, beta, training=True, eps=1e-9))
    b = F.conv_transpose2d(a, w2, padding=1)
    theirs = F.conv2d(F.relu(b), score[:, :, None, None], bias)
    theirs = theirs + b.mean((0, 2, 3)).sum() + b.var((0, 2, 3), correction=0).sum()

    torch.testing.assert_close(ours, theirs)
    leaves = (x, w1, w2, gamma, beta, score, bias)
    weights = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for got, wanted in zip(
        torch.autograd.grad((ours * weights).sum(), leaves),
        torch.autograd.grad((theirs * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("pooled", [False, True])
def test_gradient_of_a_score_passes_gradcheck_in_float64_without_a_map_of_its_own(pooled: bool) -> None:
    """A layer and its score: what comes back to y stands in the score's two channels."""
    layer, scored = (
        doubles(Deconv3x3Moments(2, 5, 4, 3, 2, pooled)(torch.float64)),
        doubles(SegScore(1, 4, 1, 1)(torch.float64)),
    )

    class Layers(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
            y, mean, var = reference.deconv3x3_moments(*args[:5])
            ctx.save_for_backward(y, mean, *args)
            return reference.seg_score(y, *args[5:]), mean, var

        @staticmethod
        def backward(ctx: Any, grad_score: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor | None, ...]:
            y, mean, x, weight, scale, shift, switches, *score = ctx.saved_tensors
            vectors = reference.seg_score_backward_vectors(grad_score, y, *score[:3])
            gradients = reference.deconv3x3_moments_backward_score(
                grad_score, *score[:3], grad_mean, grad_var, y, mean, x, weight, scale, shift, switches
            )
            return *gradients, None, *vectors

    assert torch.autograd.gradcheck(Layers.apply, (*layer, *scored[1:]))


def test_variance_of_a_channel_far_from_zero_does_not_cancel() -> None:
    """Mean 200, deviation 0.05: sums of squares in float32 would lose the variance altogether."""
    x = torch.zeros(2, 4, 33, 47)
    x[:, 0] = 200
    x[:, 1] = torch.randn(2, 33, 47, generator=torch.Generator().manual_seed(0)).clamp(-4, 4) + 5
    weight = torch.zeros(4, 4, 3, 3)
    weight[0, 0, 1, 1], weight[1, 0, 1, 1] = 1, 0.05
    ones, zeros = torch.ones(4), torch.zeros(4)
    y, mean, var = ops.deconv3x3_moments(x, weight, ones, zeros)
    wanted_var, wanted_mean = torch.var_mean(y[:, 0].double(), correction=0)
    assert abs(mean[0] - wanted_mean) < 3e-5
    assert abs(var[0] / wanted_var - 1) < 1e-3
    assert (var >= 0).all()
    assert var[3] == 0


def test_values_cut_off_by_relu_and_places_without_a_switch_give_no_gradient() -> None:
    x, weight, scale, shift, switches = LAYER(torch.float32)
    x.requires_grad_()
    off = (scale[:, None, None] * x + shift[:, None, None] <= 0).detach()
    y, _, _ = ops.deconv3x3_moments(x, weight, scale, shift, switches)
    y.square().sum().backward()
    assert off.any()
    assert not x.grad[off].any()
    assert (x.grad[~off] != 0).all()


def test_gradients_of_gradients_are_refused_by_name() -> None:
    args = [a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in LAYER(torch.float32)]
    y, _, _ = ops.deconv3x3_moments(*args)
    (grad,) = torch.autograd.grad(y.square().sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="deconv3x3_moments_backward has no gradient: it gives gradients"):
        grad.sum().backward()


def test_chain_compiles_into_one_graph_with_its_gradients() -> None:
    x, weight, scale, shift, switches = LAYER(torch.float32)
    follow = torch.randn(33, 40, 3, 3, generator=torch.Generator().manual_seed(1))

    def chain(x: Tensor, weight: Tensor) -> Tensor:
        y, mean, var = ops.deconv3x3_moments(x, weight, scale, shift, switches)
        factor = torch.rsqrt(var + 1e-9)
        y, mean, _ = ops.deconv3x3_moments(y, follow, factor, -mean * factor)
        return y.square().mean() + mean.sum()

    found = []
    for function in (chain, torch.compile(chain, fullgraph=True, backend="aot_eager")):
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        found.append((value := function(*leaves), *torch.autograd.grad(value, leaves)))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


def test_runs_under_deterministic_algorithms_and_repeats_bit_for_bit(restore_threads: None) -> None:
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(
                ops.deconv3x3_moments_backward(*Deconv3x3Moments(3, 33, 64, 9, 8, True).backward(torch.float32))
            )
    finally:
        torch.use_deterministic_algorithms(False)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def changed(name: str, **values: Any) -> tuple:
    """Arguments of a small case with some of them changed: a function of the old one each."""
    schema = [argument.name for argument in getattr(torch.ops.ddn_fast, name).default._schema.arguments]
    args = list(small_case(name, torch.float32))
    for key, change in values.items():
        args[schema.index(key)] = change(args[schema.index(key)])
    return name, tuple(args)


BAD = [
    (*changed("deconv3x3_moments", x=lambda x: x[0]), "x must be [N,C,H,W] with no empty axis, got [40,3,5]"),
    (*changed("deconv3x3_moments", x=lambda x: x[:0]), "x must be [N,C,H,W] with no empty axis, got [0,40,3,5]"),
    (*changed("deconv3x3_moments", x=Tensor.double), "x must be Float or BFloat16, got Double"),
    (*changed("deconv3x3_moments", weight=lambda w: w[:39]), "weight must be [40,O,3,3], got [39,33,3,3]"),
    (*changed("deconv3x3_moments", weight=lambda w: w[:, :3]), "weight must have at least 4 channels in and out, got"),
    (*changed("deconv3x3_moments", weight=Tensor.bfloat16), "weight must be Float, got BFloat16"),
    (*changed("deconv3x3_moments", scale=lambda s: s[1:]), "scale must be [40], got [39]"),
    (*changed("deconv3x3_moments", shift=Tensor.double), "shift must be Float, got Double"),
    (*changed("deconv3x3_moments", switches=lambda s: s[:1]), "switches must be [2,3,5,10], got [1,3,5,10]"),
    (*changed("deconv3x3_moments_backward", grad_y=lambda g: g[..., 1:]), "grad_y must be [2,33,6,10], got [2,33,6,9]"),
    (*changed("deconv3x3_moments_backward", y=Tensor.bfloat16), "y must be Float, got BFloat16"),
    (*changed("deconv3x3_moments_backward", mean=lambda m: m[None]), "mean must be [33], got [1,33]"),
    (*changed("deconv3x3_moments_backward", grad_var=lambda m: m[1:]), "grad_var must be [33], got [32]"),
    (*changed("deconv3x3_moments_backward_score", grad_score=lambda g: g[1:]), "grad_score must be [2,2,6,10], got"),
    (*changed("deconv3x3_moments_backward_score", score_scale=lambda s: s[1:]), "score_scale must be [33], got [32]"),
    (*changed("deconv3x3_moments_backward_score", score_weight=Tensor.double), "score_weight must be Float, got"),
    (*changed("deconv3x3_moments_backward_score", y=lambda y: y[:, 1:]), "y must be [2,33,6,10], got [2,32,6,10]"),
    (*changed("seg_score_backward_vectors", grad_y=Tensor.double), "grad_y must be Float, got Double"),
    (*changed("seg_score", weight=lambda w: w[:1]), "weight must be [2,40], got [1,40]"),
    (*changed("seg_score", bias=lambda b: b[:1]), "bias must be [2], got [1]"),
    (*changed("seg_score_backward", grad_y=lambda g: g[:, :1]), "grad_y must be [2,2,5,3], got [2,1,5,3]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "message"), BAD, ids=[f"{name}: {message}" for name, _, message in BAD])
def test_wrong_argument_is_named_with_what_was_wanted_and_got(name: str, args: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"{name}: {message}")):
        getattr(ops, name)(*args)
