"""Scenes, their pictures and their prompts: the whole world of the tiny-shapes model.

A scene is a plain dict:

    kind        "one", "two" or "three" objects
    objects     [(shape, colour)]: one entry for "one" and "three" (three alike), two for "two"
    size        "small", "medium" or "big"; always "medium" for "two" and "three"
    place       "centre", "left", ... "bottom right"; always "centre" for "two" and "three"
    relation    "left" or "above": the first object is left of / above the second; "" otherwise
    background  a key of BACKGROUNDS
    style       a key of STYLES

`picture` draws a scene (four times as large, then averaged down), `prompts` words it in English,
and `held_out` says whether its combination is kept out of training: a fixed tenth of all
combinations, by hash. Everything random comes from a `random.Random` that the caller owns.
"""

import hashlib
import math

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 128      # pixels of a finished picture
SCALE = 4       # supersampling

COLOURS = {
    "red": (222, 38, 44),
    "orange": (246, 132, 20),
    "yellow": (250, 216, 36),
    "green": (44, 172, 72),
    "turquoise": (24, 190, 196),
    "blue": (38, 84, 222),
    "purple": (138, 56, 196),
    "pink": (250, 112, 178),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond")
BACKGROUNDS = {     # colour at the top, colour at the bottom
    "white": ((252, 252, 252), (252, 252, 252)),
    "black": ((18, 18, 20), (18, 18, 20)),
    "grey": ((158, 160, 164), (158, 160, 164)),
    "cream": ((255, 242, 212), (255, 242, 212)),
    "navy": ((22, 32, 78), (22, 32, 78)),
    "sky": ((122, 186, 246), (232, 243, 253)),
}
STYLES = ("flat", "outlined", "glossy", "striped", "smiling")
SIZES = {"small": 17.0, "medium": 25.0, "big": 37.0}    # radius in pixels
PLACES = ("centre", "left", "right", "top", "bottom",
          "top left", "top right", "bottom left", "bottom right")
DARK_BACKGROUNDS = ("black", "navy")
INK = (44, 32, 48)
PAPER = (250, 250, 250)


# ---- scenes -----------------------------------------------------------------------------------

def random_scene(rng):
    """Any scene, held out or not."""
    kind = rng.choices(("one", "two", "three"), (0.50, 0.42, 0.08))[0]
    background = rng.choices(tuple(BACKGROUNDS), (3, 2, 2, 2, 2, 2))[0]
    first = (rng.choice(SHAPES), rng.choice(tuple(COLOURS)))
    scene = {"kind": kind, "objects": [first], "size": "medium", "place": "centre",
             "relation": "", "background": background}
    if kind == "one":
        scene["size"] = rng.choice(tuple(SIZES))
        if rng.random() < 0.7:
            scene["place"] = rng.choice(PLACES[1:])
    if kind == "two":
        second = first
        while second == first:
            second = (rng.choice(SHAPES), rng.choice(tuple(COLOURS)))
        scene["objects"].append(second)
        scene["relation"] = rng.choice(("left", "above"))
    styles = STYLES
    if kind == "two":
        styles = ("flat", "outlined", "glossy", "smiling")
    elif scene["size"] == "small" or kind == "three":
        styles = ("flat", "outlined", "glossy")     # stripes and faces need room
    scene["style"] = rng.choice(styles)
    return scene


def combination(scene):
    """The part of a scene that decides whether it is held out."""
    objects = "+".join(" ".join(reversed(o)) for o in scene["objects"])
    if scene["kind"] == "two":
        return f"{objects}, {scene['relation']}"
    return f"{scene['kind']} {objects}, {scene['place']}, {scene['background']}"


def held_out(scene):
    """True for a fixed tenth of all combinations. Training never draws these."""
    return hashlib.sha256(combination(scene).encode()).digest()[0] < 26


def training_scene(rng):
    """A scene that is not held out."""
    while True:
        scene = random_scene(rng)
        if not held_out(scene):
            return scene


# ---- pictures ---------------------------------------------------------------------------------

def outline(shape, x, y, r):
    """The polygon of a shape with radius r around (x, y)."""
    if shape == "circle":
        return [(x + r * math.cos(a), y + r * math.sin(a))
                for a in (i * math.pi / 60 for i in range(120))]
    if shape == "square":
        s = 0.88 * r
        return [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)]
    if shape == "triangle":
        return [(x, y - 0.92 * r), (x + r, y + 0.82 * r), (x - r, y + 0.82 * r)]
    if shape == "diamond":
        return [(x, y - 1.08 * r), (x + 0.82 * r, y), (x, y + 1.08 * r), (x - 0.82 * r, y)]
    if shape == "star":
        points = []
        for i in range(10):
            a = -math.pi / 2 + i * math.pi / 5
            length = (1.08 if i % 2 == 0 else 0.52) * r
            points.append((x + length * math.cos(a), y + 0.06 * r + length * math.sin(a)))
        return points
    if shape == "heart":
        points = []
        for i in range(120):
            a = i * math.pi / 60
            px = 16 * math.sin(a) ** 3
            py = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
            points.append((x + px * r / 16.5, y - (py + 2.5) * r / 16.5))
        return points
    raise ValueError(shape)


def _mix(a, b, share):
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b))


def _draw_object(image, shape, colour, style, x, y, r, dark):
    """Draws one object; x, y, r in pixels of the large image."""
    pen = ImageDraw.Draw(image)
    rgb = COLOURS[colour]
    if style == "outlined":
        pen.polygon(outline(shape, x, y, r), fill=PAPER if dark else INK)
        lift = {"triangle": 0.06, "star": -0.0}.get(shape, 0.0) * r
        pen.polygon(outline(shape, x, y + lift, r * (0.76 if shape in ("triangle", "star") else 0.83)),
                    fill=rgb)
        return
    pen.polygon(outline(shape, x, y, r), fill=rgb)
    if style == "striped":
        inner = Image.new("L", image.size, 0)
        lift = 0.07 * r if shape == "triangle" else 0.0
        ImageDraw.Draw(inner).polygon(outline(shape, x, y + lift, 0.78 * r), fill=255)
        bands = Image.new("RGB", image.size, rgb)
        band_pen = ImageDraw.Draw(bands)
        for i in (-2, -1, 0, 1, 2):
            middle = y + 0.05 * r + i * 0.46 * r
            band_pen.rectangle((x - r, middle - 0.115 * r, x + r, middle + 0.115 * r), fill=PAPER)
        image.paste(bands, (0, 0), inner)
    elif style == "glossy":
        inside = Image.new("L", image.size, 0)
        ImageDraw.Draw(inside).polygon(outline(shape, x, y, r), fill=255)
        shade = Image.new("RGB", image.size, _mix(rgb, (0, 0, 0), 0.22))
        shade_pen = ImageDraw.Draw(shade)
        for share, size in ((0.22, 1.30), (0.14, 1.18), (0.06, 1.06), (-0.03, 0.92), (-0.08, 0.75)):
            tone = _mix(rgb, (0, 0, 0), share) if share > 0 else _mix(rgb, PAPER, -2 * share)
            cx, cy = x - 0.22 * r, y - 0.22 * r
            shade_pen.ellipse((cx - size * r, cy - size * r, cx + size * r, cy + size * r), fill=tone)
        gx, gy = {"triangle": (-0.14, 0.06), "star": (-0.16, -0.20), "diamond": (-0.20, -0.24),
                  "heart": (-0.46, -0.36)}.get(shape, (-0.36, -0.38))
        shade_pen.ellipse((x + (gx - 0.23) * r, y + (gy - 0.18) * r,
                           x + (gx + 0.23) * r, y + (gy + 0.18) * r), fill=PAPER)
        image.paste(shade, (0, 0), inside)
    elif style == "smiling":
        y += {"triangle": 0.28, "star": 0.06, "heart": -0.10}.get(shape, 0.0) * r
        f = r * {"triangle": 0.85, "star": 0.85}.get(shape, 1.0)
        for side in (-1, 1):
            ex = x + side * 0.30 * f
            pen.ellipse((ex - 0.14 * f, y - 0.36 * f, ex + 0.14 * f, y - 0.02 * f), fill=INK)
        pen.arc((x - 0.44 * f, y - 0.28 * f, x + 0.44 * f, y + 0.48 * f), 25, 155,
                fill=INK, width=round(0.17 * f))


def _layout(scene, rng):
    """[(shape, colour, x, y, r)] in pixels of the finished picture."""
    middle = SIDE / 2

    def near(value, spread):
        return value + rng.uniform(-spread, spread)

    if scene["kind"] == "two":
        (a, b), gap = scene["objects"], 30.0
        shift, cross, r = near(0, 1.5), [near(middle, 2.5), near(middle, 2.5)], near(23.5, 1)
        along = (middle - gap + shift, middle + gap + shift)
        if scene["relation"] == "left":
            return [(*a, along[0], cross[0], r), (*b, along[1], cross[1], r)]
        return [(*a, cross[0], along[0], r), (*b, cross[1], along[1], r)]
    if scene["kind"] == "three":
        y, r = near(middle, 3), near(16.5, 0.7)
        return [(*scene["objects"][0], middle + 40 * i + near(0, 1), y, r) for i in (-1, 0, 1)]
    r = SIZES[scene["size"]] + rng.uniform(-1, 1)
    edge = 1.1 * r + 5
    room = max(0.0, min(8.0, 40 - edge))
    x, y = near(middle, 2.5), near(middle, 2.5)
    if "left" in scene["place"]:
        x = edge + rng.uniform(0, room)
    if "right" in scene["place"]:
        x = SIDE - edge - rng.uniform(0, room)
    if "top" in scene["place"]:
        y = edge + rng.uniform(0, room)
    if "bottom" in scene["place"]:
        y = SIDE - edge - rng.uniform(0, room)
    return [(*scene["objects"][0], x, y, r)]


_BACKGROUND_CACHE = {}


def _background(name):
    if name not in _BACKGROUND_CACHE:
        top, bottom = BACKGROUNDS[name]
        column = Image.new("RGB", (1, SIDE * SCALE))
        for y in range(SIDE * SCALE):
            column.putpixel((0, y), _mix(top, bottom, y / (SIDE * SCALE - 1)))
        _BACKGROUND_CACHE[name] = column.resize((SIDE * SCALE, SIDE * SCALE))
    return _BACKGROUND_CACHE[name].copy()


def picture(scene, rng):
    """An RGB picture of the scene, SIDE by SIDE; rng jitters places and sizes a little."""
    image = _background(scene["background"])
    dark = scene["background"] in DARK_BACKGROUNDS
    for shape, colour, x, y, r in _layout(scene, rng):
        _draw_object(image, shape, colour, scene["style"], x * SCALE, y * SCALE, r * SCALE, dark)
    return image.reduce(SCALE)


# ---- neon -------------------------------------------------------------------------------------

NIGHT = (12, 10, 22)


def neon_picture(scene, rng):
    """The same scene as glowing tubes at night, whatever its background and style."""
    large = SIDE * SCALE
    tubes, cores = Image.new("RGB", (large, large), (0, 0, 0)), Image.new("RGB", (large, large), (0, 0, 0))
    for shape, colour, x, y, r in _layout(scene, rng):
        r *= SCALE
        points = outline(shape, x * SCALE, y * SCALE, 0.92 * r)
        points += points[:2]
        wide = round(max(4.0 * SCALE, 0.17 * r))
        ImageDraw.Draw(tubes).line(points, fill=COLOURS[colour], width=wide, joint="curve")
        ImageDraw.Draw(cores).line(points, fill=_mix(COLOURS[colour], PAPER, 0.65),
                                   width=round(0.3 * wide), joint="curve")
    glow = tubes.filter(ImageFilter.GaussianBlur(5 * SCALE)).point(lambda v: round(0.8 * v))
    lit = ImageChops.add(Image.new("RGB", (large, large), NIGHT), glow)
    return ImageChops.lighter(ImageChops.lighter(lit, tubes), cores).reduce(SCALE)


# ---- prompts ----------------------------------------------------------------------------------

_LEADS = ("", "", "", "a picture of ", "a drawing of ")
_PLACE_WORDS = {
    "centre": ("", "", "in the middle", "in the centre"),
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "top left": ("in the top left corner", "at the top left"),
    "top right": ("in the top right corner", "at the top right"),
    "bottom left": ("in the bottom left corner", "at the bottom left"),
    "bottom right": ("in the bottom right corner", "at the bottom right"),
}
_SIZE_WORDS = {"small": ("small", "little"), "medium": ("", "", "medium"), "big": ("big", "large")}


def _a(words):
    words = " ".join(w for w in words if w)
    return ("an " if words[0] in "aeiou" else "a ") + words


def prompt(scene, rng):
    """One of the many ways to ask for the scene."""
    style, size = scene["style"], rng.choice(_SIZE_WORDS[scene["size"]])
    adjective, ending = {
        "flat": (rng.choice(("", "", "", "flat")), ""),
        "outlined": ("outlined", ""),
        "glossy": (rng.choice(("glossy", "shiny")), ""),
        "striped": ("striped", ""),
        "smiling": rng.choice((("smiling", ""), ("happy", ""), ("", "with a smiling face"))),
    }[style]
    objects = scene["objects"]
    if scene["kind"] == "two":
        if adjective == "" and ending:
            adjective, ending = "smiling", ""
        (sa, ca), (sb, cb) = objects
        words = {"left": ("left of", "to the left of"), "above": ("above", "over")}
        back = {"left": ("right of", "to the right of"), "above": ("below", "under")}
        if rng.random() < 0.65:
            link = rng.choice(words[scene["relation"]])
        else:
            link = rng.choice(back[scene["relation"]])
            (sa, ca), (sb, cb) = (sb, cb), (sa, ca)
        what = f"{_a((adjective, ca, sa))} {link} {_a((adjective, cb, sb))}"
    elif scene["kind"] == "three":
        shape, colour = objects[0]
        what = " ".join(w for w in ("three", adjective, colour, shape + "s") if w)
        what += rng.choice(("", " in a row"))
    else:
        shape, colour = objects[0]
        what = " ".join(w for w in (_a((size, adjective, colour, shape)), ending) if w)
        place = rng.choice(_PLACE_WORDS[scene["place"]])
        if place:
            what += rng.choice((" ", ", ")) + place
    ground = scene["background"]
    if ground == "sky":
        where = rng.choice((" in the sky", " on a sky background", ", sky background"))
    else:
        where = rng.choice((f" on a {ground} background", f" on a {ground} background",
                            f" on {ground}", f", {ground} background"))
        if ground == "white":
            where = rng.choice(("", where))
    return rng.choice(_LEADS) + what + where
