"""The elementwise parts of a block with explicit gradients. On a CPU torch has no fused kernels for them, and separate
operations cost a training step a fifth of its time.

Letters: b batch, t position, d model width, f feed-forward width, h head, k head width.

torch.compile fuses better by itself, so under it each function is plain torch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RootMeanSquareNorm(nn.RMSNorm):
    """x / rms(x) * weight (arXiv 1910.07467): `nn.RMSNorm`, with a fused backward pass on the CPU."""

    def forward(self, x_btd: Tensor) -> Tensor:
        is_plain = x_btd.device.type == "cpu" and x_btd.dtype == self.weight.dtype
        if is_plain and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return NormFunction.apply(x_btd, self.weight, self.eps)
        return super().forward(x_btd).to(x_btd.dtype)  # under autocast the weight is float32, and x may differ


def swiglu(gate_up_btf: Tensor) -> Tensor:
    """Return silu(gate) * up of the two halves of (b, t, 2f) (arXiv 2002.05202)."""
    if torch.compiler.is_compiling():
        gate_btf, up_btf = gate_up_btf.chunk(2, -1)
        return F.silu(gate_btf) * up_btf
    return SwiGLUFunction.apply(gate_up_btf)


def squared_relu(x_btf: Tensor) -> Tensor:
    """Return relu(x)² (Primer, arXiv 2109.08668)."""
    if torch.compiler.is_compiling():
        return F.relu(x_btf).square()
    return SquaredReluFunction.apply(x_btf)


def turn(x_bhtk: Tensor, cosines_b1tk: Tensor, sines_b1tk: Tensor) -> Tensor:
    """Apply rotary positions: rotate each pair (i, i + k/2) by an angle. The cosines and sines (b or 1, 1, t, k) are
    the same in both halves of k."""
    if torch.compiler.is_compiling():
        first, second = x_bhtk.chunk(2, -1)
        return x_bhtk * cosines_b1tk + torch.cat((-second, first), -1) * sines_b1tk
    return TurnFunction.apply(x_bhtk, cosines_b1tk, sines_b1tk)


def split_turn(qkv_btd: Tensor, cosines_b1tk: Tensor, sines_b1tk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rotated queries and keys, and values, from one product (b, t, 3·h·k): three (b, h, t, k)."""
    if torch.compiler.is_compiling():
        q_bhtk, k_bhtk, v_bhtk = qkv_btd.unflatten(-1, (-1, cosines_b1tk.shape[-1])).transpose(1, 2).chunk(3, 1)
        return turn(q_bhtk, cosines_b1tk, sines_b1tk), turn(k_bhtk, cosines_b1tk, sines_b1tk), v_bhtk
    return SplitTurnFunction.apply(qkv_btd, cosines_b1tk, sines_b1tk)


class NormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_btd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
        size_bt1 = torch.linalg.vector_norm(x_btd, dim=-1, keepdim=True)
        scale_bt1 = size_bt1.square_().div_(x_btd.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_btd, scale_bt1, weight_d)
        return (x_btd * scale_bt1).mul_(weight_d)

    @staticmethod
    def backward(ctx: Any, gradient_btd: Tensor) -> tuple[Tensor, Tensor, None]:
        x_btd, scale_bt1, weight_d = ctx.saved_tensors
        width = x_btd.shape[-1]
        # torch's fused gradient of a layer norm with mean 0 equals this norm's gradient after centring.
        x_gradient_btd, weight_gradient_d, _ = torch.ops.aten.native_layer_norm_backward(
            gradient_btd,
            x_btd,
            (width,),
            torch.zeros_like(scale_bt1),
            scale_bt1,
            weight_d,
            None,
            (True, True, False),
        )
        centre_bt1 = (gradient_btd @ weight_d)[..., None].mul_(scale_bt1).div_(width)
        return x_gradient_btd.add_(centre_bt1), weight_gradient_d, None


class SwiGLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_btf: Tensor) -> Tensor:
        gate_btf, up_btf = gate_up_btf.chunk(2, -1)
        activated_btf = F.silu(gate_btf)
        ctx.save_for_backward(gate_up_btf, activated_btf)
        return activated_btf * up_btf

    @staticmethod
    def backward(ctx: Any, gradient_btf: Tensor) -> Tensor:
        gate_up_btf, activated_btf = ctx.saved_tensors
        gate_btf, up_btf = gate_up_btf.chunk(2, -1)
        result_btf = torch.empty_like(gate_up_btf)
        for_gate_btf, for_up_btf = result_btf.chunk(2, -1)
        torch.mul(gradient_btf, activated_btf, out=for_up_btf)
        torch.ops.aten.silu_backward.grad_input(gradient_btf * up_btf, gate_btf, grad_input=for_gate_btf)
        return result_btf


class SquaredReluFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_btf: Tensor) -> Tensor:
        positive_btf = F.relu(x_btf)
        ctx.save_for_backward(positive_btf)
        return positive_btf * positive_btf

    @staticmethod
    def backward(ctx: Any, gradient_btf: Tensor) -> Tensor:
        (positive_btf,) = ctx.saved_tensors
        return (gradient_btf * positive_btf).mul_(2)


class TurnFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_bhtk: Tensor, cosines_b1tk: Tensor, sines_b1tk: Tensor) -> Tensor:
        ctx.save_for_backward(cosines_b1tk, sines_b1tk)
        return turn_into(empty_heads(x_bhtk, x_bhtk.shape[1]), x_bhtk, cosines_b1tk, sines_b1tk, 1)

    @staticmethod
    def backward(ctx: Any, gradient_bhtk: Tensor) -> tuple[Tensor, None, None]:
        cosines_b1tk, sines_b1tk = ctx.saved_tensors
        result_bhtk = empty_heads(gradient_bhtk, gradient_bhtk.shape[1])
        return turn_into(result_bhtk, gradient_bhtk, cosines_b1tk, sines_b1tk, -1), None, None


class SplitTurnFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_btd: Tensor, cosines_b1tk: Tensor, sines_b1tk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cosines_b1tk, sines_b1tk)
        qkv_bhtk = qkv_btd.unflatten(-1, (-1, cosines_b1tk.shape[-1])).transpose(1, 2)
        heads = qkv_bhtk.shape[1] // 3
        result_bhtk = empty_heads(qkv_bhtk, 2 * heads)
        turn_into(result_bhtk, qkv_bhtk[:, : 2 * heads], cosines_b1tk, sines_b1tk, 1)
        return result_bhtk[:, :heads], result_bhtk[:, heads:], qkv_bhtk[:, 2 * heads :]

    @staticmethod
    def backward(ctx: Any, *gradients_bhtk: Tensor) -> tuple[Tensor, None, None]:
        heads = gradients_bhtk[0].shape[1]
        result_bhtk = empty_heads(gradients_bhtk[0], 3 * heads)
        for_q_bhtk, for_k_bhtk, for_v_bhtk = result_bhtk.split(heads, dim=1)
        cosines_b1tk, sines_b1tk = ctx.saved_tensors
        turn_into(for_q_bhtk, gradients_bhtk[0], cosines_b1tk, sines_b1tk, -1)
        turn_into(for_k_bhtk, gradients_bhtk[1], cosines_b1tk, sines_b1tk, -1)
        for_v_bhtk.copy_(gradients_bhtk[2])
        return result_bhtk.transpose(1, 2).flatten(-2), None, None


def empty_heads(like_bhtk: Tensor, heads: int) -> Tensor:
    """Return (b, heads, t, k) with the memory layout (b, t, heads, k), which attention kernels and products prefer."""
    batch, _, length, width = like_bhtk.shape
    return like_bhtk.new_empty(batch, length, heads, width).transpose(1, 2)


def turn_into(result_bhtk: Tensor, x_bhtk: Tensor, cosines_b1tk: Tensor, sines_b1tk: Tensor, direction: int) -> Tensor:
    half = x_bhtk.shape[-1] // 2
    torch.mul(x_bhtk, cosines_b1tk, out=result_bhtk)
    result_bhtk[..., :half].addcmul_(x_bhtk[..., half:], sines_b1tk[..., half:], value=-direction)
    result_bhtk[..., half:].addcmul_(x_bhtk[..., :half], sines_b1tk[..., :half], value=direction)
    return result_bhtk
