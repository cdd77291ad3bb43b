"""The written-out gradients are those of the plain operations, and of finite differences.

Letters: b batch, t position, d model width, h head, k head width.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from voicechat_platform.models.fused import RootMeanSquareNorm, split_turn, squared_relu, swiglu, turn


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.double, requires_grad=True)


def angles(t: int, k: int) -> tuple[Tensor, Tensor]:
    angles_tk = torch.rand(1, 1, t, k // 2, dtype=torch.double).repeat(1, 1, 1, 2)
    return angles_tk.cos(), angles_tk.sin()


def plain_turn(x_bhtk: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x_bhtk.chunk(2, -1)
    return x_bhtk * cosines + torch.cat((-second, first), -1) * sines


def plain_split_turn(qkv_btd: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    q, k, v = qkv_btd.unflatten(-1, (-1, cosines.shape[-1])).transpose(1, 2).chunk(3, 1)
    return torch.cat([plain_turn(q, cosines, sines), plain_turn(k, cosines, sines), v])


COSINES, SINES = angles(3, 4)
FUNCTIONS = {
    "swiglu": (swiglu, lambda x: F.silu(x[..., :4]) * x[..., 4:], (2, 3, 8)),
    "squared relu": (squared_relu, lambda x: F.relu(x) ** 2, (2, 3, 8)),
    "turn": (lambda x: turn(x, COSINES, SINES), lambda x: plain_turn(x, COSINES, SINES), (2, 5, 3, 4)),
    "split turn": (
        lambda x: torch.cat(split_turn(x, COSINES, SINES)), lambda x: plain_split_turn(x, COSINES, SINES), (2, 3, 24)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_outputs_and_gradients(name):
    ours, plain, shape = FUNCTIONS[name]
    x = draw(*shape)
    torch.testing.assert_close(ours(x), plain(x))
    assert torch.autograd.gradcheck(ours, x)
    direction = torch.randn_like(plain(x))
    (gradient,) = torch.autograd.grad(ours(x), x, direction)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain(x), x, direction)[0])


@pytest.mark.parametrize("shape", [(7, 8), (2, 3, 8), (2, 3, 4, 8)])
def test_the_norm_is_torchs(shape):
    norm = RootMeanSquareNorm(8, eps=1e-6).double()
    torch.nn.init.normal_(norm.weight)
    x = draw(*shape)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), norm.weight, 1e-6))
    direction = torch.randn(shape, dtype=torch.double)
    ours = torch.autograd.grad(norm(x), (x, norm.weight), direction)
    theirs = torch.autograd.grad(F.rms_norm(x, (8,), norm.weight, 1e-6), (x, norm.weight), direction)
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda x: norm(x), x)
