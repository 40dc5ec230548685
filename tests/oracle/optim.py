"""AdamW with parameter groups, the schedule and clipping of a spec."""
import math
import re

import torch


def schedule(train, t):
    """The factor on the learning rate at step t."""
    W, N = train.warmup, train.steps
    E = 0 if train.cooldown_kind == "constant" else math.floor(train.cooldown * N + 0.5)
    factor = (t + 1) / W if t < W else 1.0
    if t >= N - E:
        r = (t - (N - E) + 1) / E
        if train.cooldown_kind == "linear":
            factor *= 1 - (1 - train.floor) * r
        else:
            factor *= train.floor + (1 - train.floor) * 0.5 * (1 + math.cos(math.pi * r))
    return factor


def matches(pattern, name):
    """Globs of `*` and `?` alone; fnmatch would also give `[` a meaning."""
    parts = [{"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern]
    return re.fullmatch("".join(parts), name) is not None


def settings(spec, param):
    """lr_mul, betas, eps and weight_decay of one parameter."""
    base = spec.optim
    out = {"lr_mul": 1.0, "betas": base.betas, "eps": base.eps,
           "weight_decay": base.weight_decay if param.decays else 0.0}
    layers = ([param.owner] if param.owner else []) + \
        [g for g in base.groups.values() if matches(g.match, param.name)]
    for layer in layers:
        out.update({k: layer[k] for k in out if k in layer})
    return out


def clip_(grads, limit):
    """Scale the gradients in place to a global norm of at most limit; the norm before."""
    norm = torch.stack([g.norm() for g in grads]).norm().item()
    if limit > 0:
        torch._foreach_mul_(grads, min(1.0, limit / (norm + 1e-6)))
    return norm


class AdamW:
    """State m and v in the parameters' own type, one list of tensors per set of settings."""

    def __init__(self, spec, params, tensors):
        self.train = spec.train
        groups = {}
        for p in params:
            s = settings(spec, p)
            key = (s["lr_mul"], *s["betas"], s["eps"], s["weight_decay"])
            groups.setdefault(key, []).append(tensors[p.name])
        self.groups = [(key, ps, [torch.zeros_like(p) for p in ps],
                        [torch.zeros_like(p) for p in ps]) for key, ps in groups.items()]
        self.all = [p for _, ps, _, _ in self.groups for p in ps]
        self.t = 0

    @torch.no_grad()
    def step(self):
        """One update from the .grad of every parameter; the gradient's norm, if clipping."""
        for p in self.all:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        norm = clip_([p.grad for p in self.all], self.train.clip) if self.train.clip > 0 else None
        lr = self.train.lr * schedule(self.train, self.t)
        for (mul, b1, b2, eps, wd), ps, ms, vs in self.groups:
            self._update(lr * mul, b1, b2, eps, wd, ps, ms, vs)
        self.t += 1
        return norm

    def _update(self, lr, b1, b2, eps, wd, ps, ms, vs):
        gs = [p.grad for p in ps]
        torch._foreach_mul_(ms, b1)
        torch._foreach_add_(ms, gs, alpha=1 - b1)
        torch._foreach_mul_(vs, b2)
        torch._foreach_addcmul_(vs, gs, gs, value=1 - b2)
        if wd:
            torch._foreach_mul_(ps, 1 - lr * wd)
        # sqrt(v / (1 - b2^t)) with the correction moved out of the root
        denom = torch._foreach_sqrt(vs)
        torch._foreach_div_(denom, math.sqrt(1 - b2 ** (self.t + 1)))
        torch._foreach_add_(denom, eps)
        torch._foreach_addcdiv_(ps, ms, denom, value=-lr / (1 - b1 ** (self.t + 1)))
