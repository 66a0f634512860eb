"""tests/golden/models/loras: small random LoRA files in every kind and spelling. `make_adapters.py [NAME...]`"""

import sys

import adapters
import load


def main():
    for name, (model, make) in adapters.ADAPTERS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        make(load.pipeline(model), name)
        print("made", name)
    adapters.make_inversions()


if __name__ == "__main__":
    main()
