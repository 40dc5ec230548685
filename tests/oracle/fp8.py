"""The head in FP8: products of e4m3 numbers, and of e5m2 gradients with them.

    loss_sum(y, head, targets, weights, spec) -> 0-dim, sum of the row losses
    logits(y, head, scales) -> [B, N, V], before the softcap

The gradient that is quantised is that of the sum of the row losses; whatever
the sum is multiplied by afterwards multiplies the two products, and no more.
"""
import numpy as np
import torch

import branches

E4M3 = (3, -6, 448.0)               # bits of the fraction, least exponent, largest number
E5M2 = (2, -14, 57344.0)


def rounded(x, kind):
    """x to the nearest number of a kind, of two as near the even one, at most the largest."""
    bits, least, largest = kind
    wide = x.detach().double().numpy()
    exponent = np.maximum(np.frexp(wide)[1] - 1, least) - bits
    # the quotient by a power of two is exact, rint rounds to even
    near = np.ldexp(np.rint(np.ldexp(wide, -exponent)), exponent)
    return torch.from_numpy(np.clip(near, -largest, largest)).to(x.dtype)


def bf16(x):
    """x to the nearest bfloat16, in its type.  By way of float32, which takes off what float64
    adds to a product that lies between two of them: with scales like 5/448 such products are
    common."""
    return x.float().bfloat16().to(x.dtype)


def scaled(x, most):
    """x over its scale most/448, as a product in float32 with the scale's reciprocal in float32."""
    return (x.float() * torch.tensor(448 / most, dtype=torch.float32)).to(x.dtype)


def _wide(x):
    """In the run's type, or in float32 where that is bfloat16."""
    return x.float() if x.dtype == torch.bfloat16 else x


def _operands(y, head, scales):
    """y and head as e4m3 numbers, in the type that products are summed in."""
    y = _wide(y)
    return (rounded(scaled(bf16(y), scales.x), E4M3),
            rounded(scaled(head.to(y.dtype), scales.w), E4M3))


def _product(x8, w8, scales):
    factor = (scales.x / 448) * (scales.w / 448)
    return bf16(factor * torch.matmul(x8, w8.T))


def logits(y, head, scales):
    return _product(*_operands(y, head, scales), scales)


class _LossSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, head, targets, weights, spec):
        scales = spec.numerics.fp8
        x8, w8 = _operands(y, head, scales)
        with torch.enable_grad():
            l = _product(x8, w8, scales).requires_grad_()
            total = branches.loss_sum(branches.softcap(l, spec.model.softcap), targets, weights)
            slope, = torch.autograd.grad(total, l)
        ctx.save_for_backward(x8, w8, rounded(scaled(slope, scales.grad), E5M2))
        ctx.scales, ctx.types = scales, (y.dtype, head.dtype)
        return total.detach()

    @staticmethod
    def backward(ctx, factor):
        x8, w8, g8 = ctx.saved_tensors
        sx, sw, sg = (ctx.scales[k] / 448 for k in ("x", "w", "grad"))
        dy = sg * sw * factor * torch.matmul(g8, w8)
        dhead = sg * sx * factor * torch.matmul(g8.flatten(0, 1).T, x8.flatten(0, 1))
        return dy.to(ctx.types[0]), dhead.to(ctx.types[1]), None, None, None


def loss_sum(y, head, targets, weights, spec):
    return _LossSum.apply(y, head, targets, weights, spec)
