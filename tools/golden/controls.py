"""The pictures' guides of the golden set: random ControlNets and T2I-Adapters, in every layout that the engine reads.

`python controls.py [NAME...]` makes them; diffusers reads each back before it counts as made.
"""

import shutil
import sys
import tarfile

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, MultiAdapter, T2IAdapter
from PIL import Image
from safetensors.torch import save_file

import ldm
import load
import make_models
import shared

FOLDER = shared.MODELS / "controlnets"
HINT = (4, 6, 8, 12)
NAMES = {"controlnet_mid_block.": "middle_block_out.0.", "controlnet_cond_embedding.conv_in.": "input_hint_block.0."}


def copy_of(model, seed, kind=ControlNetModel, **more):
    """A ControlNet of the model's UNet, with weights of its own."""
    unet = load.pipeline(model).unet
    net = kind.from_unet(unet, conditioning_embedding_out_channels=HINT, load_weights_from_unet=False)
    if more:
        # diffusers would take its own defaults again for what stands under "_use_default_values".
        own = {name: value for name, value in net.config.items() if not name.startswith("_")}
        net = kind.from_config({**own, **more})
    gains = {"controlnet_down": 0.7, "controlnet_mid": 0.7, "cond_embedding.conv_out": 3.0}
    gains |= {"spatial_ch_projs": 4.0, "control_add_embedding.linear_2": 4.0}
    return shared.randomize(net, seed, gains)


def adapter(seed, kind, channels, colours=3, **more):
    net = T2IAdapter(in_channels=colours, channels=channels, adapter_type=kind, num_res_blocks=1, **more)
    return shared.randomize(net, seed, {"body": 1.2})


def original_key(key, places):
    part, _, rest = key.partition(".")
    if part == "controlnet_down_blocks":
        number, _, rest = rest.partition(".")
        return f"zero_convs.{number}.0.{rest}"
    if key.startswith("controlnet_cond_embedding.blocks."):
        _, _, number, rest = key.split(".")
        return f"input_hint_block.{2 * int(number) + 2}.{rest}"
    if key.startswith("controlnet_cond_embedding.conv_out."):
        return f"input_hint_block.{4 * len(HINT) - 2}.{rest.partition('.')[2]}"
    for new, old in NAMES.items():
        if key.startswith(new):
            return old + key[len(new) :]
    return ldm.unet_key(key, places)


def original_names(tensors):
    places = ldm.unet_places([*tensors, "up_blocks.0.attentions.0.norm.weight"])
    return {f"control_model.{original_key(key, places)}": value for key, value in tensors.items()}


def state(net, dtype):
    return {key: value.to(dtype).contiguous() for key, value in net.state_dict().items()}


def save_folder(name, net, dtype):
    root = FOLDER / name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    net.save_config(root)
    save_file(state(net, dtype), root / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    again = type(net).from_pretrained(root).state_dict()
    assert all(torch.equal(again[key], value) for key, value in state(net, dtype).items())


def save_single(name, net, dtype):
    save_file(state(net, dtype), FOLDER / f"{name}.safetensors", metadata={"format": "pt"})


def save_original(name, net, dtype):
    save_file(original_names(state(net, dtype)), FOLDER / f"{name}.safetensors")


def save_packed(name, net, dtype):
    """Beside the models, packed as their single files are."""
    for parameter in net.parameters():
        if parameter.ndim > 1 and parameter.numel() > 150:
            make_models.repeat(parameter, 149)
    path = shared.MODELS / f"{name}.safetensors"
    save_file(state(net, dtype), path, metadata={"format": "pt"})
    with tarfile.open(path.with_suffix(".tar.xz"), "w:xz", preset=9) as archive:
        archive.add(path, path.name)


# With less attention than its model, as the published small ones for SDXL.
SMALL = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": 1,
}

# Its transformer is as wide as its model's first level.
UNION = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "transformer_layers_per_block": 1,
    "num_control_type": 5,
    "num_trans_channel": 8,
    "num_trans_head": 2,
    "num_trans_layer": 2,
    "num_proj_channel": 8,
}

# name: what it is, how it is saved, and in which type
CONTROLS = {
    "sd1-canny": (lambda: copy_of("sd1-plain", 701), save_folder, torch.float16),
    "sd1-pose": (lambda: copy_of("sd1-plain", 703), save_original, torch.float16),
    "sd1-pooled": (lambda: copy_of("sd1-plain", 721, global_pool_conditions=True), save_folder, torch.float16),
    "sd1_shuffle": (lambda: copy_of("sd1-plain", 722, global_pool_conditions=True), save_original, torch.float16),
    "sd2-lines": (lambda: copy_of("sd2-small", 704), save_packed, torch.float16),
    "sdxl-canny": (lambda: copy_of("sdxl-small", 705, **SMALL), save_folder, torch.bfloat16),
    "sdxl-union": (
        lambda: copy_of("sdxl-small", 731, ControlNetUnionModel, **UNION),
        save_folder,
        torch.float16,
    ),
    "sd1-sketch": (lambda: adapter(711, "full_adapter", [8, 16], 1), save_folder, torch.float16),
    "sd1-color": (lambda: adapter(712, "light_adapter", [32, 32, 32]), save_single, torch.float16),
    "sdxl-sketch": (
        lambda: adapter(713, "full_adapter_xl", [8, 12, 16, 16], 1, downscale_factor=16),
        save_folder,
        torch.float16,
    ),
}


def network(name):
    """The network as its file has it, in f32."""
    make, save, dtype = CONTROLS[name]
    net = make()
    if save is save_packed:
        save_packed(name, net, dtype)
    net.load_state_dict({key: value.float() for key, value in state(net, dtype).items()})
    return net


def hint(control, net):
    picture = Image.open(shared.GOLDEN / control["image"])
    gray = isinstance(net, T2IAdapter) and net.config.in_channels == 1
    return picture.convert("L") if gray else picture


def adapter_arguments(controls, nets):
    """What the pipelines of T2I-Adapters are told."""
    hints = [hint(control, net) for control, net in zip(controls, nets)]
    scales = [float(control["scale"]) for control in controls]
    one = len(nets) == 1
    return nets[0] if one else MultiAdapter(nets), {
        "image": hints[0] if one else hints,
        "adapter_conditioning_scale": scales[0] if one else scales,
    }


def arguments(controls):
    """What the pipelines of ControlNets are told, less the hints' name."""
    one = len(controls) == 1

    def field(name, default):
        values = [control.get(name, default) for control in controls]
        return values[0] if one else values

    hints = [Image.open(shared.GOLDEN / control["image"]) for control in controls]
    return hints[0] if one else hints, {
        "controlnet_conditioning_scale": float(controls[0].get("scale", 1)) if one else field("scale", 1.0),
        "control_guidance_start": field("start", 0.0),
        "control_guidance_end": field("end", 1.0),
        "guess_mode": any(control.get("guess_mode") for control in controls),
    }


def is_union(net):
    return isinstance(net, ControlNetUnionModel)


class OneHint(torch.nn.Module):
    """A union that sees one hint, for the pipelines that go with plain ControlNets."""

    def __init__(self, union, mode):
        super().__init__()
        self.union, self.mode, self.config, self.dtype = union, mode, union.config, union.dtype

    def forward(self, sample, controlnet_cond, conditioning_scale, **more):
        modes = torch.zeros(sample.shape[0], self.config.num_control_type)
        modes[:, self.mode] = 1
        return self.union(
            sample,
            controlnet_cond=[controlnet_cond],
            control_type=modes,
            control_type_idx=[self.mode],
            conditioning_scale=float(conditioning_scale),
            **more,
        )


def union_arguments(controls):
    """What the pipelines of ControlNet-Unions are told of one network, less the hints' name."""
    fields = {
        "controlnet_conditioning_scale": "scale",
        "control_guidance_start": "start",
        "control_guidance_end": "end",
        "control_mode": "mode",
    }
    told = {name: [control[field] for control in controls] for name, field in fields.items()}
    told["guess_mode"] = any(control["guess_mode"] for control in controls)
    return [Image.open(shared.GOLDEN / control["image"]) for control in controls], told


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (make, save, dtype) in CONTROLS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        save(name, make(), dtype)
        print("made", name)


if __name__ == "__main__":
    main()
