"""Writes tests/golden/models/torch/odd.pt: what torch.save makes of tensors in all manners of order."""

import pathlib
from collections import OrderedDict

import torch

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "models" / "torch" / "odd.pt"


def main():
    x = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    tensors = OrderedDict(plain=x, turned=x.transpose(0, 2), cut=x[:, 1], empty=x[:0],
                          parameter=torch.nn.Parameter(x.half()), shifted=x.bfloat16()[1],
                          number=torch.tensor(7))
    OUT.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": tensors, "global_step": 875000, "name": "odd", "lr": 0.5,
                "list": [1, (2, None, True)], "beside": x}, OUT)


if __name__ == "__main__":
    main()
