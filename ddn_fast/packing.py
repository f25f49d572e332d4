"""How the weights of 3x3 convolutions lie in memory for :func:`ddn_fast.ops.conv3x3`, and back.

Channels are padded with zeros to blocks of 32. Four layouts; which one a kernel gets decides what it computes:

pairs     ``[O/32, C/32, T, 2, 16, 16, 2]`` bfloat16: out block, in block, tap, half of the out block, pair of inputs,
          output, input of the pair. One ``[16,16,2]`` is what a bfloat16 dot product instruction wants: a tile of AMX.
          The only layout on CUDA, there in float16 too: a 32-bit word, one pair of one output, is what its matrix
          instruction wants of each thread, and 16 bytes are those of four instructions.
direct    ``[O/32, C/32, T, 32, 32]`` float32: out block, in block, tap, input, output.
winograd  ``[O/32, 6, 6, C/32, 32, 32]`` float32: ``G g G^T`` of F(4x4, 3x3), for a quarter of the multiplications
          (Lavin and Gray, 2016); out block, row and column of the transformed kernel, in block, input, output.
winograd_int16  ``[O/32, 6, 6, C/2 + 1, 32, 2]`` int16, C padded: the same as whole numbers; out block, row and column
          of the transformed kernel, pair of inputs, output, input of the pair. In the place of one more pair stand the
          32 outputs' scales in float32: what products are worth, of these weights and of inputs made whole as
          ``csrc/cpu/conv3x3_winograd_int16.h`` says.

T is 9 taps, row-major. Up to 3 input channels (the first layer) T is 1: the 27 values under the kernel are one block of
"channels", ``tap * C + c``. A transposed convolution is packed as the convolution it equals (SPEC identity 9).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError

Layout = Literal["pairs", "direct", "winograd", "winograd_int16"]

BLOCK = 32
# Instruction sets that multiply 16-bit integers faster than floats: AVX-512 without VNNI does not
INTEGERS = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16")
CUDA = "cuda"  # stands where the CPU has the name of an instruction set

# G of F(4x4, 3x3) at the points 0, +-sqrt(1/2), +-sqrt(2), infinity: a fifth of the rounding error of 0, +-1, +-2
_ROOT = 2**0.5
_WINOGRAD = torch.tensor(
    [
        [1, 0, 0],
        [-2 / 3, -_ROOT / 3, -1 / 3],
        [-2 / 3, _ROOT / 3, -1 / 3],
        [1 / 6, _ROOT / 6, 1 / 3],
        [1 / 6, -_ROOT / 6, 1 / 3],
        [0, 0, 1],
    ],
    dtype=torch.float64,
    device="cpu",
)


# |B^T d| of each row at most, where |d| <= 1
_BOUND = torch.tensor(
    [4.5, 3 + 1.5 * _ROOT, 3 + 1.5 * _ROOT, 1.5 + 1.5 * _ROOT, 1.5 + 1.5 * _ROOT, 4.5],
    dtype=torch.float64,
    device="cpu",
)
_LARGEST_INPUT = 32760  # as a 16-bit integer
_MOST_WEIGHT = 32767
_TOGETHER = 2  # blocks of inputs whose products are added up as integers
_MOST_TOGETHER = 65535  # sum of |weight| over them: times an input, it stays below 2^31


def one_block(channels: int) -> bool:
    """Whether all values under the kernel fit one block of channels (T = 1)."""
    return 9 * channels <= BLOCK


def conv3x3_layout(dtype: torch.dtype, isa: str, in_channels: int) -> Layout:
    """The layout to take for maps of this dtype on this instruction set (a name of ``_C.cpu_isas()``, or CUDA).

    ================  =============  =======================  ========
    maps              isa            layer                    layout
    ================  =============  =======================  ========
    bfloat16          amx_bf16       every                    pairs
    of 16 bits        CUDA           every                    pairs
    bfloat16          of INTEGERS    every but the first      winograd_int16
    bfloat16          others         every but the first      winograd
    float32           every          every but the first      winograd
    any               every          every other              direct
    ================  =============  =======================  ========

    Winograd's rounding is twice a plain sum's and differs from place to place within a tile. Values hardly show it; but
    where an image is constant, as in its padding, the four values of a pooling window tie exactly, and the first must
    win. So :func:`ddn_fast.ops.conv3x3_max_pool2x2` computes what ties alone in float32
    (``csrc/cpu/conv3x3_tiles.h``): that engine is there for label maps that hardly ever differ.
    """
    if (isa == "amx_bf16" and dtype == torch.bfloat16) or (isa == CUDA and dtype.itemsize == 2):
        return "pairs"
    if isa in INTEGERS and dtype == torch.bfloat16 and not one_block(in_channels):
        return "winograd_int16"
    return "direct" if dtype == torch.float64 or one_block(in_channels) else "winograd"


def pack_conv3x3(weight: Tensor, layout: Layout, dtype: torch.dtype = torch.float32) -> Tensor:
    """weight ``[O,C,3,3]`` of a convolution, any floating dtype, to `layout`. The first layer has no winograd layout.

    `dtype` is that of the direct and winograd layouts; kernels take float32, the plain formulas float64 too. The pairs
    layout is float16 where `dtype` is, else bfloat16.
    """
    if weight.dim() != 4 or tuple(weight.shape[2:]) != (3, 3) or not weight.is_floating_point():
        raise InputError(f"weight: wanted floating [O,C,3,3], got {weight.dtype} {list(weight.shape)}")
    taps = weight.detach().double().flatten(2).permute(2, 1, 0)  # [9,C,O]
    if layout in ("winograd", "winograd_int16"):
        if one_block(weight.shape[1]):
            raise InputError(f"weight: the {layout} layout wants at least 4 input channels, got {weight.shape[1]}")
        g = _WINOGRAD.to(weight.device)
        taps = (torch.kron(g, g) @ taps.flatten(1)).view(36, *taps.shape[1:])  # [36,C,O], G g G^T
    elif one_block(weight.shape[1]):
        taps = taps.reshape(1, -1, weight.shape[0])
    blocks = _blocks(taps)  # [T,C/32,32,O/32,32]
    if layout == "winograd":
        return blocks.permute(3, 0, 1, 2, 4).unflatten(1, (6, 6)).to(dtype).contiguous()
    if layout == "winograd_int16":
        return _whole_numbers(blocks)
    if layout == "direct":
        return blocks.permute(3, 1, 0, 2, 4).to(dtype).contiguous()
    if layout == "pairs":
        halves = blocks.unflatten(4, (2, 16)).unflatten(2, (16, 2))  # [T,C/32,16,2,O/32,2,16]
        narrow = torch.float16 if dtype == torch.float16 else torch.bfloat16
        return halves.permute(4, 1, 0, 5, 2, 6, 3).to(narrow).contiguous()
    raise InputError(f"layout: wanted one of {', '.join(get_args(Layout))}, got {layout!r}")


def unpack_conv3x3(packed: Tensor, out_channels: int, in_channels: int) -> Tensor:
    """The reverse: ``[O,C,3,3]`` float64; InputError if `packed` is none of the layouts for these channels."""
    if packed.dtype == torch.int16 and tuple(packed.shape[4:]) == (BLOCK, 2):
        blocks = _weights_of(packed)
    elif packed.dim() == 6:
        blocks = packed.double().flatten(1, 2).permute(1, 2, 3, 0, 4)
    elif packed.dim() == 5:
        blocks = packed.double().permute(2, 1, 3, 0, 4)
    elif packed.dim() == 7:
        blocks = packed.double().permute(2, 1, 4, 6, 0, 3, 5).flatten(5).flatten(2, 3)
    else:
        raise InputError(f"packed: wanted 5, 6 or 7 dimensions, got {packed.dim()}")
    taps = blocks.flatten(3).flatten(1, 2)  # [T,C,O], padded
    wanted = -(-out_channels // BLOCK) * BLOCK, 9 * in_channels if len(taps) == 1 else in_channels
    if taps.shape[2] != wanted[0] or taps.shape[1] != -(-wanted[1] // BLOCK) * BLOCK:
        raise InputError(
            f"packed: wanted the weights of {in_channels} to {out_channels} channels, got {list(packed.shape)}"
        )
    taps = taps[:, : wanted[1], :out_channels]
    if len(taps) == 36:
        inverse = torch.linalg.pinv(_WINOGRAD.to(packed.device))
        return inverse @ taps.permute(2, 1, 0).unflatten(2, (6, 6)) @ inverse.T
    return taps.reshape(9, in_channels, out_channels).permute(2, 1, 0).unflatten(2, (3, 3))


def _whole_numbers(blocks: Tensor) -> Tensor:
    """``[36,C/32,32,O/32,32]``, the transformed kernels, to the winograd_int16 layout."""
    sums = F.pad(blocks.abs().sum(2), (0, 0, 0, 0, 0, -blocks.shape[1] % _TOGETHER))
    most = sums.unflatten(1, (-1, _TOGETHER)).sum(2).amax(1)
    by_sum = (_MOST_TOGETHER - _TOGETHER * BLOCK / 2) / most  # less what rounding may add
    scale = torch.minimum(by_sum, _MOST_WEIGHT / blocks.abs().amax((1, 2)))
    scale = torch.where(scale.isfinite(), scale, 0)  # [36,O/32,32]; of nothing but zeros
    whole = (blocks * scale[:, None, None]).round().to(torch.int16)
    pairs = whole.flatten(1, 2).unflatten(1, (-1, 2)).permute(3, 0, 1, 4, 2)  # [O/32,36,C/2,32,2]
    worth = torch.where(scale > 0, _bounds(scale) / scale, 0).float().permute(1, 0, 2)
    packed = torch.cat([pairs, worth.contiguous().view(torch.int16).unflatten(2, (1, BLOCK, 2))], 2)
    return packed.unflatten(1, (6, 6)).contiguous()


def _weights_of(packed: Tensor) -> Tensor:
    """The reverse, but for what was rounded."""
    rows = packed.flatten(1, 2)  # [O/32,36,C/2+1,32,2]
    worth = rows[:, :, -1].contiguous().view(torch.float32).squeeze(3).double().permute(1, 0, 2)
    pairs = rows[:, :, :-1].double().permute(1, 2, 4, 0, 3).flatten(1, 2).unflatten(1, (-1, BLOCK))
    return pairs * (worth / _bounds(worth))[:, None, None]


def _bounds(like: Tensor) -> Tensor:
    """``[36,1,1]``: the value of an input's unit at each point, for inputs up to 1."""
    bound = _BOUND.to(like.device)
    return (bound[:, None] * bound).flatten()[:, None, None] / _LARGEST_INPUT


def _blocks(taps: Tensor) -> Tensor:
    """``[T,C,O]`` to ``[T,C/32,32,O/32,32]``, padded with zeros."""
    padding = (0, -taps.shape[2] % BLOCK, 0, -taps.shape[1] % BLOCK)
    return F.pad(taps, padding).unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK))
