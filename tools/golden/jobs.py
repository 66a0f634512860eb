"""The jobs of the golden set. Each model's jobs vary everything that it can vary."""

LONG = "an intricate oil painting of a lighthouse on a cliff, " * 12
FIRST = "jobs/init-72x64.png"
SECOND = "jobs/init-64x88.png"


def text(prompt, sampler, steps, seed, width=64, height=64, guidance=7.5, **more):
    if sampler:
        more["sampler"] = sampler
    return {"prompt": prompt, "width": width, "height": height, "steps": steps, "guidance_scale": guidance,
            "seed": seed, **more}


def image(prompt, picture, strength, sampler, steps, seed, guidance=7.5, **more):
    if sampler:
        more["sampler"] = sampler
    return {"prompt": prompt, "init_image": picture, "strength": strength, "steps": steps,
            "guidance_scale": guidance, "seed": seed, **more}


def steps_of(sampler, schedule=None, steps=4, picture=None, **more):
    """A job that is about its sampler: of its dump the tensors the sampler sees are kept, no more."""
    more |= {"latents_only": True} | ({"schedule": schedule} if schedule else {})
    if picture:
        return image("a small ship", picture, 0.6, sampler, steps, steps + 60, 3.0, **more)
    return text("a small ship", sampler, steps, steps + 60, guidance=3.0, **more)


def masked(prompt, picture, strength, sampler, steps, seed, guidance=4.0, **more):
    mask = picture.replace("init", "mask")
    return image(prompt, picture, strength, sampler, steps, seed, guidance, mask=mask, **more)


def refiner(switch_at):
    return {"model": "sdxl-refiner", "switch_at": switch_at}


MODELS = {
    "sd1-small": [
        text("a red cat", "ddim", 4, 1),
        text("two <b>Boats</b>, café", None, 4, 2, 72, 120, 5.0, negative_prompt="blurry"),
        text("a house", "euler", 3, 3, 136, 64, 1.0),
        text("a house at night", "dpm++ 2m", 4, 4294967297, negative_prompt="", schedule="karras"),
        text("a red cat", "ddim", 5, 5, eta=0.7, negative_prompt="dog"),
        text("a red cat", "ddim", 3, 6, guidance=1.0, eta=1.0),
        text("a blue dog", "euler", 5, 7, schedule="karras", clip_skip=1),
        text("a blue dog", "euler_a", 4, 8, clip_skip=2, negative_prompt="cat"),
        text(LONG, "heun", 3, 9, 64, 72),
        text("it's 12 o'clock!!!", "heun", 4, 10, guidance=3.5, schedule="karras"),
        text("", "lms", 6, 11),
        text("a tree", "lms", 5, 12, schedule="karras"),
        text("a tree", "dpm++ 2m", 6, 13, 64, 64, 12.0),
        text("a tree", "pndm", 6, 14),
        text("a tree", "unipc", 5, 15),
        text("a tree", "unipc", 4, 16, schedule="karras"),
        text("a tree", "euler", 1, 17),
        text("a tree", "pndm", 1, 18),
        image("a boat", FIRST, 0.5, "ddim", 6, 19),
        image("a boat", SECOND, 0.8, None, 5, 20, negative_prompt="sea"),
        image("a boat", FIRST, 0.6, "heun", 5, 21),
        image("a boat", FIRST, 0.75, "dpm++ 2m", 4, 22, schedule="karras"),
        image("a boat", FIRST, 0.58, "lms", 7, 23, guidance=1.0),
        image("a boat", FIRST, 1.0, "euler_a", 3, 24),
        image("a boat", FIRST, 0.7, "unipc", 6, 25),
        image("a boat", FIRST, 0.34, "euler", 6, 26, clip_skip=1),
        steps_of("dpm2"),
        steps_of("dpm2", "karras", 5, FIRST),
        steps_of("dpm2_a", "exponential"),
        steps_of("dpm2_a", None, 5, FIRST),
        steps_of("dpm++ 2s"),
        steps_of("dpm++ sde"),
        steps_of("dpm++ sde", "karras", 5, SECOND),
        steps_of("dpm++ 2m sde", "karras", 5),
        steps_of("dpm++ 2m sde", None, 5, FIRST),
        steps_of("dpm++ 3m sde", "exponential", 6),
        steps_of("ddpm"),
        steps_of("ddpm", "sgm_uniform", 5, FIRST),
        steps_of("lcm"),
        steps_of("lcm", None, 5, FIRST),
        steps_of("tcd"),
        steps_of("tcd", eta=0.3),
        steps_of("tcd", None, 5, FIRST, eta=1.0),
        steps_of("euler", "beta", 5),
        steps_of("unipc", "exponential", 5),
        steps_of("ddim", "sgm_uniform", 5),
    ],
    "sd2-small": [
        text("a green field!", None, 4, 31),
        text("a green field", "euler", 4, 32, 72, 64, negative_prompt="!!! bad <|ENDOFTEXT|>"),
        text("a green field", "dpm++ 2m", 5, 33, guidance=3.0),
        text("a green field", "unipc", 5, 34, guidance=4.0),
        text("a green field", "pndm", 5, 35, guidance=3.0),
        text("a green field", "heun", 3, 36),
        text("a green field", "lms", 5, 37, schedule="karras"),
        text("a green field", "ddim", 4, 38, eta=0.5),
        image("a green field", FIRST, 0.5, "euler_a", 4, 39),
        steps_of("dpm2_a", "karras", 5),
        steps_of("dpm++ sde"),
        steps_of("dpm++ 2m sde", "sgm_uniform"),
        steps_of("ddpm"),
        steps_of("lcm"),
        steps_of("tcd", eta=0.5),
    ],
    "sd2-zsnr-sharded": [
        text("a black room", None, 4, 41),
        text("a black room", "ddim", 4, 42),
        text("a black room", "dpm++ 2m", 4, 43, 64, 96),
        text("a black room", "unipc", 4, 44),
        text("a black room", "pndm", 5, 45),
        text("a black room", "euler_a", 3, 46),
        image("a black room", FIRST, 0.7, None, 4, 47),
    ],
    "sd1-single": [
        text("a photo of an astronaut riding a horse", None, 3, 51, 64, 72, 3.0),
        text("日本語 😀 İstanbul é", "euler_a", 3, 52, guidance=1.5,
             negative_prompt="low quality, worst quality"),
        image("a castle, 8k", SECOND, 0.5, "dpm++ 2m", 4, 53, clip_skip=1),
    ],
}


# All of these but the first of some models keep only a part of the picture.
FIRST_WHOLE = ("sdxl-small", "sdxl-single")
THIN = {
    "sdxl-small": [
        text("two <b>Boats</b>!, café", None, 4, 101, 72, 96, 5.0),
        text("a house!!!", None, 3, 102, 64, 64, 3.0, negative_prompt=""),
        text("a house", None, 5, 103, 96, 64, 7.0, negative_prompt="blurry!", original_size=[512, 333], crop=[4, 8]),
        text("a house", None, 3, 104, 64, 64, 1.0, target_size=[1024, 768]),
        text("a red cat", "dpm++ 2m", 4, 105, 64, 72, 5.0, clip_skip=1, schedule="karras"),
        text("a red cat", "euler_a", 3, 106, 64, 64, 5.0, clip_skip=2, negative_prompt="dog"),
        text(LONG, "heun", 2, 107, 64, 64, 2.5, crop=[16, 0]),
        text("", "ddim", 3, 108, 64, 64, 9.0, eta=0.6),
        text("a tree", "unipc", 4, 109, 64, 64, 4.0),
        text("a tree", None, 4, 110, 64, 64, 4.0),
        text("a tree", None, 4, 111, 64, 64, 4.0),
        image("a boat", FIRST, 0.5, None, 6, 112, 5.0, crop=[8, 24]),
        image("a boat", SECOND, 0.8, "lms", 4, 113, 5.0, negative_prompt="", original_size=[2000, 1000]),
        image("a boat", FIRST, 0.6, "pndm", 5, 114, 1.0, clip_skip=1),
        text("a red cat", None, 5, 115, 64, 72, 3.0, refiner=refiner(0.6)),
        text("a red cat", "euler_a", 4, 116, 72, 64, 3.0, negative_prompt="", refiner=refiner(0.5), crop=[8, 0]),
        text("a house", "heun", 4, 117, 64, 64, 3.0, negative_prompt="blurry", refiner=refiner(0.6)),
        text("a house", "dpm++ 2m", 6, 118, 64, 64, 3.0, schedule="karras", refiner=refiner(0.4), aesthetic_score=7.5),
        text("a house!", "unipc", 5, 119, 64, 64, 1.0, refiner=refiner(0.7), clip_skip=1),
        text("a house!", "lms", 5, 120, 64, 64, 3.0, refiner=refiner(0.5), original_size=[800, 600]),
        image("a boat", FIRST, 0.8, None, 6, 121, 3.0, refiner=refiner(0.6), negative_aesthetic_score=1.0),
        text("a boat", None, 4, 122, 64, 64, 3.0, refiner={"model": "sdxl-turbo", "switch_at": 0.5}),
        steps_of("dpm++ 2m sde", "ays", 10),
        masked("a boat", FIRST, 0.8, None, 4, 123, 3.0, crop=[4, 4]),
        masked("a boat", SECOND, 1.0, "unipc", 4, 127, 3.0, negative_prompt=""),
        masked("a boat", FIRST, 1.0, None, 5, 128, 3.0, refiner=refiner(0.6)),
        masked("a boat", SECOND, 0.8, "euler_a", 6, 129, 3.0, negative_prompt="dog", refiner=refiner(0.6)),
        masked("a boat", FIRST, 0.9, "heun", 4, 130, 3.0, refiner=refiner(0.5), crop=[4, 4]),
    ],
    "sdxl-refiner": [
        image("a boat", FIRST, 0.5, None, 6, 124, 5.0, crop=[8, 24]),
        image("a boat!", SECOND, 0.8, "euler_a", 4, 125, 5.0, negative_prompt="dog", aesthetic_score=3.0),
        image("a boat", FIRST, 0.7, "dpm++ 2m", 4, 126, 1.0, clip_skip=1, original_size=[512, 512]),
    ],
    "sdxl-turbo": [
        text("a red cat", None, 1, 141, 64, 72, 0.0),
        text("a red cat", None, 4, 142, 72, 64, 0.0, negative_prompt="dog"),
        text("a house", "euler", 2, 143, 64, 64, 1.0),
        text("a house", None, 8, 144, 64, 64, 2.0),
        image("a boat", FIRST, 0.5, None, 2, 145, 0.0),
        image("a boat", SECOND, 1.0, None, 1, 146, 0.0, crop=[8, 8]),
    ],
    "sd1-lcm": [
        text("a red cat", "euler", 4, 151, 64, 72, 8.5),
        text("a red cat", "ddim", 4, 152, 72, 64, 1.0, eta=0.5),
        text("a house", "euler_a", 3, 153, 64, 64, 2.5, negative_prompt="dog"),
        image("a boat", FIRST, 0.5, "dpm++ 2m", 4, 154, 3.0, clip_skip=1),
    ],
    "sd1-plain": [
        masked("a red cat", FIRST, 1.0, None, 4, 171),
        masked("a red cat", SECOND, 0.6, "euler", 5, 172, negative_prompt="dog"),
        masked("a house", FIRST, 0.8, "dpm++ 2m", 4, 173, 1.0, schedule="karras"),
        masked("a house", FIRST, 1.0, "heun", 3, 174),
        masked("a house", SECOND, 0.7, "ddim", 4, 175, eta=0.5),
        masked("a house", FIRST, 0.7, "euler_a", 4, 176, clip_skip=1),
        masked("a house", FIRST, 0.8, "dpm2", 4, 177, 2.0),
        masked("a house", FIRST, 0.8, "lcm", 4, 178),
        masked("a house", SECOND, 0.8, "dpm2_a", 4, 179),
        masked("a house", FIRST, 0.8, "dpm++ sde", 4, 180),
    ],
    "sd1-inpaint": [
        masked("a red cat", FIRST, 1.0, None, 4, 181),
        masked("a red cat", SECOND, 0.6, "euler", 5, 182, negative_prompt="dog"),
        masked("a house", FIRST, 1.0, "euler_a", 3, 183, 1.0),
        masked("a house", FIRST, 0.8, "dpm++ 2m", 4, 184, clip_skip=1),
    ],
    "sdxl-inpaint": [
        masked("a red cat", FIRST, 1.0, None, 3, 186),
        masked("a red cat!", SECOND, 0.7, "euler_a", 4, 187, negative_prompt="", crop=[8, 0]),
        masked("a house", FIRST, 0.9, "unipc", 4, 188, 1.0),
    ],
    "sd1-pix2pix": [
        image("make it red", FIRST, 1.0, None, 4, 191, 5.0, image_guidance_scale=1.5),
        image("make it red", SECOND, 1.0, "euler_a", 3, 192, 2.0, negative_prompt="dog", image_guidance_scale=1.0),
        image("make it red", FIRST, 1.0, "euler", 3, 193, 5.0, image_guidance_scale=0.5),
        image("make it red", FIRST, 1.0, "euler", 3, 194, 1.0, image_guidance_scale=2.0),
    ],
    "sd1-old": [
        text("a red cat", None, 4, 161, 64, 64, 8.5),
        text("a red cat", "euler", 4, 162, 64, 72, 3.0),
        image("a boat", FIRST, 0.5, None, 4, 163, 3.0),
    ],
    "sd2-single": [
        text("a green field!!!", None, 3, 121, 64, 72, 3.0),
        text("日本語 😀 İstanbul é", "euler", 3, 122, guidance=1.5, negative_prompt="low quality!"),
        image("a green field", SECOND, 0.5, None, 4, 123, 3.0, clip_skip=1),
    ],
    "sdxl-refiner-single": [
        image("a castle, 8k", FIRST, 0.6, None, 4, 134, 3.0),
        image("日本語!", SECOND, 0.5, "euler_a", 4, 135, 2.0, negative_prompt="low quality"),
    ],
    "sdxl-single": [
        text("a photo of an astronaut riding a horse", None, 3, 131, 64, 72, 3.0),
        text("日本語 😀 İstanbul é!!!", "euler_a", 3, 132, guidance=2.0, negative_prompt="low quality!", crop=[0, 4]),
        image("a castle, 8k", SECOND, 0.5, "dpm++ 2m", 4, 133, 3.0, clip_skip=1),
    ],
}


def lora(prompt, sampler, steps, seed, *loras, width=64, height=64, guidance=4.0, **more):
    """A job whose point is its adapters, (name, scale) each."""
    more["loras"] = [{"name": name, "scale": scale} for name, scale in loras]
    return text(prompt, sampler, steps, seed, width, height, guidance, **more)


ADAPTED = {
    "sd1-small": [
        lora("a red cat", "ddim", 3, 201, ("sd1-peft", 1.0)),
        lora("a red cat", "ddim", 3, 201, ("sd1-kohya", 0.8), width=72),
        lora("a blue dog", "euler", 3, 202, ("sd1-locon", -0.6)),
        lora("a blue dog", "euler", 3, 203, ("sd1-first", 1.3)),
        lora("a house", "ddim", 3, 204, ("sd1-dora", 0.7)),
        lora("a house", "ddim", 3, 205, ("sd1-lycoris", 0.9)),
        lora("a house", "dpm++ 2m", 3, 206, ("sd1-peft", 0.5), ("sd1-kohya", -0.4), ("sd1-locon", 0.8)),
        lora("a tree", "ddim", 3, 207, ("sd1-lycoris", 0.5), ("sd1-kohya", 0.7), ("sd1-first", 0.3)),
    ],
    "sd2-small": [
        lora("a green field!", "ddim", 3, 211, ("sd2-kohya", 1.0)),
    ],
    "sdxl-small": [
        lora("a red cat", None, 3, 221, ("sdxl-kohya", 1.0)),
        lora("a house", None, 3, 222, ("sdxl-kohya", 0.6), ("sdxl-peft", 0.9), height=72),
    ],
}


def learned(prompt, sampler, steps, seed, *embeddings, **more):
    """A job whose point is its textual inversions."""
    return text(prompt, sampler, steps, seed, guidance=4.0, embeddings=list(embeddings), **more)


LEARNED = {
    "sd1-small": [
        learned("a toy boat", "ddim", 2, 231, "toy"),
        learned("<sculpture>, a flat house TOY", "ddim", 2, 232, "flat", "toy", negative_prompt="flat, bad"),
        learned("a red cat", "ddim", 2, 233, "toy", negative_prompt="toytoy"),
    ],
    "sd2-small": [
        learned("the sd2-tone field, sd2-tone!", "ddim", 2, 234, "sd2-tone"),
    ],
    "sdxl-small": [
        learned("a house, xl-mood", None, 2, 235, "xl-mood", negative_prompt="xl-mood"),
        learned("xl-mood", None, 2, 236, "xl-mood", loras=[{"name": "sdxl-peft", "scale": 0.7}]),
    ],
}


MANY = "red roses, old walls and a broken cart in the rain, " * 7
FEW = "a hill under a very wide sky " * 12


def stages(*texts):
    """A part that is told each text up to a call: (until, piece, piece, ...); pieces are text or (text, weight)."""
    return [[until, [piece if piece is None else [piece, 1] if isinstance(piece, str) else [*piece] for piece in pieces]]
            for until, *pieces in texts]


def plain(*pieces):
    return stages((999, *pieces))


def said(dialect, prompt, parts, sampler, steps, seed, negative=None, guidance=4.0, **more):
    """A job whose point is its dialect, with what its prompts mean (dialects.py); `parts` is a part alone, or
    (weight, part) each."""
    told = {"prompt": parts if isinstance(parts[0], tuple) else [(1, parts)]}
    if negative:
        more["negative_prompt"], told["negative_prompt"] = negative[0], (1, negative[1])
    more |= {"dialect": dialect, "told": told}
    return text(prompt, sampler, steps, seed, guidance=guidance, **more)


def tuned(sampler, seed, steps=4, guidance=7.0, picture=None, **more):
    """A job whose point is an option of its guidance, or FreeU."""
    if picture:
        return image("a small ship", picture, 0.6, sampler, steps, seed, guidance, **more)
    return text("a small ship", sampler, steps, seed, guidance=guidance, **more)


def freeu(b1, b2, s1, s2):
    return {"b1": b1, "b2": b2, "s1": s1, "s2": s2}


TUNED = {
    "sd1-small": [
        tuned("euler", 321, guidance_rescale=0.7),
        tuned("ddim", 322, guidance_interval=[0.6, 4.0]),
        tuned("heun", 323, guidance_interval=[0.5, 8.0], guidance_rescale=0.4),
        tuned("dpm++ 2m", 324, picture=FIRST, guidance_interval=[0.3, 1.5], negative_prompt="dog"),
        tuned("ddim", 325, width=72, freeu=freeu(1.4, 1.6, 0.9, 0.2)),
        tuned("pndm", 326, guidance=1.0, freeu=freeu(1.2, 1.4, 0.5, 1.7)),
    ],
    "sd2-small": [
        tuned("unipc", 327, guidance_rescale=1.0, guidance_interval=[0.2, 5.0]),
    ],
    "sdxl-small": [
        tuned(None, 328, height=88, freeu=freeu(1.3, 1.4, 0.9, 0.2), guidance_rescale=0.5),
        tuned("euler_a", 329, guidance=4.0, guidance_interval=[0.4, 6.0]),
    ],
}

NOTHING = ("", plain(""))
SAID = {
    "sd1-small": [
        said("a1111", "a (red:1.3) cat, [blue] (((dog)))", plain("a ", ("red", 1.3), " cat, ", ("blue", 1 / 1.1), " ",
             ("dog", 1.1**3)), "ddim", 3, 301, ("(blurry:1.4), a:b", plain(("blurry", 1.4), ", a:b"))),
        said("a1111", f"a (house:1.2) BREAK {MANY}", plain("a ", ("house", 1.2), None, MANY), "euler", 3, 302, NOTHING),
        said("a1111", "a [(cat:1.4):dog:0.5] house", stages((2, "a ", ("cat", 1.4), " house"), (4, "a dog house")),
             "euler", 4, 303, ("[bad:(ugly:0.6):1]", stages((1, "bad"), (4, ("ugly", 0.6))))),
        said("a1111", "a [cat|dog|(cow:0.5)]", stages(*[(i + 1, *(("a cat",), ("a dog",), ("a ", ("cow", 0.5)))[i % 3])
             for i in range(6)]), "heun", 3, 304, NOTHING),
        said("a1111", f"a cat :0.7 AND {MANY} AND a (red:1.2) house:-0.4", [(0.7, plain("a cat")),
             (1, plain(f" {MANY}")), (-0.4, plain(" a ", ("red", 1.2), " house"))], "ddim", 3, 305, (FEW, plain(FEW))),
        said("a1111", "a (toy:1.3) boat, flat hills", plain("a ", ("toy", 1.3), " boat, flat hills"), "ddim", 3, 306,
             ("flat", plain("flat")), embeddings=["toy", "flat"], clip_skip=1),
        said("a1111", "a [cat:dog:2] AND a house :2", [(1, stages((2, "a cat"), (4, "a dog"))),
             (2, plain(" a house"))], "dpm++ 2m", 4, 307, NOTHING, guidance=1.0),
        said("comfyui", "a (red (small:0.5):1.4) cat [blue] BREAK", plain("a ", ("red ", 1.4), ("small", 0.5),
             " cat [blue] BREAK"), "ddim", 3, 308, (f"({FEW}:0.8)", plain((FEW, 0.8)))),
        said("comfyui", f"{MANY} (embedding:toy,:1.5) house", plain(MANY, " ", ("embedding:toy,", 1.5), " house"),
             "euler", 3, 309, NOTHING, embeddings=["toy"], clip_skip=1),
    ],
    "sd2-small": [
        said("a1111", "a (green:1.5) field! BREAK [cows]", plain("a ", ("green", 1.5), " field!", None,
             ("cows", 1 / 1.1)), "ddim", 3, 311, NOTHING),
        said("comfyui", "a (green:1.5) field!", plain("a ", ("green", 1.5), " field!"), "ddim", 3, 312, NOTHING),
    ],
    "sdxl-small": [
        said("a1111", f"a (house:1.4) [in rain:{FEW}:0.5]", stages((1, "a ", ("house", 1.4), " in rain"),
             (3, "a ", ("house", 1.4), f" {FEW}")), None, 3, 313),
        said("a1111", "a cat AND a (xl-mood:1.2) house :0.6", [(1, plain("a cat ")), (0.6, plain(" a ",
             ("xl-mood", 1.2), " house"))], "euler_a", 3, 314, (FEW, plain(FEW)), embeddings=["xl-mood"]),
        said("comfyui", f"a (house:1.4) embedding:xl-mood {MANY}", plain("a ", ("house", 1.4),
             f" embedding:xl-mood {MANY}"), None, 3, 315, ("(dark:0.7) sky", plain(("dark", 0.7), " sky")),
             guidance=2.0, embeddings=["xl-mood"], clip_skip=1),
    ],
}


HINT = "jobs/hint-101x53.png"


def control(name, hint=FIRST, scale=1.0, start=0.0, end=1.0, guess_mode=False, **more):
    return {"name": name, "image": hint, "scale": scale, "start": start, "end": end, "guess_mode": guess_mode, **more}


def guided(job, *controls):
    """A job whose point is the pictures that guide it."""
    return {**job, "controlnets": list(controls)}


GUIDED = {
    "sd1-plain": [
        guided(text("a red cat", "ddim", 3, 301, 72, 64, 4.0), control("sd1-canny", scale=0.8)),
        guided(
            text("a red cat", "euler", 5, 302, 64, 72, 3.0, negative_prompt="dog"),
            control("sd1-canny", HINT, 0.6, 0.0, 0.6),
            control("sd1-pose", SECOND, 1.3, 0.2, 1.0),
        ),
        guided(text("a house", "euler_a", 3, 303, 64, 64, 3.0), control("sd1-pose", HINT, guess_mode=True)),
        guided(text("a house", "heun", 3, 304, 64, 64, 1.0), control("sd1-pose", SECOND, 0.5, 0.25, 0.8)),
        guided(image("a boat", FIRST, 0.7, None, 5, 305, 3.0), control("sd1-pose", HINT, 1.0, 0.0, 0.7)),
        guided(masked("a boat", FIRST, 0.8, "dpm++ 2m", 4, 306), control("sd1-canny", SECOND, 0.7)),
        guided(text("a red cat", "euler", 3, 321, 72, 88, 4.0), control("sd1-sketch", HINT, 0.8)),
        guided(text("a house", "ddim", 3, 322, 64, 64, 3.0), control("sd1-sketch", HINT, 0.6),
               control("sd1-sketch", SECOND, 1.1)),
        guided(text("a red cat", "ddim", 3, 325, 72, 64, 4.0), control("sd1-pooled", HINT, 0.9, 0.0, 0.7)),
        guided(image("a boat", FIRST, 0.7, "euler", 4, 326, 1.0), control("sd1_shuffle", HINT, 0.8)),
        guided(text("a red cat", "dpm++ 2m", 3, 327, 64, 72, 3.0, negative_prompt="dog"),
               control("sd1-canny", HINT, 0.7, guess_mode=True), control("sd1_shuffle", SECOND, 1.2, guess_mode=True)),
        guided(text("a red cat", "euler", 3, 328, 64, 64, 3.0),
               control("sd1-canny", SECOND, 0.6), control("sd1-pooled", HINT, 0.8)),
    ],
    "sd1-single": [
        guided(text("a castle", "ddim", 3, 323, 72, 64, 3.0), control("sd1-color", HINT, 0.9)),
    ],
    "sd1-inpaint": [
        guided(masked("a red cat", SECOND, 1.0, "ddim", 3, 307), control("sd1-pose", HINT, 0.9)),
    ],
    "sd2-small": [
        guided(text("a green field", None, 3, 308, 64, 64, 3.0), control("sd2-lines", HINT, 0.7)),
    ],
    "sdxl-small": [
        guided(text("a red cat", None, 3, 309, 64, 72, 3.0), control("sdxl-canny", HINT, 0.6)),
        guided(
            text("a red cat", "euler_a", 4, 310, 64, 64, 3.0, negative_prompt="dog", crop=[8, 0]),
            control("sdxl-canny", SECOND, 0.5, 0.0, 0.5, True),
            control("sdxl-canny", HINT, 0.4, 0.25, 1.0, True),
        ),
        guided(image("a boat", SECOND, 0.8, None, 4, 311, 3.0), control("sdxl-canny", FIRST, 0.8)),
        guided(text("a boat", None, 4, 312, 64, 64, 3.0, refiner=refiner(0.5)), control("sdxl-canny", HINT, 0.7, 0, 0.8)),
        guided(text("a boat", None, 4, 324, 64, 96, 3.0), control("sdxl-sketch", HINT, 0.8, 0.0, 0.6)),
        guided(text("a house", None, 3, 349, 64, 72, 3.0), control("sdxl-union", HINT, 0.7, 0.0, 0.7, mode=3)),
        guided(
            text("a red cat", "euler", 4, 350, 64, 64, 3.0, negative_prompt="dog"),
            control("sdxl-union", SECOND, 0.6, 0.0, 0.5, mode=4),
            control("sdxl-union", HINT, 0.8, 0.25, 0.8, mode=0),
        ),
        guided(image("a boat", SECOND, 0.8, None, 4, 351, 3.0),
               control("sdxl-union", FIRST, 0.6, guess_mode=True, mode=1),
               control("sdxl-canny", HINT, 0.5, 0.25, 1.0, guess_mode=True)),
    ],
}


def hires(width, height, strength, upscaler="latent", **more):
    return {"width": width, "height": height, "strength": strength, "upscaler": upscaler, **more}


ENLARGED = {
    "sd1-small": [
        text("a small ship", "ddim", 3, 331, 64, 72, 4.0, negative_prompt="dog", hires=hires(80, 88, 0.7)),
        text("a small ship", "euler_a", 3, 332, guidance=4.0, clip_skip=1, loras=[{"name": "sd1-peft", "scale": 0.7}],
             hires=hires(88, 104, 0.5, "latent-bicubic", steps=4)),
        image("a small ship", FIRST, 0.6, "dpm++ 2m", 3, 333, 3.0, hires=hires(104, 72, 0.9, "latent-nearest")),
    ],
    "sd1-plain": [
        guided(text("a house", "ddim", 3, 335, guidance=4.0, hires=hires(80, 88, 0.7)), control("sd1-canny", HINT, 0.8)),
        guided(
            text("a house", "euler", 3, 336, 64, 72, 3.0, hires=hires(88, 80, 0.8, steps=5)),
            control("sd1-canny", SECOND, 0.6, 0.0, 0.6),
            control("sd1-pose", HINT, 0.9, 0.5, 1.0),
        ),
        masked("a red cat", FIRST, 1.0, "ddim", 3, 337, hires=hires(88, 80, 0.7)),
        masked("a red cat", SECOND, 0.7, "euler_a", 4, 338, clip_skip=1, hires=hires(96, 104, 1.0, "latent-bicubic")),
        guided(masked("a boat", FIRST, 0.8, "dpm++ 2m", 4, 339, hires=hires(80, 88, 0.6)), control("sd1-pose", HINT, 0.7)),
    ],
    "sd1-inpaint": [
        masked("a red cat", FIRST, 1.0, "ddim", 3, 340, hires=hires(88, 80, 0.7)),
        masked("a red cat", SECOND, 0.8, "euler", 3, 341, hires=hires(72, 104, 1.0)),
        guided(masked("a house", FIRST, 1.0, "heun", 2, 342, hires=hires(80, 72, 0.8, steps=3)),
               control("sd1-canny", HINT, 0.9, 0.0, 0.7)),
    ],
    "sdxl-small": [
        text("a small ship", None, 3, 334, 64, 72, 4.0, crop=[8, 0], hires=hires(88, 96, 0.8, "latent-nearest-exact")),
        guided(text("a small ship", None, 3, 343, 64, 64, 3.0, hires=hires(88, 72, 0.7)),
               control("sdxl-canny", HINT, 0.6, 0.0, 0.7)),
        text("a small ship", None, 3, 344, 64, 72, 3.0, hires=hires(80, 88, 0.9, steps=6), refiner=refiner(0.6)),
        text("a small ship", "euler_a", 2, 345, guidance=3.0, hires=hires(72, 80, 0.7, steps=6), refiner=refiner(0.7)),
        masked("a boat", FIRST, 1.0, "dpm++ 2m", 3, 346, 3.0, hires=hires(80, 88, 0.8, steps=4), crop=[8, 0]),
        masked("a boat", SECOND, 0.8, "euler", 4, 347, 3.0, hires=hires(80, 96, 0.8, steps=6), refiner=refiner(0.6)),
    ],
    "sdxl-inpaint": [
        masked("a red cat", FIRST, 1.0, None, 3, 348, 3.0, hires=hires(88, 80, 0.7)),
    ],
}


def every():
    for model, jobs in (MODELS | THIN).items():
        for number, job in enumerate(jobs):
            first = number == 0 and model in FIRST_WHOLE
            whole = model not in THIN or first or job.get("latents_only")
            thin = {} if whole else {"thin": True}
            yield {"id": f"{model}-{number:02d}", "model": model, **job, **thin}
    for model, jobs in ADAPTED.items():
        for number, job in enumerate(jobs):
            yield {"id": f"{model}-lora-{number:02d}", "model": model, **job, "thin": True}
    for model, jobs in LEARNED.items():
        for number, job in enumerate(jobs):
            yield {"id": f"{model}-learned-{number:02d}", "model": model, **job, "thin": True}
    for model, jobs in SAID.items():
        for number, job in enumerate(jobs):
            yield {"id": f"{model}-said-{number:02d}", "model": model, **job, "thin": True}
    for model, jobs in GUIDED.items():
        for number, job in enumerate(jobs):
            yield {"id": f"{model}-guided-{number:02d}", "model": model, **job, "thin": True}
    for model, jobs in TUNED.items():
        for number, job in enumerate(jobs):
            yield {"id": f"{model}-tuned-{number:02d}", "model": model, **job, "thin": True}
    for model, jobs in ENLARGED.items():
        for number, job in enumerate(jobs):
            yield {"id": f"{model}-hires-{number:02d}", "model": model, **job, "thin": True}
