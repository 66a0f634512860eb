"""Turns .safetensors into what torch.save writes, with the standard library alone.

The pickle is made by Python's own pickler over stand-ins for torch's classes, so that it holds the same
opcodes and names as torch's.
"""

import collections
import json
import math
import pickle
import struct
import sys
import types
import zipfile

STORAGES = {"F32": ("FloatStorage", 4), "F16": ("HalfStorage", 2), "BF16": ("BFloat16Storage", 2),
            "I64": ("LongStorage", 8)}


def stand_in(module, name, make):
    made = sys.modules.setdefault(module, types.ModuleType(module))
    thing = make(name)
    thing.__module__, thing.__qualname__ = module, name
    setattr(made, name, thing)
    return thing


def function(name):
    def nothing(*_arguments):
        raise AssertionError("nobody calls this")

    nothing.__name__ = name
    return nothing


TORCH = {kind: stand_in("torch", name, lambda n: type(n, (), {})) for kind, (name, _) in STORAGES.items()}
REBUILD = stand_in("torch._utils", "_rebuild_tensor_v2", function)
CALLBACK = stand_in("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint", lambda n: type(n, (), {}))
for package in ("pytorch_lightning", "pytorch_lightning.callbacks"):
    sys.modules.setdefault(package, types.ModuleType(package))


class Storage:
    def __init__(self, kind, data):
        self.kind, self.data = kind, data


class Tensor:
    def __init__(self, storage, shape):
        self.storage, self.shape = storage, shape

    def __reduce__(self):
        strides = tuple(math.prod(self.shape[i + 1:]) for i in range(len(self.shape)))
        return REBUILD, (self.storage, 0, tuple(self.shape), strides, False, collections.OrderedDict())


class Pickler(pickle.Pickler):
    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages = []

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        if obj not in self.storages:
            self.storages.append(obj)
        key = str(self.storages.index(obj))
        return "storage", TORCH[obj.kind], key, "cpu", len(obj.data) // STORAGES[obj.kind][1]


def read_safetensors(path):
    """{name: Tensor}"""
    data = path.read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    tensors = collections.OrderedDict()
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = Tensor(Storage(entry["dtype"], data[begin:end]), entry["shape"])
    return tensors


def save(content, path, folder="archive"):
    """What torch.save(content, path) would write."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(f"{folder}/data.pkl", "w") as file:
            pickler = Pickler(file)
            pickler.dump(content)
        archive.writestr(f"{folder}/byteorder", "little")
        for key, storage in enumerate(pickler.storages):
            archive.writestr(f"{folder}/data/{key}", storage.data)
        archive.writestr(f"{folder}/version", "3\n")


def trained(tensors):
    """A checkpoint as trainers leave it, with what is no tensor beside its tensors."""
    return {"epoch": 3, "global_step": 470000, "pytorch-lightning_version": "1.4.2", "state_dict": tensors,
            "callbacks": {CALLBACK: {"best": None, "every": [1, 2.5], "at": CALLBACK()}}}
