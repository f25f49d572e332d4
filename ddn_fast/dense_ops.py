"""The products of matrices among the fused ops, part of :mod:`ddn_fast.ops`: dense layers and their gradients.

Each is made of the other's: ``dense`` is ``x @ weight.T``, ``dense_outer`` is ``a.T @ b``. On CUDA both are the vendor
library's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_Context = Any  # torch's autograd context has no public type


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """``x @ weight.T + bias``, then perhaps ReLU: fc6, fc7 and their kin as products of matrices (SPEC section 3).

    x ``[M,K]``, weight ``[N,K]``, each float32 or bfloat16, bias ``[N]`` float32; returns ``[M,N]`` float32. x is
    rounded to weight's dtype; products are summed in float32. Every weight is read once for up to 128 rows of x.
    Gradients: of float32 x and weight, without bias and ReLU.
    """
    return torch.ops.ddn_fast.dense.default(x, weight, bias, relu)


def dense_outer(a: Tensor, b: Tensor) -> Tensor:
    """``a.T @ b``: the sum of the outer products of their rows, of which the gradients of :func:`dense` are made.

    a ``[D,R]``, b ``[D,C]``, float32; returns ``[R,C]``. Its gradients are made of :func:`dense` and itself.
    """
    return torch.ops.ddn_fast.dense_outer.default(a, b)


def register() -> None:
    """Gives torch the fake kernels, the gradients and what runs on CUDA; the schemas must be there."""
    library = torch.library
    library.register_fake("ddn_fast::dense")(_dense_fake)
    library.register_fake("ddn_fast::dense_outer")(_dense_outer_fake)
    library.register_kernel("ddn_fast::dense", "cuda")(without_autocast(_dense_cuda))
    library.register_kernel("ddn_fast::dense_outer", "cuda")(without_autocast(_dense_outer_cuda))
    library.register_autograd("ddn_fast::dense", _dense_backward, setup_context=_dense_context)
    library.register_autograd("ddn_fast::dense_outer", _dense_outer_backward, setup_context=_dense_outer_context)


def without_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel made of torch's own ops, which autocast would otherwise give dtypes that the op does not promise."""

    @functools.wraps(kernel)
    def as_written(x: Tensor, *rest: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return kernel(x, *rest)

    return as_written


def check_float(op: str, **tensors: Tensor) -> None:
    """Each of the named tensors is of a dtype that products take."""
    for name, tensor in tensors.items():
        takes = tensor.dtype in (torch.float32, torch.bfloat16) or (tensor.is_cuda and tensor.dtype == torch.float16)
        _check_dtype(op, name, tensor, takes, "Float or BFloat16")


def _check_dtype(op: str, name: str, tensor: Tensor, met: bool, wanted: str) -> None:
    torch._check(met, lambda: f"{op}: {name} must be {wanted}, got {tensor.dtype}")


def check_shape(op: str, name: str, tensor: Tensor, wanted: list[int]) -> None:
    """The tensor has exactly this shape."""
    torch._check(list(tensor.shape) == wanted, lambda: f"{op}: {name} must be {wanted}, got {list(tensor.shape)}")


def _check_dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_float("dense", x=x, weight=weight)
    torch._check(weight.dim() == 2, lambda: f"dense: weight must be [N,K], got {list(weight.shape)}")
    outputs, inputs = weight.shape
    torch._check(x.dim() == 2 and x.shape[1] == inputs, lambda: f"dense: x must be [M,{inputs}], got {list(x.shape)}")
    if bias is not None:
        check_shape("dense", "bias", bias, [outputs])


def _dense_fake(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    _check_dense(x, weight, bias)
    return x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32)


def _dense_cuda(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    # a plain product of matrices: the vendor library is at the floor of what memory allows
    _check_dense(x, weight, bias)
    if weight.dtype == torch.float32:
        y = x.float() @ weight.T
    else:
        y = torch.mm(x.to(weight.dtype), weight.T, out_dtype=torch.float32)
    if bias is not None:
        y += bias
    return y.relu_() if relu else y


def _dense_context(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, relu = inputs
    plain = bias is None and not relu and x.dtype == weight.dtype == torch.float32
    ctx.save_for_backward(*((x, weight) if plain else ()))


def _dense_backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.saved_tensors:
        raise RuntimeError("dense has gradients of float32 x and weight only, without bias and relu")
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        dense_outer(grad.T, weight) if wanted[0] else None,
        dense_outer(grad, x) if wanted[1] else None,
        None,
        None,
    )


def _check_outer(a: Tensor, b: Tensor) -> None:
    for name, tensor in (("a", a), ("b", b)):
        _check_dtype("dense_outer", name, tensor, tensor.dtype == torch.float32, "Float")
    torch._check(a.dim() == 2, lambda: f"dense_outer: a must be [D,R], got {list(a.shape)}")
    torch._check(
        b.dim() == 2 and b.shape[0] == a.shape[0],
        lambda: f"dense_outer: b must be [{a.shape[0]},C], got {list(b.shape)}",
    )


def _dense_outer_fake(a: Tensor, b: Tensor) -> Tensor:
    _check_outer(a, b)
    return a.new_empty(a.shape[1], b.shape[1])


def _dense_outer_cuda(a: Tensor, b: Tensor) -> Tensor:
    _check_outer(a, b)
    return a.T @ b


def _dense_outer_context(ctx: _Context, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _dense_outer_backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return dense(b, grad) if wanted[0] else None, dense_outer(a.T, grad) if wanted[1] else None
