"""tests/golden/rng.jsonl: what torch.randn returns, a line per stream.

Each line: {"seed", "calls": [{"n", "first", "last", "sum", "squares"}]}, the calls made one after
another on one generator; `first` holds the call's first values, `last` its last ones.
"""

import json

import torch

import shared

SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32, 4294967297, 2**63 - 1]
SIZES = [[1], [15, 1, 3], [16], [17, 5, 31], [3, 256, 2], [4 * 8 * 8], [4 * 15 * 9, 4 * 15 * 9], [7, 7, 7],
         [4 * 64 * 64, 16]]
KEPT = 20


def main():
    with open(shared.GOLDEN / "rng.jsonl", "w") as lines:
        for seed in SEEDS:
            for sizes in SIZES:
                generator = torch.Generator().manual_seed(seed)
                calls = []
                for n in sizes:
                    values = torch.randn(n, generator=generator)
                    wide = values.double()
                    calls.append({"n": n, "first": values[:KEPT].tolist(), "last": values[-KEPT:].tolist(),
                                  "sum": wide.sum().item(), "squares": (wide * wide).sum().item()})
                lines.write(json.dumps({"seed": seed, "calls": calls}) + "\n")


if __name__ == "__main__":
    main()
