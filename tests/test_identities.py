"""Each identity of SPEC section 9 against the plain formula, in float64: what the fast paths may rely on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddn_fast import reference
from ddn_fast.config import NetConfig
from ddn_fast.network import BN_EPS, BatchNorm, DecoupledNet, Features, HeadOutput
from ddn_fast.plan import plan_passes

L, IMAGES = 5, 3
Encoded = tuple[Features, HeadOutput]


@pytest.fixture(scope="module")
def net() -> DecoupledNet:
    """A narrow network with a 3x3 kernel over a 5x5 map and batch statistics that are not the neutral ones."""
    torch.manual_seed(0)
    config = NetConfig(tuple("abcde"), side=160, widths=(4, 5, 6, 8, 8), fc=24, bridge=12, fc_kernel=3)
    model = DecoupledNet(config).double().eval()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
        elif getattr(module, "bias", None) is not None:
            torch.nn.init.normal_(module.bias, 0, 0.3)
    return model


@pytest.fixture(scope="module")
def encoded(net: DecoupledNet) -> Encoded:
    torch.manual_seed(1)
    with torch.no_grad():
        return net.encode(torch.randn(IMAGES, 3, 160, 160, dtype=torch.float64))


def same(got: Tensor, wanted: Tensor) -> None:
    assert wanted.abs().max() > 0, "the case says nothing"
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12 * wanted.abs().max().item())


def one_hot(values: list[tuple[int, float]]) -> Tensor:
    y = torch.zeros(1, L, dtype=torch.float64)
    for label, value in values:
        y[0, label] = value
    return y


def affine(bn: BatchNorm) -> tuple[Tensor, Tensor]:
    """BN at inference as scale and shift."""
    scale = bn.weight / torch.sqrt(bn.running_var + BN_EPS)
    return scale, bn.bias - bn.running_mean * scale


@torch.no_grad()
def test_identity_1_the_gate_is_two_vector_matrix_products(net: DecoupledNet, encoded: Encoded) -> None:
    _, head = encoded
    grid = net.config.grid
    w7 = net.head.fc7.weight.flatten(1)
    w6 = net.head.fc6.weight  # [fc,C5,k,k]
    for image in range(IMAGES):
        for label in range(L):
            wanted = net.head.class_map(head, one_hot([(label, 0.7)]), torch.tensor([image]))[0]
            row, column = divmod(int(head.position[image, label]), grid)
            g7 = 0.7 * net.head.cls_score.weight[label].flatten() * head.mask7[image, :, row, column]
            g6 = g7 @ w7 * head.mask6[image, :, row, column]
            got = torch.zeros_like(wanted)
            got[:, row : row + 3, column : column + 3] = (g6 @ w6.flatten(1)).view(w6.shape[1:])
            same(got, wanted)


@torch.no_grad()
def test_identity_2_the_map_of_all_labels_is_the_sum_of_its_classes(net: DecoupledNet, encoded: Encoded) -> None:
    _, head = encoded
    labels = torch.rand(1, L, dtype=torch.float64)
    image = torch.tensor([1])
    together = net.head.class_map(head, labels, image)
    apart = [net.head.class_map(head, one_hot([(k, labels[0, k].item())]), image) for k in range(L)]
    same(sum(apart), together)  # type: ignore[arg-type]


@torch.no_grad()
def test_identity_3_fc6_seg_splits_before_bn(net: DecoupledNet, encoded: Encoded) -> None:
    features, head = encoded
    bridge, image = net.bridge, torch.tensor([0])
    y = [one_hot([(k, 0.3 + 0.1 * k)]) for k in range(L)]
    class_maps = [net.head.class_map(head, row, image) for row in y]
    scale, shift = affine(bridge.class_map_bn)
    half = bridge.fc6_seg.in_channels // 2
    of_image = F.conv2d(bridge.pool5_bn(features.pool5[:1]), bridge.fc6_seg.weight[:, :half], bridge.fc6_seg.bias)
    of_class = [F.conv2d(m * scale[:, None, None], bridge.fc6_seg.weight[:, half:]) for m in class_maps]
    of_shift = F.conv2d(shift[None, :, None, None].expand_as(class_maps[0]), bridge.fc6_seg.weight[:, half:])
    trace: dict[str, Tensor] = {}
    bridge(features.pool5[:1], sum(class_maps), trace)
    same(F.relu(bridge.fc6_seg_bn(of_image + of_shift + sum(of_class))), trace["fc6_seg"])


@torch.no_grad()
def test_identity_4_one_label_needs_one_pass(net: DecoupledNet) -> None:
    scores = torch.rand(3, L)
    passes = plan_passes(scores, [[], [2], [0, 1, 4]])
    assert passes.counts() == [0, 1, 4]
    assert passes.image_of_pass.tolist() == [1, 2, 2, 2, 2]
    alone, all_of_one = passes.labels[0], torch.where(torch.arange(L) == 2, scores[1], 0)
    assert torch.equal(alone, all_of_one)


def test_identity_5_softmax_of_two_is_the_sigmoid_of_their_difference() -> None:
    scores = torch.randn(4, 2, 9, 9, dtype=torch.float64) * 5
    difference = scores[:, 1] - scores[:, 0]
    same(torch.sigmoid(difference), scores.softmax(1)[:, 1])
    same(torch.sigmoid(-difference), scores.softmax(1)[:, 0])


@torch.no_grad()
def test_identity_6_bn_folds_into_the_convolution_before_it(net: DecoupledNet, encoded: Encoded) -> None:
    x = torch.randn(2, net.config.widths[4], 6, 6, dtype=torch.float64)
    deconv, bn = net.decoder.deconv5_1, net.decoder.deconv5_1_bn
    assert isinstance(bn, BatchNorm)
    scale, shift = affine(bn)
    weight, bias = deconv.weight * scale[None, :, None, None], deconv.bias * scale + shift
    same(F.conv_transpose2d(x, weight, bias, padding=1), bn(deconv(x)))
    # the two BNs before fc6-seg fold forward: it has no padding, so a shift is one constant for all places
    features, head = encoded
    bridge, image = net.bridge, torch.tensor([2])
    joined = torch.cat([features.pool5[2:], net.head.class_map(head, one_hot([(1, 0.9)]), image)], 1)
    scales, shifts = zip(affine(bridge.pool5_bn), affine(bridge.class_map_bn), strict=True)
    weight = bridge.fc6_seg.weight * torch.cat(scales)[:, None, None]
    bias = bridge.fc6_seg.bias + (bridge.fc6_seg.weight * torch.cat(shifts)[:, None, None]).sum((1, 2, 3))
    trace: dict[str, Tensor] = {}
    bridge(*joined.chunk(2, 1), trace)
    same(F.relu(bridge.fc6_seg_bn(F.conv2d(joined, weight, bias))), trace["fc6_seg"])


@torch.no_grad()
def test_identity_7_switches_are_two_bits_and_shared_by_an_images_passes(net: DecoupledNet, encoded: Encoded) -> None:
    features, head = encoded
    labels, image_of_pass = torch.rand(4, L, dtype=torch.float64), torch.tensor([2, 0, 2, 1])
    together = net.decode(features, head, labels, image_of_pass)
    for p, image in enumerate(image_of_pass):
        alone = Features(features.pool5[image, None], tuple(s[image, None] for s in features.switches))
        one = HeadOutput(*(t[image, None] for t in head))
        same(net.decode(alone, one, labels[p, None], torch.tensor([0]))[0], together[p])
    for stage, switches in enumerate(features.switches):
        side, width = net.config.side >> stage + 1, net.config.widths[stage]
        assert switches.shape == (IMAGES, side, side, -(-width // 4))
        assert switches.dtype == torch.uint8


def test_identity_8_an_unpooled_map_is_three_quarters_zeros_at_known_places() -> None:
    y, switches = reference.max_pool2x2(torch.randn(2, 6, 8, 8, dtype=torch.float64))
    unpooled = reference.max_unpool2x2(y, switches, 8, 8)
    position = reference.unpack_switches(switches, 6).repeat_interleave(2, 2).repeat_interleave(2, 3)
    here = 2 * (torch.arange(8) % 2)[:, None] + torch.arange(8) % 2
    assert torch.equal(unpooled != 0, position == here)
    assert (unpooled == 0).double().mean() == 0.75


@pytest.mark.parametrize(("in_channels", "out_channels"), [(3, 5), (8, 8), (6, 2)])
def test_identity_9_a_transposed_convolution_is_a_flipped_one(in_channels: int, out_channels: int) -> None:
    x = torch.randn(2, in_channels, 7, 9, dtype=torch.float64)
    weight = torch.randn(in_channels, out_channels, 3, 3, dtype=torch.float64)
    same(F.conv2d(x, weight.flip(2, 3).transpose(0, 1), padding=1), F.conv_transpose2d(x, weight, padding=1))


@torch.no_grad()
def test_identity_10_only_weight_rows_that_are_on_matter(net: DecoupledNet, encoded: Encoded) -> None:
    _, head = encoded
    image, label = 1, 3
    row, column = divmod(int(head.position[image, label]), net.config.grid)
    on7, on6 = head.mask7[image, :, row, column], head.mask6[image, :, row, column]
    assert 0 < on7.sum() < len(on7)
    wanted = net.head.class_map(head, one_hot([(label, 0.6)]), torch.tensor([image]))
    w7, w6, wc = net.head.fc7.weight.clone(), net.head.fc6.weight.clone(), net.head.cls_score.weight[label].flatten()
    w7[~on7], w6[~on6] = float("nan"), float("nan")  # rows that are off must not be read
    g6 = (0.6 * wc[on7]) @ w7.flatten(1)[on7]
    got = (g6[on6] @ w6.flatten(1)[on6]).view(w6.shape[1:])
    same(got, wanted[0, :, row : row + 3, column : column + 3])


@torch.no_grad()
def test_identity_11_scores_need_only_the_mean_of_fc7(net: DecoupledNet, encoded: Encoded) -> None:
    features, head = encoded
    trace: dict[str, Tensor] = {}
    net.head(features.pool5, trace=trace)
    mean = trace["fc7"].mean((2, 3))
    same(torch.sigmoid(F.linear(mean, net.head.cls_score.weight.flatten(1), net.head.cls_score.bias)), head.scores)
