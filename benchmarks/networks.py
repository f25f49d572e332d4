"""The whole network in the ways it can be run, each from resized images to label maps: what ``end_to_end.py`` times.

Every rival is called as ``rival(x, chosen, square, crop)``: x ``[B,3,S,S]`` float32 as SPEC section 1 leaves it, the
class indices of each image, the side of the padded square and the image's own size; it returns a label map ``[h,w]``
uint8 per image, 0 background, k the image's k-th class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import machine
import stock
import torch
from stock_network import StockNetwork
from torch import Tensor

from ddn_fast import reference
from ddn_fast.config import NetConfig
from ddn_fast.engine import FastDecoupledNet
from ddn_fast.network import BatchNorm, DecoupledNet
from ddn_fast.plan import even_slices, plan_passes
from ddn_fast.segmentation import MAX_PASSES

Chosen = list[list[int]]
Crop = tuple[int, int]
Merge = Callable[[Tensor, int, int, Crop], Tensor]
Network = Callable[[Tensor, Chosen, int, Crop], list[Tensor]]

EAGER_LOOP = "eager fp32 loop"
EAGER_BATCHED = "eager fp32 batched"
EAGER_BFLOAT16 = "eager bf16 batched"
STOCK_BEST = "stock best"
OURS_FLOAT32 = "ddn_fast fp32"
OURS_BFLOAT16 = "ddn_fast bf16"
OURS_NO_GRAPHS = "ddn_fast bf16, no graphs"
OURS_FLOAT16 = "ddn_fast fp16"
RIVALS = (EAGER_LOOP, EAGER_BATCHED, EAGER_BFLOAT16, STOCK_BEST, OURS_FLOAT32, OURS_BFLOAT16)
ON_CUDA = (EAGER_LOOP, EAGER_BATCHED, EAGER_BFLOAT16, STOCK_BEST, OURS_BFLOAT16, OURS_NO_GRAPHS, OURS_FLOAT16)
MAX_PASSES_ON_CUDA = 64  # of rivals, in one run of the decoder

ABOUT = {
    EAGER_LOOP: "the plain network, encoder once an image, one decoder run for each of its 1 + K passes",
    EAGER_BATCHED: "the plain network, all images in one encoder run, all passes that are needed in one decoder run",
    EAGER_BFLOAT16: "the same in bfloat16, channels_last",
    STOCK_BEST: "stock PyTorch as an expert runs it: identities, BN folded, bfloat16 (float32 on a CPU that has no "
    "instructions for its products: a quarter of the time), channels_last, torch.compile "
    "with frozen weights (on CUDA in mode max-autotune), pooling kept out of the compiler, dense layers as matrix "
    "products, skinny gate",
    OURS_FLOAT32: "FastDecoupledNet(model, torch.float32)",
    OURS_BFLOAT16: "FastDecoupledNet(model, torch.bfloat16)",
    OURS_NO_GRAPHS: "FastDecoupledNet(model, torch.bfloat16, graphs=False)",
    OURS_FLOAT16: "FastDecoupledNet(model, torch.float16)",
}


def make(name: str, model: DecoupledNet, ops: Any, compiled: bool = True, mode: str | None = None) -> Network:
    """The rival of that name with `model`'s weights, where `model` is.

    ops       where ours come from
    compiled  whether "stock best" is, and in which mode of torch.compile
    """
    if name == EAGER_LOOP:
        return _loop(_stock_pooling(model))
    if name == EAGER_BATCHED:
        return _batched(_stock_pooling(model), _plain_merge)
    if name == EAGER_BFLOAT16:
        twin = _stock_pooling(model, torch.bfloat16)
        twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return _batched(twin, _plain_merge)
    if name == STOCK_BEST:
        return _batched(StockNetwork(model, stock_dtype(model.input_like()), compiled, mode), stock.merge)
    engine = make_engine(name, model, ops)
    return _batched(engine, engine.merge_scores)


def stock_dtype(like: Tensor) -> torch.dtype:
    """In which stock PyTorch is fastest where `like` is."""
    fast = stock.on_cuda(like) or machine.multiplies_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def make_engine(name: str, model: DecoupledNet, ops: Any = None) -> FastDecoupledNet:
    """The one of ours of that name."""
    dtype = {OURS_FLOAT32: torch.float32, OURS_FLOAT16: torch.float16}.get(name, torch.bfloat16)
    return FastDecoupledNet(model, dtype=dtype, ops=ops, graphs=False if name == OURS_NO_GRAPHS else None)


def _plain_merge(difference: Tensor, classes: int, square: int, crop: Crop) -> Tensor:
    return reference.merge_scores(difference, classes, square, list(crop))


def _stock_pooling(model: DecoupledNet, dtype: torch.dtype = torch.float32) -> DecoupledNet:
    """`model` on torch's own pooling; in float32 its parameters are shared, not copied."""
    twin = DecoupledNet.__new__(DecoupledNet)
    torch.nn.Module.__init__(twin)
    twin.config, twin.ops = model.config, stock.TorchPooling
    for name, part in model.named_children():
        copy = part
        if dtype != torch.float32:
            with model.input_like().device:
                copy = type(part)(model.config).to(dtype)
            copy.load_state_dict(part.state_dict())
        twin.add_module(name, copy)
    return twin.eval()


def _loop(model: DecoupledNet) -> Network:
    def run(x: Tensor, chosen: Chosen, square: int, crop: Crop) -> list[Tensor]:
        maps = []
        for image, classes in zip(x.to(model.input_like()), chosen, strict=True):
            features, head = model.encode(image[None])
            scores = head.scores
            differences = []
            for labels in [classes, *([label] for label in classes)] if classes else []:
                y = torch.zeros_like(scores)
                y[0, labels] = scores[0, labels]
                pair = model.decode(features, head, y, torch.zeros(1, dtype=torch.int64))
                differences.append(pair[:, 1] - pair[:, 0])
            maps.append(_label_map(differences, len(classes), square, crop, _plain_merge))
        return _on_host(maps)

    return run


def _batched(model: Any, merge: Merge) -> Network:
    """As ``segment`` runs it: the passes that are needed, in even groups of at most MAX_PASSES."""
    like = model.input_like()
    step = MAX_PASSES_ON_CUDA if stock.on_cuda(like) else MAX_PASSES

    def run(x: Tensor, chosen: Chosen, square: int, crop: Crop) -> list[Tensor]:
        scores, state = model.score_images(x.to(like, non_blocking=True))
        passes = plan_passes(scores.float(), chosen)
        groups = even_slices(len(passes), step)
        planes = _each(model.score_passes(state, passes.labels[g], passes.image_of_pass[g]).float() for g in groups)
        return _on_host(
            [
                _label_map([next(planes) for _ in range(count)], len(classes), square, crop, merge)
                for classes, count in zip(passes.classes, passes.counts(), strict=True)
            ]
        )

    return run


def _on_host(maps: list[Tensor]) -> list[Tensor]:
    """Label maps of one size, those of a CUDA device in one transfer."""
    if not any(map(stock.on_cuda, maps)):
        return maps
    device = next(label_map.device for label_map in maps if stock.on_cuda(label_map))
    return list(torch.stack([label_map.to(device) for label_map in maps]).cpu())


def _each(groups: Iterator[Tensor]) -> Iterator[Tensor]:
    """The planes ``[1,S,S]`` of each group, as views."""
    for group in groups:
        yield from group.split(1)


def _label_map(differences: list[Tensor], classes: int, square: int, crop: Crop, merge: Merge) -> Tensor:
    if not classes:
        return torch.zeros(crop, dtype=torch.uint8)
    difference = differences[0] if len(differences) == 1 else torch.cat(differences)
    return merge(difference, classes, square, crop)


def random_network(config: NetConfig, x: Tensor, seed: int = 0) -> DecoupledNet:
    """A plain network with random weights whose activations stay sane, as if it had been trained on x ``[B,3,S,S]``.

    He's weights, small biases, batch statistics taken from x itself, class scores and seg-scores scaled to spread:
    about half of all units are on, and label maps hold every label. A trained network has fewer units on.
    """
    torch.manual_seed(seed)
    with x.device:
        model = DecoupledNet(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            assert module.bias is not None
            torch.nn.init.normal_(module.bias, 0, 0.02)
        elif isinstance(module, BatchNorm):
            torch.nn.init.normal_(module.weight, 1, 0.1)
            torch.nn.init.normal_(module.bias, 0, 0.05)
    first, score = model.encoder.get_submodule("conv1_1"), model.decoder.seg_score
    assert isinstance(first, torch.nn.Conv2d)
    assert score.bias is not None
    with torch.no_grad():
        first.weight /= x.std()
        logits = model.encode(x)[1].score_map.mean((2, 3))
        model.head.cls_score.weight /= logits.std().clamp(min=1e-3)
        hooks = [m.register_forward_pre_hook(_take_statistics) for m in model.modules() if isinstance(m, BatchNorm)]
        labels = torch.full((len(x), config.num_classes), 0.5, device=x.device)
        pair = model(x, labels, torch.arange(len(x)))
        for hook in hooks:
            hook.remove()
        difference = pair[:, 1] - pair[:, 0]
        scale = 4 / difference.std().clamp(min=1e-6)
        score.weight *= scale
        score.bias *= scale
        score.bias[1] -= scale * difference.mean()
    return model


def _take_statistics(module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
    assert isinstance(module, BatchNorm)
    variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
    module.running_mean.copy_(mean)
    module.running_var.copy_(variance.clamp(min=1e-6))
