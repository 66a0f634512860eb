"""The adapters of the golden set: random ones, in every kind and spelling that the engine reads.

A kind that diffusers loads is given to it. The others are applied by the formulas of LyCORIS (Yeh et
al. 2023, https://github.com/KohakuBlueleaf/LyCORIS/tree/main/lycoris/modules) in float64, to the
modules whose names the file spells.
"""

import contextlib
import json
import zlib

import torch
from safetensors.torch import load_file, save_file

import ldm
import shared

FOLDER = shared.MODELS / "loras"
EMBEDDINGS = shared.MODELS / "embeddings"

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def layers_of(module, wanted, where=("",)):
    """The linear and convolution layers whose names contain one of `wanted` and one of `where`."""
    for name, layer in module.named_modules():
        spelled = f".{name}."
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            if any(part in spelled for part in wanted) and any(part in spelled for part in where):
                yield name, layer


def text_name(name):
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


class Maker:
    """Random tensors by layer; `write` names them."""

    def __init__(self, seed, dtype=torch.float16, gain=0.5):
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors = {}
        self.dtype = dtype
        self.gain = gain

    def draw(self, *shape, scale=1.0):
        return torch.randn(shape, generator=self.generator) * scale

    def put(self, key, value):
        self.tensors[key] = value.to(self.dtype).contiguous()

    def low_rank(self, layer, rank):
        """down, up with a product about half as large as the layer."""
        out, *inner = layer.weight.shape
        fan = layer.weight[0].numel()
        down = self.draw(rank, *inner, scale=1 / rank**0.5)
        up = self.draw(out, rank, *[1] * (len(inner) - 1), scale=self.gain / fan**0.5)
        return down, up

    def save(self, name, metadata=None):
        FOLDER.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, FOLDER / f"{name}.safetensors", metadata=metadata)


def flat(name):
    return name.replace(".", "_")


ALL = (".to_q.", ".to_k.", ".to_v.", ".to_out.", ".ff.", ".proj_in.", ".proj_out.", ".conv1.", ".conv2.",
       ".time_emb_proj.", ".conv_shortcut.", ".conv.", "conv_in", "conv_out", "time_embedding", "add_embedding")
TEXT = (".q_proj.", ".k_proj.", ".v_proj.", ".out_proj.", ".fc1.", ".fc2.")


def peft(pipe, name, seed, rank, wanted, where=("",)):
    """diffusers' own: dotted names, alpha in the metadata alone."""
    maker = Maker(seed)
    metadata = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        module = getattr(pipe, part, None)
        if module is None:
            continue
        names = []
        for layer_name, layer in wanted_layers(part, module, wanted, where):
            down, up = maker.low_rank(layer, rank)
            key = layer_name if part == "unet" else text_name(layer_name)
            maker.put(f"{part}.{key}.lora_A.weight", down)
            maker.put(f"{part}.{key}.lora_B.weight", up)
            names.append(layer_name)
        metadata |= {
            f"{part}.r": rank,
            f"{part}.lora_alpha": 1.5 * rank,
            f"{part}.target_modules": names,
            f"{part}.peft_type": "LORA",
            f"{part}.alpha_pattern": {names[1]: 0.75 * rank},
        }
    text = json.dumps(metadata, indent=2, sort_keys=True)
    maker.save(name, {"format": "pt", "lora_adapter_metadata": text})


def wanted_layers(part, module, wanted, where):
    return layers_of(module, wanted, where) if part == "unet" else layers_of(module, TEXT)


def kohya_name(pipe, part, name, sgm):
    if part != "unet":
        second = {"text_encoder": "1", "text_encoder_2": "2"}[part] if hasattr(pipe, "text_encoder_2") else ""
        return f"lora_te{second}_{flat(text_name(name))}"
    if sgm:
        places = ldm.unet_places(pipe.unet.state_dict())
        name = ldm.unet_key(f"{name}.weight", places).removesuffix(".weight")
    return f"lora_unet_{flat(name)}"


def parts_of(pipe, texts):
    names = ("unet", "text_encoder", "text_encoder_2") if texts else ("unet",)
    return [(name, getattr(pipe, name)) for name in names if getattr(pipe, name, None) is not None]


def kohya(pipe, name, seed, rank, wanted, where=("",), texts=True, sgm=False):
    """kohya-ss: flattened names, an alpha for each layer. Ranks differ, alphas do not: diffusers loses
    those of attention layers that are unlike the most frequent one."""
    maker = Maker(seed)
    for part, module in parts_of(pipe, texts):
        for index, (layer_name, layer) in enumerate(wanted_layers(part, module, wanted, where)):
            own = rank + (index % 3 == 2 and part == "unet")
            down, up = maker.low_rank(layer, own)
            key = kohya_name(pipe, part, layer_name, sgm)
            maker.put(f"{key}.lora_down.weight", down)
            maker.put(f"{key}.lora_up.weight", up)
            maker.put(f"{key}.alpha", torch.tensor(1.5))
    maker.save(name)


def processors(pipe, name, seed, rank, where):
    """diffusers' first files: the attention processors' names."""
    maker = Maker(seed)
    for part, module in parts_of(pipe, True):
        for layer_name, layer in wanted_layers(part, module, (".to_q.", ".to_k.", ".to_v.", ".to_out."), where):
            if layer_name.endswith(("v_proj", "fc1", "fc2")):
                continue
            down, up = maker.low_rank(layer, rank)
            key = layer_name if part == "unet" else text_name(layer_name)
            key = key.replace("q_proj", "to_q").replace("k_proj", "to_k").replace("out_proj", "to_out").replace("to_out.0", "to_out")
            if part == "unet":
                head, _, tail = key.rpartition(".")
                key = f"{head}.processor.{tail}"
            maker.put(f"{part}.{key}_lora.down.weight", down)
            maker.put(f"{part}.{key}_lora.up.weight", up)
    maker.save(name)


def dora(pipe, name, seed, rank, wanted, where):
    """peft's spelling of DoRA; diffusers drops the magnitudes of kohya's."""
    maker = Maker(seed)
    for layer_name, layer in layers_of(pipe.unet, wanted, where):
        down, up = maker.low_rank(layer, rank)
        lengths = layer.weight.detach().flatten(1).norm(dim=1)
        magnitude = lengths * (1 + 0.3 * maker.draw(len(lengths)))
        if layer.weight.ndim == 4:
            magnitude = magnitude[None, :, None, None]
        maker.put(f"unet.{layer_name}.lora_A.weight", down)
        maker.put(f"unet.{layer_name}.lora_B.weight", up)
        maker.put(f"unet.{layer_name}.lora_magnitude_vector", magnitude)
    maker.save(name)


def lycoris(pipe, name, seed, rank, where, texts=False):
    """LyCORIS: kinds by turns over the layers. diffusers reads none of them for these models."""
    maker = Maker(seed)
    kinds = ("loha", "lokr", "diff", "tucker", "loha_tucker", "lokr_whole", "lokr_tucker")
    for part, module in parts_of(pipe, texts):
        for index, (layer_name, layer) in enumerate(wanted_layers(part, module, ("",), where)):
            key = kohya_name(pipe, part, layer_name, False)
            kind = kinds[(index + zlib.crc32(layer_name.encode())) % len(kinds)]
            matrix = layer.weight.ndim == 2 or layer.weight.shape[-1] == 1
            if matrix and "tucker" in kind:
                kind = kinds[index % 3]
            for suffix, value in lycoris_tensors(maker, kind, layer.weight.detach(), rank).items():
                maker.put(f"{key}.{suffix}", value)
            if kind == "diff" and layer.bias is not None:
                maker.put(f"{key}.diff_b", maker.draw(len(layer.bias), scale=0.1))
    maker.save(name)


def lycoris_tensors(maker, kind, weight, rank):
    out, into, *kernel = weight.shape
    taps = weight[0, 0].numel()
    half = maker.gain / weight[0].numel() ** 0.5
    alpha = {"alpha": torch.tensor(0.5 * rank)}
    if kind == "diff":
        return {"diff": maker.draw(*weight.shape, scale=half)}
    if kind == "tucker":
        return alpha | {
            "lora_down.weight": maker.draw(rank, into, 1, 1),
            "lora_mid.weight": maker.draw(rank, rank, *kernel, scale=1 / rank),
            "lora_up.weight": maker.draw(out, rank, 1, 1, scale=2 * half),
        }
    if kind == "loha":
        return alpha | {
            "hada_w1_a": maker.draw(out, rank, scale=half),
            "hada_w1_b": maker.draw(rank, into * taps),
            "hada_w2_a": maker.draw(out, rank),
            "hada_w2_b": maker.draw(rank, into * taps),
        }
    if kind == "loha_tucker":
        return alpha | {
            "hada_t1": maker.draw(rank, rank, *kernel),
            "hada_w1_a": maker.draw(rank, out, scale=half),
            "hada_w1_b": maker.draw(rank, into),
            "hada_t2": maker.draw(rank, rank, *kernel),
            "hada_w2_a": maker.draw(rank, out),
            "hada_w2_b": maker.draw(rank, into),
        }
    first = (4, 2)
    second = (out // first[0], into // first[1])
    if kind == "lokr_whole":
        return alpha | {"lokr_w1": maker.draw(*first), "lokr_w2": maker.draw(*second, *kernel, scale=half)}
    if kind == "lokr_tucker":
        return alpha | {
            "lokr_w1": maker.draw(*first),
            "lokr_t2": maker.draw(rank, rank, *kernel),
            "lokr_w2_a": maker.draw(rank, second[0], scale=half),
            "lokr_w2_b": maker.draw(rank, second[1]),
        }
    return alpha | {
        "lokr_w1_a": maker.draw(first[0], rank),
        "lokr_w1_b": maker.draw(rank, first[1]),
        "lokr_w2_a": maker.draw(second[0], rank, scale=half),
        "lokr_w2_b": maker.draw(rank, second[1] * taps),
    }


# ---- applying them ----


def difference(own, shape):
    """LyCORIS' get_diff_weight in float64. With a core T: einsum("i j ..., j q, i p -> p q ...")."""
    own = {key: value.double() for key, value in own.items()}

    def product(a, b, core=None):
        if core is not None:
            return torch.einsum("ij...,jq,ip->pq...", core, b, a)
        return a @ b

    if "diff" in own:
        return own["diff"]
    if "lora_mid.weight" in own:
        rank = len(own["lora_down.weight"])
        up, down = own["lora_up.weight"].flatten(1), own["lora_down.weight"].flatten(1)
        whole = torch.einsum("oi,ij...,jk->ok...", up, own["lora_mid.weight"], down)
    elif "hada_w1_a" in own:
        rank = len(own["hada_w1_b"])
        first = product(own["hada_w1_a"], own["hada_w1_b"], own.get("hada_t1"))
        whole = first * product(own["hada_w2_a"], own["hada_w2_b"], own.get("hada_t2"))
    else:
        w1 = own["lokr_w1"] if "lokr_w1" in own else own["lokr_w1_a"] @ own["lokr_w1_b"]
        if "lokr_w2" in own:
            w2 = own["lokr_w2"]
        else:
            w2 = product(own["lokr_w2_a"], own["lokr_w2_b"], own.get("lokr_t2"))
        w2 = w2.reshape(shape[0] // w1.shape[0], shape[1] // w1.shape[1], *shape[2:])
        whole = torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2)
        if "lokr_w1" in own and "lokr_w2" in own:
            return whole.reshape(shape)
        rank = len(own["lokr_w2_b"]) if "lokr_w2_b" in own else len(own["lokr_w1_b"])
    return whole.reshape(shape) * own["alpha"] / rank


def merge(pipe, tensors, scale):
    layers = {}
    for part, module in parts_of(pipe, True):
        for layer_name, layer in layers_of(module, ("",)):
            layers[kohya_name(pipe, part, layer_name, False)] = layer
    by_layer = {}
    for key, value in tensors.items():
        layer, _, suffix = key.partition(".")
        by_layer.setdefault(layer, {})[suffix] = value
    for key, own in by_layer.items():
        layer = layers[key]
        if own.keys() - {"diff_b"}:
            whole = layer.weight.double() + scale * difference(own, layer.weight.shape)
            layer.weight.data.copy_(whole)
        if "diff_b" in own:
            layer.bias.data.copy_(layer.bias.double() + scale * own["diff_b"].double())


def is_lycoris(tensors):
    return any("hada_" in key or "lokr_" in key or key.endswith((".diff", "lora_mid.weight")) for key in tensors)


@contextlib.contextmanager
def without_alias(pipe):
    """Takes away what make_jobs adds to text encoders: diffusers would look for old names below it."""
    kind = type(pipe.text_encoder)
    alias = kind.__dict__.get("text_model")
    if alias is not None:
        del kind.text_model
    try:
        yield
    finally:
        if alias is not None:
            kind.text_model = alias


def apply(pipe, loras):
    """A job's `loras`, as diffusers would."""
    names = []
    dtypes = {name: next(module.parameters()).dtype for name, module in parts_of(pipe, True)}
    for lora in loras:
        path = FOLDER / f"{lora['name']}.safetensors"
        tensors = load_file(path)
        if is_lycoris(tensors):
            with torch.no_grad():
                merge(pipe, tensors, lora["scale"])
    for index, lora in enumerate(loras):
        path = FOLDER / f"{lora['name']}.safetensors"
        if not is_lycoris(load_file(path)):
            with without_alias(pipe):
                pipe.load_lora_weights(str(FOLDER), weight_name=path.name, adapter_name=f"a{index}")
            names.append((f"a{index}", lora["scale"]))
    for name, module in parts_of(pipe, True):
        module.to(dtypes[name])
    if names:
        pipe.set_adapters([name for name, _ in names], [scale for _, scale in names])


# ---- textual inversion ----


def inversion(name, seed, **shapes):
    """One tensor per key, of the size that embeddings have."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {key.replace("__", "."): 0.7 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    EMBEDDINGS.mkdir(parents=True, exist_ok=True)
    save_file(tensors, EMBEDDINGS / f"{name}.safetensors")


GENERIC = ("emb_params", "string_to_param.*", "*")


def learn(pipe, names):
    """A job's `embeddings`: found by the file's name, and by the token that diffusers' files have."""
    for name in names:
        tensors = load_file(EMBEDDINGS / f"{name}.safetensors")
        if "clip_l" in tensors:
            parts = {"": tensors["clip_l"], "_2": tensors["clip_g"]}
        else:
            parts = {"": next(iter(tensors.values()))}
        own = [key for key in tensors if len(tensors) == 1 and key not in GENERIC and key != name]
        for part, tensor in parts.items():
            tokenizer = getattr(pipe, f"tokenizer{part}")
            text_encoder = getattr(pipe, f"text_encoder{part}")
            for token in [name, *own]:
                # a copy: the pipeline's own handling of hooks knows only one pair
                pipe.load_textual_inversion({token: tensor}, token=token, tokenizer=tokenizer, text_encoder=text_encoder)


def make_inversions():
    inversion("toy", 2001, **{"<sculpture>": (3, 40)})
    inversion("flat", 2002, emb_params=(1, 40))
    inversion("sd2-tone", 2003, **{"string_to_param.*": (2, 32)})
    inversion("xl-mood", 2004, clip_l=(2, 16), clip_g=(2, 24))


# name: (model, how it is made)
ENDS = ("conv_in", "conv_out", "time_embedding", "down_blocks.0.resnets.0", "down_blocks.0.attentions.1",
        "downsamplers", "mid_block", "up_blocks.3.attentions.2", "up_blocks.3.resnets.2")
ADAPTERS = {
    "sd1-peft": ("sd1-small", lambda pipe, name: peft(pipe, name, 1001, 2, ALL, ENDS)),
    "sd1-kohya": ("sd1-small", lambda pipe, name: kohya(
        pipe, name, 1002, 2, (".to_q.", ".to_v.", ".ff."), ("down_blocks.1", "up_blocks.3"))),
    "sd1-locon": ("sd1-small", lambda pipe, name: kohya(
        pipe, name, 1003, 2, (".conv1.", ".conv.", ".proj_in.", ".to_k."), ("down_blocks.0", "up_blocks.3"), False)),
    "sd1-first": ("sd1-small", lambda pipe, name: processors(pipe, name, 1004, 1, ("blocks.1",))),
    "sd1-dora": ("sd1-small", lambda pipe, name: dora(
        pipe, name, 1005, 1, (".to_q.", ".conv2.", ".ff."), ("mid_block", "up_blocks.3"))),
    "sd1-lycoris": ("sd1-small", lambda pipe, name: lycoris(
        pipe, name, 1006, 2, ("down_blocks.0.attentions.0", "up_blocks.3.resnets", "up_blocks.2.upsamplers"))),
    "sd2-kohya": ("sd2-small", lambda pipe, name: kohya(
        pipe, name, 1007, 3, (".to_q.", ".to_out.", ".proj_out.", ".conv2."), ("down_blocks", "mid_block"))),
    "sdxl-kohya": ("sdxl-small", lambda pipe, name: kohya(
        pipe, name, 1008, 2, (".to_q.", ".to_k.", ".ff.", ".conv1.", "add_embedding"), sgm=True)),
    "sdxl-peft": ("sdxl-small", lambda pipe, name: peft(
        pipe, name, 1009, 1, (".to_v.", ".to_out.", ".proj_in.", ".conv_shortcut."))),
}
