"""What stage 2 trains, put together from the ops of training, against the network's own modules in training mode."""

from __future__ import annotations

import weakref
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddn_fast import ops, reference
from ddn_fast.config import NetConfig
from ddn_fast.network import BatchNorm, DecoupledNet
from ddn_fast.training.bn import reestimate
from ddn_fast.training.loss import segmentation_loss
from ddn_fast.training.segmenter import Frozen, frozen_plain
from ddn_fast.training.solver import train_only, trained_modules
from ddn_fast.training.trained_part import _computed_again, trained_scores

CONFIG = NetConfig(("ant", "bee", "cow"), 64, (6, 8, 36, 40, 33), fc=20, bridge=24, fc_kernel=2)


def made(config: NetConfig = CONFIG, seed: int = 0, images: int = 3) -> tuple[DecoupledNet, Frozen, Tensor]:
    """A network that is to be trained, what its frozen part gives for some items, and their targets."""
    torch.manual_seed(seed)
    net = DecoupledNet(config, ops).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train_only(net, trained_modules(net, "segmenter"))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    subset = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1]]).repeat(images, 1)[:images]
    fixed = frozen_plain(net, 60 * torch.randn(images, 3, config.side, config.side), subset)
    target = torch.randint(0, 2, (images, config.side, config.side))
    target[0, :9] = 255
    return net, fixed, target


def plain_scores(net: DecoupledNet, fixed: Frozen) -> Tensor:
    """By the modules of the network."""
    return net.decoder(net.bridge(fixed.pool5, fixed.class_map), fixed.switches, None, reference)


def doubled(net: DecoupledNet, fixed: Frozen) -> tuple[DecoupledNet, Frozen]:
    return net.double(), Frozen(fixed.pool5.double(), fixed.class_map.double(), fixed.switches)


def gradients(net: DecoupledNet, scores: Tensor, target: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    loss = segmentation_loss(scores, target)
    assert loss is not None
    loss.backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def test_scores_and_gradients_are_those_of_the_network_in_float64() -> None:
    net, fixed, target = made()
    net, fixed = doubled(net, fixed)
    ours, theirs = trained_scores(net, *fixed), plain_scores(net, fixed)
    torch.testing.assert_close(ours, theirs)
    got, wanted = gradients(net, ours, target), gradients(net, theirs, target)
    normalised = {name.replace("_bn.weight", ".bias") for name in wanted if name.endswith("_bn.weight")}
    assert got.keys() == wanted.keys() - normalised
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[name], msg=lambda text, name=name: f"{name}: {text}")
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for name in normalised & wanted.keys():
        assert wanted[name].abs().max() < 1e-12 * largest, name


def distances(seed: int, half: bool) -> list[tuple[float, float]]:
    """How far scores and all gradients together are from float64: of the fused ops, of the network's own modules."""
    net, fixed, target = made(seed=seed)
    found = []
    for way in (lambda: trained_scores(net, *fixed), lambda: plain_scores(net, fixed)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            scores = way().float()
        got = {name: gradient.double() for name, gradient in gradients(net, scores, target).items()}
        found.append((scores.detach().double(), got))
    exact = plain_scores(*doubled(net, fixed))
    wanted = gradients(net, exact, target)
    return [
        (
            float((scores - exact.detach()).norm() / exact.detach().norm()),
            sum(float((got[name] - wanted[name]).square().sum()) for name in found[0][1]) ** 0.5,
        )
        for scores, got in found
    ]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_fused_ops_are_about_as_exact_as_the_network_in_the_same_precision(half: bool) -> None:
    """Winograd's rounding is about twice a plain sum's. The median of some networks: where an activation is zero to
    within rounding, either way may cut it off, and the gradients below it differ."""
    every = [distances(seed, half) for seed in range(5)]
    for place in range(2):  # scores, gradients
        ratios = sorted(fused[place] / plain[place] for fused, plain in every)
        assert ratios[2] < 4, ratios
    assert max(fused[0] for fused, _ in every) < (0.2 if half else 1e-4)


def test_gradients_repeat_bit_for_bit_under_deterministic_algorithms() -> None:
    net, fixed, target = made()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (gradients(net, trained_scores(net, *fixed), target) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_compiles_into_one_graph_with_the_same_gradients() -> None:
    net, fixed, target = made()

    def scores(pool5: Tensor, class_map: Tensor, *switches: Tensor) -> Tensor:
        return trained_scores(net, pool5, class_map, switches)

    torch._dynamo.reset()
    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")
    arguments = fixed.pool5, fixed.class_map, *fixed.switches
    got, wanted = compiled(*arguments), scores(*arguments)
    torch.testing.assert_close(got, wanted)
    found = gradients(net, got, target)
    found = {name: gradient.clone() for name, gradient in found.items()}
    for name, gradient in gradients(net, wanted, target).items():
        torch.testing.assert_close(found[name], gradient)


def test_statistics_seen_on_the_way_are_those_of_the_network() -> None:
    net, fixed, _ = made()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith(".bias"):
                p.normal_()  # also those that normalisation takes away: the statistics hold them
    net, fixed = doubled(net, fixed)
    found = []
    for scores in (lambda: trained_scores(net, *fixed), lambda: plain_scores(net, fixed)):
        reestimate(net, [None, None], lambda _, scores=scores: scores())
        found.append({n: b.clone() for n, b in net.named_buffers()})
        assert all(m.observer is None for m in net.modules() if isinstance(m, BatchNorm))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])


def test_stages_of_fewer_channels_than_the_ops_take_are_trained_by_the_plain_formulas() -> None:
    net, fixed, target = made(NetConfig(("ant", "bee", "cow"), 64, (2, 3, 4, 5, 6), fc=8, bridge=9, fc_kernel=1))
    assert gradients(net, trained_scores(net, *fixed), target)


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors made inside that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self.live += size
        self.most = max(self.most, self.live)

        def gone(_: Any) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)


def kept_and_most(net: DecoupledNet, target: Tensor, scores: Any) -> tuple[int, int]:
    """Bytes that one forward pass leaves for the gradients, and the most at once through both."""
    net.zero_grad()
    with LiveBytes() as bytes_:
        loss = segmentation_loss(scores(), target)
        kept = bytes_.live
        loss.backward()
    return kept, bytes_.most


def test_of_each_layer_one_map_is_kept_for_the_gradients_and_with_recompute_of_each_stage() -> None:
    config = NetConfig(("ant", "bee", "cow"), 64, (16, 32, 64, 64, 64), fc=8, bridge=8, fc_kernel=1)
    net, fixed, target = made(config)
    sizes = [
        len(target) * 4 * layer.out_channels * (config.side >> (int(name[6]) - 1)) ** 2
        for name, layer in net.decoder.named_children()
        if isinstance(layer, torch.nn.ConvTranspose2d)
    ]
    dropped = [size for size, again in zip(sizes, _computed_again(True), strict=True) if again]
    ours, fewer, theirs = (
        kept_and_most(net, target, scores)
        for scores in (
            lambda: trained_scores(net, *fixed),
            lambda: trained_scores(net, *fixed, recompute=True),
            lambda: plain_scores(net, fixed),
        )
    )
    assert sum(sizes) <= ours[0] < 1.1 * sum(sizes)  # beside the maps: the loss, the bridge, vectors
    assert fewer[0] == ours[0] - sum(dropped)
    assert ours[1] < sum(sizes) + 1.15 * sizes[-1] + 0.1 * sum(sizes)  # and the gradient of one map
    assert fewer[1] < ours[1] - 0.9 * sum(dropped)
    assert ours[0] < 0.45 * theirs[0]
    assert ours[1] < 0.5 * theirs[1]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_maps_computed_again_give_the_same_bits(half: bool) -> None:
    net, fixed, target = made()
    found = []
    for recompute in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            scores = trained_scores(net, *fixed, recompute=recompute)
        found.append({"scores": scores.detach(), **gradients(net, scores.float(), target)})
        found[-1] = {name: value.clone() for name, value in found[-1].items()}
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_every_layer_is_computed_once_more_at_most() -> None:
    net, fixed, target = made()
    layers = sum(isinstance(m, torch.nn.ConvTranspose2d) for m in net.decoder.modules())
    with mock.patch.object(ops, "deconv3x3_moments", wraps=ops.deconv3x3_moments) as counted:
        gradients(net, trained_scores(net, *fixed, recompute=True), target)
    assert counted.call_count == layers + sum(_computed_again(True))


def test_second_backward_pass_is_refused_by_name() -> None:
    net, fixed, target = made()
    loss = segmentation_loss(trained_scores(net, *fixed), target)
    assert loss is not None
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="wanted the first backward pass, got another"):
        loss.backward()
