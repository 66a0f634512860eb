"""An optimizer that gets small networks far in few steps.

Weights with two or more dimensions move by Muon: the momentum of the gradient, made orthogonal by
a few Newton-Schulz steps (K. Jordan et al., 2024), scaled so that a step is about three times as long as
AdamW's (J. Liu et al., 2025). Everything else, and what `plain` names, moves by Adam.
"""

import torch


def orthogonal(matrix, rounds=5):
    """About U V^T of the matrix U S V^T."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    def __init__(self, modules, rate, plain=("conv_in", "conv_out", "embedding", "quant_conv")):
        matrices, others = [], []
        for module in modules:
            for name, p in module.named_parameters():
                matrix = p.ndim >= 2 and not any(word in name for word in plain)
                (matrices if matrix else others).append(p)
        super().__init__([{"params": matrices, "matrix": True},
                          {"params": others, "matrix": False}], {"lr": rate})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if group["matrix"]:
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(p.grad, 0.05)
                    way = p.grad.lerp(state["momentum"], 0.95).flatten(1)
                    size = 0.6 * max(way.shape) ** 0.5
                    p.add_(orthogonal(way).view(p.shape), alpha=-group["lr"] * size)
                else:
                    if not state:
                        state["n"] = 0
                        state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
                    state["n"] += 1
                    state["mean"].lerp_(p.grad, 0.1)
                    state["square"].lerp_(p.grad.square(), 0.01)
                    mean = state["mean"] / (1 - 0.9 ** state["n"])
                    square = state["square"] / (1 - 0.99 ** state["n"])
                    p.addcdiv_(mean, square.sqrt() + 1e-8, value=-group["lr"])
