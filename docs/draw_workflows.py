"""Draws the workflows that come with the package: `python docs/draw_workflows.py` writes workflows/*.json.

Draw anew after a node's inputs changed. A workflow saved from the editor may replace a drawn one; then
take its function out of `DRAWINGS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from comfyui_controlnet_core.controlnet_core.training.demo_world import render_seed
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.scenes import SCENES
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.preprocessors.catalog import ENTRIES
from comfyui_controlnet_core.preprocessors.pose import Person, Pose, write_poses
from comfyui_controlnet_core.workflows.to_editor import Box, Placed, Sheet

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
SIZE = 128
LOAD, TEXT, HINT = ("#322", "#533"), ("#232", "#353"), ("#223", "#335")
PAINT, SHOW = ("#323", "#535"), ("#233", "#355")
BALLS = "a photo of a red ball and a blue ball on yellow ground"
OWN_MODEL = (
    "### Your own model\n\n"
    "The demo model is tiny: it knows coloured solids and a mannequin, at {size} x {size} pixels. For your own:\n\n"
    "1. put a Stable Diffusion 1.5 checkpoint into `models/checkpoints` and ControlNets made for it into "
    "`models/controlnet`,\n"
    "2. choose them in the loaders (the red nodes),\n"
    "3. set the picture sizes to 512.\n\n"
    "Without the editor: `controlnet run {name} --models DIR`."
)


@dataclass(frozen=True)
class Base:
    """The nodes that every workflow begins with."""

    model: Placed
    prompt: Placed


def base(sheet: Sheet, name: str, about: str, prompt: str, negative: str = "") -> Base:
    """Notes, checkpoint and prompt: the left column."""
    sheet.note(about, (-420, -60, 380, 260))
    sheet.note(OWN_MODEL.format(name=name, size=SIZE), (-420, 250, 380, 330))
    sheet.group("1  Model and prompt", (-20, -80, 400, 480))
    model = sheet.node("CNCore_LoadCheckpoint", (0, 0, 360, 120), {"checkpoint": "demo (built in)"}, color=LOAD)
    values = {"prompt": prompt, "negative_prompt": negative}
    text = sheet.node("CNCore_EncodePrompt", (0, 160, 360, 220), values, color=TEXT)
    sheet.link(model, "clip", text, "clip")
    return Base(model, text)


def net(sheet: Sheet, kind: str, at: tuple[int, int]) -> Placed:
    """A built-in ControlNet."""
    return sheet.node("CNCore_LoadControlNet", (*at, 320, 70), {"control_net": f"demo {kind} (built in)"}, color=LOAD)


def example(sheet: Sheet, picture: str, view: str, at: tuple[int, int], title: str = "") -> Placed:
    """An example picture, or one of its exact hints."""
    values = {"picture": picture, "view": view, "size": SIZE}
    return sheet.node("CNCore_ExampleImage", (*at, 320, 130), values, title=title, color=HINT)


def empty(sheet: Sheet, at: tuple[int, int]) -> Placed:
    """The latent of an empty picture."""
    return sheet.node("EmptyLatentImage", (*at, 320, 110), {"width": SIZE, "height": SIZE}, color=PAINT)


def preview(sheet: Sheet, source: Placed, output: str, at: tuple[int, int], title: str) -> None:
    """A look at a picture on the way."""
    shown = sheet.node("PreviewImage", (*at, 260, 250), title=title, color=SHOW)
    sheet.link(source, output, shown, "images")


def paint(
    sheet: Sheet,
    start: Base,
    control: Placed,
    latent: tuple[Placed, str],
    prefix: str,
    at: tuple[int, int],
    **settings: Any,
) -> None:
    """Sample, decode, save: one row. `control` has the outputs positive and negative."""
    x, y = at
    values = {"seed": 7, "steps": 20, "cfg": 5.0, "sampler": "euler", "scheduler": "normal", **settings}
    sampler = sheet.node("CNCore_Sample", (x, y, 320, 300), values, color=PAINT)
    decode = sheet.node("VAEDecode", (x + 360, y, 200, 60), color=PAINT)
    save = sheet.node("SaveImage", (x + 600, y, 320, 340), {"filename_prefix": prefix}, color=SHOW)
    sheet.link(start.model, "model", sampler, "model")
    sheet.link(control, "positive", sampler, "positive")
    sheet.link(control, "negative", sampler, "negative")
    sheet.link(*latent, sampler, "latent")
    sheet.link(sampler, "latent", decode, "samples")
    sheet.link(start.model, "vae", decode, "vae")
    sheet.link(decode, decode.spec.output_names[0], save, "images")


def apply(
    sheet: Sheet, start: Base, loaded: Placed, hint: tuple[Placed, str], box: Box, title: str = "", **values: Any
) -> Placed:
    """One net on the prompt."""
    node = sheet.node("CNCore_ApplyControlNet", box, values, title=title, color=HINT)
    sheet.link(start.prompt, "positive", node, "positive")
    sheet.link(start.prompt, "negative", node, "negative")
    sheet.link(loaded, loaded.spec.output_names[0], node, "control_net")
    sheet.link(*hint, node, "image")
    return node


def preprocess(sheet: Sheet, source: Placed, kind: str, settings: str, at: tuple[int, int]) -> Placed:
    """A hint made from a picture."""
    output = "image" if "image" in source.spec.output_names else "hint"
    node = sheet.node("CNCore_Preprocess", (*at, 320, 210), {"kind": kind, "settings": settings}, color=HINT)
    sheet.link(source, output, node, "image")
    return node


def outlines(sheet: Sheet) -> tuple[Placed, Placed]:
    """A photograph of coins, and the edges of their outlines: the blur takes the engravings away."""
    photo = example(sheet, "coins", "picture", (420, 0), "Photograph")
    smooth = preprocess(sheet, photo, "blur", "sigma=2", (420, 160))
    edges = sheet.node(
        "CNCore_Preprocess", (420, 410, 320, 210), {"kind": "canny", "settings": "low=60, high=140"}, color=HINT
    )
    sheet.link(smooth, "hint", edges, "image")
    return photo, edges


def canny_to_image(sheet: Sheet) -> None:
    """A photograph's edges, and a new picture along them."""
    about = (
        "## Canny to picture\n\nThe edges of a photograph become the edges of a new picture. The photograph gives "
        "the lines and nothing else: colours and things come from the prompt.\n\nTry another photograph, another "
        "prompt, a strength of 0, another seed."
    )
    start = base(sheet, "canny_to_image", about, BALLS)
    sheet.group("2  The edges to follow", (400, -80, 640, 1000))
    _, edges = outlines(sheet)
    preview(sheet, edges, "hint", (760, 0), "The edges")
    loaded = net(sheet, "canny", (420, 660))
    latent = empty(sheet, (420, 770))
    sheet.group("3  The picture", (1060, -80, 1340, 480))
    control = apply(sheet, start, loaded, (edges, "hint"), (1080, 0, 320, 240))
    paint(sheet, start, control, (latent, "LATENT"), "canny_to_image", (1440, 0))


def scribble_to_image(sheet: Sheet) -> None:
    """Rough strokes, and a picture from them."""
    about = (
        "## Scribble to picture\n\nRough strokes are enough. For a drawing of your own, put it into the input "
        "folder, add Load Image and link it to Preprocess with kind scribble_drawing (dark strokes on white paper), "
        "then that to Apply ControlNet in place of the example."
    )
    start = base(sheet, "scribble_to_image", about, "a photo of a green cone, a brown cylinder and a red ball")
    sheet.group("2  The scribble", (400, -80, 640, 720))
    strokes = example(sheet, "demo scene 7", "scribble", (420, 0), "Scribble")
    preview(sheet, strokes, "image", (760, 0), "The scribble")
    loaded = net(sheet, "scribble", (420, 180))
    latent = empty(sheet, (420, 300))
    sheet.group("3  The picture", (1060, -80, 1340, 480))
    control = apply(sheet, start, loaded, (strokes, "image"), (1080, 0, 320, 240))
    paint(sheet, start, control, (latent, "LATENT"), "scribble_to_image", (1440, 0))


def depth_and_pose(sheet: Sheet) -> None:
    """Two nets at once, as a stack."""
    about = (
        "## Depth and pose together\n\nTwo nets, two hints, one picture: the depth map places what stands where, "
        "the skeleton says how the figure holds itself. Control Units chain: add a third by linking its stack "
        "between the second and Apply Control Stack.\n\nSet a strength to 0 to see what the other net does alone."
    )
    start = base(sheet, "depth_and_pose", about, "a photo of a magenta figure with one raised arm and a green box")
    sheet.group("2  Two hints", (400, -80, 640, 720))
    depth = example(sheet, "demo scene 10", "depth", (420, 0), "Depth")
    pose = example(sheet, "demo scene 10", "openpose", (420, 300), "Pose")
    preview(sheet, depth, "image", (760, 0), "The depth")
    preview(sheet, pose, "image", (760, 300), "The pose")
    depth_net, pose_net = net(sheet, "depth", (420, 170)), net(sheet, "openpose", (420, 470))
    sheet.group("3  Stack and picture", (1060, -80, 1700, 700))
    first = sheet.node("CNCore_ControlUnit", (1080, 0, 320, 240), {"strength": 1.0}, title="Depth unit", color=HINT)
    second = sheet.node("CNCore_ControlUnit", (1080, 300, 320, 240), {"strength": 1.0}, title="Pose unit", color=HINT)
    for unit, hint, loaded in ((first, depth, depth_net), (second, pose, pose_net)):
        sheet.link(loaded, "control_net", unit, "control_net")
        sheet.link(hint, "image", unit, "image")
    sheet.link(first, "stack", second, "stack")
    control = sheet.node("CNCore_ApplyControlStack", (1440, 0, 320, 100), color=HINT)
    sheet.link(start.prompt, "positive", control, "positive")
    sheet.link(start.prompt, "negative", control, "negative")
    sheet.link(second, "stack", control, "stack")
    latent = empty(sheet, (1440, 160))
    paint(sheet, start, control, (latent, "LATENT"), "depth_and_pose", (1800, 0))


def union(sheet: Sheet) -> None:
    """One net for several kinds of hint: two at once, and one alone."""
    about = (
        "## One net for several hints\n\nA ControlNet Union reads every kind of hint that it was trained on, and is "
        "told which one comes. Above it follows two at once: a depth map, whose kind Control Options says, and a "
        "skeleton from More Hints. Below the same net follows edges alone; there the editor's own Set Union ControlNet "
        "Type says the kind.\n\nThe demo Union knows openpose, depth, scribble, canny and segment, and no normals."
    )
    start = base(sheet, "union", about, "a photo of a magenta figure with one raised arm and a green box")
    sheet.group("2  Three hints, one net", (400, -80, 640, 1000))
    depth = example(sheet, "demo scene 10", "depth", (420, 0), "Depth")
    pose = example(sheet, "demo scene 10", "openpose", (420, 300), "Pose")
    edges = example(sheet, "demo scene 10", "canny", (420, 600), "Edges")
    for y, (hint, title) in enumerate(((depth, "The depth"), (pose, "The pose"), (edges, "The edges"))):
        preview(sheet, hint, "image", (760, 300 * y), title)
    loaded = net(sheet, "union", (420, 170))
    latent = empty(sheet, (420, 770))
    sheet.group("3.1  Depth and pose at once", (1060, -80, 1700, 560))
    options = sheet.node("CNCore_ControlOptions", (1080, 0, 320, 260), {"hint_type": "depth"}, color=HINT)
    more = sheet.node("CNCore_MoreHints", (1080, 310, 320, 80), {"hint_type": "openpose"}, color=HINT)
    sheet.link(pose, "image", more, "image")
    both = apply(sheet, start, loaded, (depth, "image"), (1440, 0, 320, 320), "Depth and pose")
    sheet.link(options, "options", both, "options")
    sheet.link(more, "more_hints", both, "more_hints")
    paint(sheet, start, both, (latent, "LATENT"), "union/depth_and_pose", (1800, 0))
    sheet.group("3.2  Edges alone", (1060, 500, 1700, 440))
    values = {"type": "canny/lineart/anime_lineart/mlsd"}
    typed = sheet.node("SetUnionControlNetType", (1080, 580, 320, 60), values, color=HINT)
    sheet.link(loaded, "control_net", typed, "control_net")
    alone = apply(sheet, start, typed, (edges, "image"), (1440, 580, 320, 280), "Edges")
    paint(sheet, start, alone, (latent, "LATENT"), "union/canny", (1800, 580))


STUDY = (
    ("strength 0", "strength_000", 0.0, 0.0, 1.0),
    ("strength 0.5", "strength_050", 0.5, 0.0, 1.0),
    ("strength 1", "strength_100", 1.0, 0.0, 1.0),
    ("first half only", "window_0_50", 1.0, 0.0, 0.5),
    ("second half only", "window_50_100", 1.0, 0.5, 1.0),
)


def strength_and_window(sheet: Sheet) -> None:
    """The same seed and hint at several strengths and windows."""
    about = (
        "## Strength and window\n\nFive pictures from one seed and one hint. From top to bottom: no control, half, "
        "full; then full control in the first half of the way only, and in the second half only.\n\nThe first half "
        "decides where things are, so control that comes late can only correct details."
    )
    start = base(sheet, "strength_and_window", about, "a photo of a green cone, a brown cylinder and a red ball")
    sheet.group("2  One hint", (400, -80, 640, 720))
    edges = example(sheet, "demo scene 7", "canny", (420, 0), "Edges")
    preview(sheet, edges, "image", (760, 0), "The edges")
    loaded = net(sheet, "canny", (420, 180))
    latent = empty(sheet, (420, 300))
    for row, (title, name, strength, begin, end) in enumerate(STUDY):
        y = row * 460
        sheet.group(f"3.{row + 1}  {title}", (1060, y - 80, 1340, 440))
        values = {"strength": strength, "start_percent": begin, "end_percent": end}
        control = apply(sheet, start, loaded, (edges, "image"), (1080, y, 320, 240), title, **values)
        paint(sheet, start, control, (latent, "LATENT"), f"strength_and_window/{name}", (1440, y))


def img2img_with_control(sheet: Sheet) -> None:
    """A picture repainted, with its edges held."""
    about = (
        "## Repaint a picture, keep its lines\n\nThe sampler starts from the picture instead of from pure noise "
        "(denoise below 1), and its edges hold the shapes in place while the prompt changes colours.\n\n"
        "More denoise changes more; at 1 the picture is only present through its edges."
    )
    start = base(sheet, "img2img_with_control", about, "a photo of a green box on a blue floor")
    sheet.group("2  The picture and its edges", (400, -80, 640, 720))
    source = example(sheet, "demo scene 9", "picture", (420, 0), "Picture to repaint")
    edges = preprocess(sheet, source, "canny", "", (420, 180))
    preview(sheet, source, "image", (760, 0), "Before")
    preview(sheet, edges, "hint", (760, 300), "The edges")
    loaded = net(sheet, "canny", (420, 430))
    latent = sheet.node("VAEEncode", (420, 540, 320, 60), color=PAINT)
    sheet.link(source, "image", latent, "pixels")
    sheet.link(start.model, "vae", latent, "vae")
    sheet.group("3  Repaint", (1060, -80, 1340, 480))
    control = apply(sheet, start, loaded, (edges, "hint"), (1080, 0, 320, 240))
    paint(sheet, start, control, (latent, "LATENT"), "img2img_with_control", (1440, 0), denoise=0.8)


def canny_photo(sheet: Sheet) -> None:
    """A photograph, its edges, and the same seed without and with control."""
    about = (
        "## A real photograph, without and with control\n\nThe same prompt and seed twice: above without control, "
        "below with the photograph's edges.\n\nThe photograph is free of rights, its notice is in "
        "`controlnet_core/assets/NOTICE.md`. For your own, put it into the input folder and link Load Image to "
        "Preprocess."
    )
    start = base(sheet, "canny_photo", about, BALLS)
    sheet.group("2  The photograph and its edges", (400, -80, 640, 1000))
    photo, edges = outlines(sheet)
    preview(sheet, photo, "image", (760, 0), "The photograph")
    preview(sheet, edges, "hint", (760, 300), "The edges")
    loaded = net(sheet, "canny", (420, 660))
    latent = empty(sheet, (420, 770))
    for row, (title, name, strength) in enumerate((("Without control", "without", 0.0), ("With control", "with", 1.0))):
        y = row * 460
        sheet.group(f"{3 + row}  {title}", (1060, y - 80, 1340, 440))
        control = apply(sheet, start, loaded, (edges, "hint"), (1080, y, 320, 240), title, strength=strength)
        paint(sheet, start, control, (latent, "LATENT"), f"canny_photo/{name}", (1440, y))


def pose_json() -> str:
    """The keypoints of a demo scene as OpenPose JSON, as other tools would save them."""
    (seed,) = (seed for name, seed in SCENES.items() if name == "demo scene 10")
    people = tuple(Person(np.round(body, 1)) for body in render_seed(seed, SIZE).keypoints)
    return json.dumps(write_poses([Pose(people, SIZE, SIZE)])[0])


def pose_from_json(sheet: Sheet) -> None:
    """Keypoints as text, drawn, and a picture of a figure that stands so."""
    about = (
        "## Pose from JSON to picture\n\nKeypoints that another tool wrote, as OpenPose JSON, are drawn as a skeleton "
        "that a pose ControlNet reads. Paste your own JSON into Pose Render; clear the field, and a template is "
        "drawn.\n\n"
        "The strokes are thicker than usual, as the small demo net knows them: set stroke to 1 for your own."
    )
    start = base(sheet, "pose_from_json", about, "a photo of a magenta figure with one raised arm and a green box")
    sheet.group("2  The pose", (400, -80, 640, 860))
    values = {"json": pose_json(), "width": SIZE, "height": SIZE, "stroke": 1.75}
    pose = sheet.node("CNCore_PoseRender", (420, 0, 320, 400), values, color=HINT)
    preview(sheet, pose, "hint", (760, 0), "The skeleton")
    loaded = net(sheet, "openpose", (420, 460))
    latent = empty(sheet, (420, 580))
    sheet.group("3  The picture", (1060, -80, 1340, 480))
    control = apply(sheet, start, loaded, (pose, "hint"), (1080, 0, 320, 240))
    paint(sheet, start, control, (latent, "LATENT"), "pose_from_json", (1440, 0))


def depth_from_zpass(sheet: Sheet) -> None:
    """A renderer's distances, made a hint, and a picture with things at those places."""
    about = (
        "## Depth from a Z-pass\n\nA renderer knows the distance of every pixel. Depth Convert makes a hint of it: "
        "near white, far black, and the sky, which renderers write as a huge distance, black too. With space disparity "
        "it is 1 / distance, as depth nets know it.\n\nFor your own Z-pass link Load Image (16 bits) or a loader for "
        "EXR to Depth Convert. If near is bright in it already, set invert."
    )
    start = base(sheet, "depth_from_zpass", about, "a photo of a magenta figure with one raised arm and a green box")
    sheet.group("2  The distances", (400, -80, 640, 860))
    distances = example(sheet, "demo scene 10", "z-pass", (420, 0), "Z-pass")
    converted = sheet.node("CNCore_DepthConvert", (420, 190, 320, 260), {"space": "disparity"}, color=HINT)
    sheet.link(distances, "image", converted, "image")
    preview(sheet, converted, "hint", (760, 0), "The depth hint")
    loaded = net(sheet, "depth", (420, 510))
    latent = empty(sheet, (420, 630))
    sheet.group("3  The picture", (1060, -80, 1340, 480))
    control = apply(sheet, start, loaded, (converted, "hint"), (1080, 0, 320, 240))
    paint(sheet, start, control, (latent, "LATENT"), "depth_from_zpass", (1440, 0))


SHEET_COLUMNS = 6


def contact_sheet(sheet: Sheet) -> None:
    """One photograph through every preprocessor that needs no files."""
    sheet.note(
        "## All preprocessors without files\n\nOne photograph, and what each of them makes of it. Those that "
        "read a map get one made from the photograph, which stands in for yours: a blurred copy as depth, its "
        "slopes as normals, a copy with a shifted half as stereo pair, its bright parts as mask.\n\nThe hints "
        "are for ControlNets of `models/controlnet` with the checkpoint that they were made for in "
        "`models/checkpoints`: the titles say which kind of net reads them. Kinds that need a network are not "
        "here; their files go into `models/annotators`.\n\nWithout the editor: `controlnet run contact_sheet`, "
        "or `controlnet preprocess canny FOLDER` for many pictures.",
        (-420, -60, 380, 520),
    )
    sheet.group("1  What is read", (-20, -80, 700, 860))
    photo = example(sheet, "coffee", "picture", (0, 0), "Photograph")
    stereo = example(sheet, "coffee", "stereo pair", (0, 180), "Stereo pair")
    depth = preprocess(sheet, photo, "blur", "sigma=4", (340, 0))
    normals = preprocess(sheet, depth, "normal_depth", "convention=opengl", (340, 260))
    bright = preprocess(sheet, photo, "threshold", "level=180", (0, 360))
    mask = sheet.node("ImageToMask", (340, 520, 320, 60), color=HINT)
    sheet.link(bright, "hint", mask, "image")
    sources = {"depth": (depth, "hint"), "normals": (normals, "hint"), "stereo": (stereo, "image")}
    free = [entry for entry in ENTRIES if not entry.weights]
    rows = -(-(len(free) + 1) // SHEET_COLUMNS)
    sheet.group("2  What is made of it", (700, -80, SHEET_COLUMNS * 640 + 20, rows * 400 + 60))
    for index, entry in enumerate(free):
        x, y = 720 + index % SHEET_COLUMNS * 640, index // SHEET_COLUMNS * 400
        settings = ", ".join(f"{name}={str(value).lower()}" for name, value in entry.example)
        title = f"{entry.title}: {entry.condition}"
        source = sources.get(entry.sample, (photo, "image"))
        values = {"kind": entry.name, "settings": settings}
        node = sheet.node("CNCore_Preprocess", (x, y, 320, 230), values, title=title, color=HINT)
        sheet.link(*source, node, "image")
        if entry.masked:
            sheet.link(mask, "MASK", node, "mask")
        prefix = {"filename_prefix": f"contact_sheet/{entry.name}"}
        kept = sheet.node("SaveImage", (x + 340, y, 280, 330), prefix, color=SHOW)
        sheet.link(node, "hint", kept, "images")
    x, y = 720 + len(free) % SHEET_COLUMNS * 640, len(free) // SHEET_COLUMNS * 400
    values = {"template": "waving", "width": SIZE, "height": SIZE}
    pose = sheet.node("CNCore_PoseRender", (x, y, 320, 330), values, title="Pose from a template: openpose", color=HINT)
    kept = sheet.node("SaveImage", (x + 340, y, 280, 330), {"filename_prefix": "contact_sheet/pose"}, color=SHOW)
    sheet.link(pose, "hint", kept, "images")


def right_side(sheet: Sheet, at: tuple[int, int], kept: int) -> Placed:
    """A mask that is white from column `kept` on, with a soft edge: what outpainting would add to a black picture."""
    x, y = at
    black = sheet.node("EmptyImage", (x, y, 320, 130), {"width": kept, "height": SIZE}, title="Left side", color=HINT)
    values = {"right": SIZE - kept, "feathering": 16}
    mask = sheet.node("ImagePadForOutpaint", (x, y + 170, 320, 180), values, title="Mask of the right side", color=HINT)
    sheet.link(black, black.spec.output_names[0], mask, "image")
    return mask


def masks_for_two_nets(sheet: Sheet) -> None:
    """Two nets, each in its half of the picture."""
    about = (
        "## A mask for each net\n\nLeft the edges of one scene, right the depth of another. Each unit acts where its "
        "mask is white; the soft border lets them meet.\n\nPaint your own masks in the editor (Mask Editor on Load "
        "Image). Masks of any size are stretched over the picture."
    )
    start = base(sheet, "masks_for_two_nets", about, "a photo of a red cone, a brown cylinder and a green box")
    sheet.group("2  Two hints", (400, -80, 640, 780))
    edges = example(sheet, "demo scene 7", "canny", (420, 0), "Edges")
    depth = example(sheet, "demo scene 10", "depth", (420, 300), "Depth")
    preview(sheet, edges, "image", (760, 0), "The edges")
    preview(sheet, depth, "image", (760, 300), "The depth")
    edge_net, depth_net = net(sheet, "canny", (420, 170)), net(sheet, "depth", (420, 470))
    latent = empty(sheet, (420, 580))
    sheet.group("3  Two masks", (1060, -80, 360, 560))
    right = right_side(sheet, (1080, 0), SIZE // 2)
    left = sheet.node("InvertMask", (1080, 400, 320, 40), title="Left half", color=HINT)
    sheet.link(right, "MASK", left, "mask")
    sheet.group("4  Each in its half", (1440, -80, 1720, 700))
    first = sheet.node("CNCore_ControlUnit", (1460, 0, 320, 260), title="Edges, left", color=HINT)
    second = sheet.node("CNCore_ControlUnit", (1460, 310, 320, 260), title="Depth, right", color=HINT)
    for unit, hint, loaded, mask in ((first, edges, edge_net, left), (second, depth, depth_net, right)):
        sheet.link(loaded, "control_net", unit, "control_net")
        sheet.link(hint, "image", unit, "image")
        sheet.link(mask, mask.spec.output_names[-1], unit, "mask")
    sheet.link(first, "stack", second, "stack")
    control = sheet.node("CNCore_ApplyControlStack", (1820, 0, 320, 100), color=HINT)
    sheet.link(start.prompt, "positive", control, "positive")
    sheet.link(start.prompt, "negative", control, "negative")
    sheet.link(second, "stack", control, "stack")
    paint(sheet, start, control, (latent, "LATENT"), "masks_for_two_nets", (2180, 0))


SCHEDULES = (
    ("Full all the way", "full", "0: 1"),
    ("Strong first, then free", "falling", "0: 1, 0.3: 1, 0.6: 0"),
    ("Free first, then strong", "rising", "0: 0, 0.4: 0, 0.7: 1"),
)


def strength_schedules(sheet: Sheet) -> None:
    """One hint under three schedules of its strength."""
    about = (
        "## Strength along the way\n\nThree pictures from one seed and one hint, under three schedules. Keyframes are "
        "`position: strength`; 0 is pure noise, 1 the finished picture. Strong first fixes the layout and leaves the "
        "details to the model; strong at the end comes too late for the layout.\n\nControl Plan shows which strength "
        "acts at which step."
    )
    start = base(sheet, "strength_schedules", about, "a photo of a green cone, a brown cylinder and a red ball")
    sheet.group("2  One hint", (400, -80, 640, 720))
    edges = example(sheet, "demo scene 7", "canny", (420, 0), "Edges")
    preview(sheet, edges, "image", (760, 0), "The edges")
    loaded = net(sheet, "canny", (420, 180))
    latent = empty(sheet, (420, 300))
    for row, (title, name, keyframes) in enumerate(SCHEDULES):
        y = row * 460
        sheet.group(f"3.{row + 1}  {title}", (1060, y - 80, 1700, 440))
        values = {"keyframes": keyframes, "easing": "ease-in-out"}
        schedule = sheet.node("CNCore_StrengthSchedule", (1080, y, 320, 160), values, title=title, color=HINT)
        control = apply(sheet, start, loaded, (edges, "image"), (1440, y, 320, 280))
        sheet.link(schedule, "schedule", control, "schedule")
        paint(sheet, start, control, (latent, "LATENT"), f"strength_schedules/{name}", (1800, y))


LEVELS = (
    ("All blocks", "all", {}),
    ("Fine blocks alone", "fine", {"half": 0.0, "quarter": 0.0, "eighth": 0.0, "middle": 0.0}),
    ("Coarse blocks alone", "coarse", {"full": 0.0, "half": 0.0}),
    ("Soft: coarse counts more", "soft", {"preset": "soft"}),
)


def block_weights(sheet: Sheet) -> None:
    """One hint, heard by different blocks."""
    about = (
        "## Block weights\n\nFour pictures from one seed and one hint; what differs is which of the net's blocks are "
        "heard. Blocks at the latent's own resolution place lines, those at low resolution say what is where; the soft "
        "preset weakens the fine ones.\n\nBlock Sensitivity in the workflow control_study measures which blocks count."
    )
    start = base(sheet, "block_weights", about, "a photo of a green cone, a brown cylinder and a red ball")
    sheet.group("2  One hint", (400, -80, 640, 720))
    edges = example(sheet, "demo scene 7", "canny", (420, 0), "Edges")
    preview(sheet, edges, "image", (760, 0), "The edges")
    loaded = net(sheet, "canny", (420, 180))
    latent = empty(sheet, (420, 300))
    for row, (title, name, values) in enumerate(LEVELS):
        y = row * 460
        sheet.group(f"3.{row + 1}  {title}", (1060, y - 80, 1700, 440))
        weights = sheet.node("CNCore_BlockWeights", (1080, y, 320, 280), values, title=title, color=HINT)
        control = apply(sheet, start, loaded, (edges, "image"), (1440, y, 320, 280))
        sheet.link(weights, "block_weights", control, "block_weights")
        paint(sheet, start, control, (latent, "LATENT"), f"block_weights/{name}", (1800, y))


def inpaint_with_control(sheet: Sheet) -> None:
    """A part of a picture painted anew, along its edges."""
    about = (
        "## Inpaint with control\n\nOnly the right three quarters are painted anew, where the mask is white; the "
        "rest stays as it is. The edges of the picture hold the shapes, so that the new part fits the old one.\n\n"
        "With a checkpoint made for inpainting, or an inpaint ControlNet, use its own hint (preprocessor inpaint) "
        "instead of edges."
    )
    start = base(sheet, "inpaint_with_control", about, "a photo of a green box on yellow ground")
    sheet.group("2  The picture and its edges", (400, -80, 640, 720))
    source = example(sheet, "demo scene 9", "picture", (420, 0), "Picture")
    edges = preprocess(sheet, source, "canny", "", (420, 180))
    preview(sheet, source, "image", (760, 0), "Before")
    preview(sheet, edges, "hint", (760, 300), "The edges")
    loaded = net(sheet, "canny", (420, 440))
    latent = sheet.node("VAEEncode", (420, 560, 320, 60), color=PAINT)
    sheet.link(source, "image", latent, "pixels")
    sheet.link(start.model, "vae", latent, "vae")
    sheet.group("3  Where to paint", (1060, -80, 360, 580))
    mask = right_side(sheet, (1080, 0), SIZE // 4)
    masked = sheet.node("SetLatentNoiseMask", (1080, 400, 320, 60), color=PAINT)
    sheet.link(latent, "LATENT", masked, "samples")
    sheet.link(mask, "MASK", masked, "mask")
    sheet.group("4  Paint", (1440, -80, 1340, 480))
    control = apply(sheet, start, loaded, (edges, "hint"), (1460, 0, 320, 280))
    paint(sheet, start, control, (masked, "LATENT"), "inpaint_with_control", (1820, 0))


def tile_upscale(sheet: Sheet) -> None:
    """A picture at twice its size, details painted anew, decoded in tiles."""
    about = (
        "## Upscale with control, decode in tiles\n\nThe picture is enlarged, and the sampler paints its details anew "
        "(denoise 0.25) while its edges hold the shapes. VAE Decode (Tiled) decodes it piece by piece, which takes "
        "little memory at any size.\n\nThe demo model has seen nothing larger than 128 pixels, and it shows. "
        "It has no tile ControlNet, so the edges stand in for it. With your own "
        "model load a tile ControlNet and link the enlarged picture itself to Apply ControlNet as hint."
    )
    start = base(sheet, "tile_upscale", about, "a photo of a red box")
    sheet.group("2  The picture, enlarged", (400, -80, 640, 900))
    source = example(sheet, "demo scene 9", "picture", (420, 0), "Picture")
    values = {"upscale_method": "lanczos", "width": 2 * SIZE, "height": 2 * SIZE}
    large = sheet.node("ImageScale", (420, 180, 320, 150), values, color=HINT)
    sheet.link(source, "image", large, "image")
    edges = sheet.node("CNCore_Preprocess", (420, 380, 320, 210), {"kind": "canny"}, color=HINT)
    sheet.link(large, "IMAGE", edges, "image")
    preview(sheet, large, "IMAGE", (760, 180), "Enlarged")
    preview(sheet, edges, "hint", (760, 480), "The edges")
    loaded = net(sheet, "canny", (420, 630))
    latent = sheet.node("VAEEncode", (420, 740, 320, 60), color=PAINT)
    sheet.link(large, "IMAGE", latent, "pixels")
    sheet.link(start.model, "vae", latent, "vae")
    sheet.group("3  Details anew", (1060, -80, 1340, 480))
    control = apply(sheet, start, loaded, (edges, "hint"), (1080, 0, 320, 280))
    values = {"seed": 7, "steps": 20, "cfg": 5.0, "sampler": "euler", "scheduler": "normal", "denoise": 0.25}
    sampler = sheet.node("CNCore_Sample", (1440, 0, 320, 300), values, color=PAINT)
    values = {"tile_size": SIZE, "overlap": SIZE // 4}
    decode = sheet.node("VAEDecodeTiled", (1800, 0, 220, 160), values, color=PAINT)
    save = sheet.node("SaveImage", (2060, 0, 320, 340), {"filename_prefix": "tile_upscale"}, color=SHOW)
    sheet.link(start.model, "model", sampler, "model")
    sheet.link(control, "positive", sampler, "positive")
    sheet.link(control, "negative", sampler, "negative")
    sheet.link(latent, "LATENT", sampler, "latent")
    sheet.link(sampler, "latent", decode, "samples")
    sheet.link(start.model, "vae", decode, "vae")
    sheet.link(decode, decode.spec.output_names[0], save, "images")


def control_study(sheet: Sheet) -> None:
    """What was planned, what ran, how well the picture obeys, and which blocks it owes that to."""
    about = (
        "## A study of one picture\n\nControl Plan shows before the run which net acts at which step. Control Report "
        "samples and shows what each block added. Control Fidelity measures how well the picture keeps to the hint. "
        "Block Sensitivity measures which blocks it depends on, and proposes weights.\n\nKeep steps, sampler and "
        "scheduler of Control Plan equal to those of Control Report."
    )
    start = base(sheet, "control_study", about, "a photo of a green cone, a brown cylinder and a red ball")
    sheet.group("2  One hint", (400, -80, 640, 720))
    edges = example(sheet, "demo scene 7", "canny", (420, 0), "Edges")
    preview(sheet, edges, "image", (760, 0), "The edges")
    loaded = net(sheet, "canny", (420, 180))
    latent = empty(sheet, (420, 300))
    sheet.group("3  Control, and its plan", (1060, -80, 980, 740))
    control = apply(sheet, start, loaded, (edges, "image"), (1080, 0, 320, 280), end_percent=0.8)
    plan = sheet.node("CNCore_ControlPlan", (1440, 0, 580, 640), {"steps": 20}, color=SHOW)
    sheet.group("4  The run, and what ran", (2060, -80, 980, 740))
    values = {"seed": 7, "steps": 20, "cfg": 5.0}
    run = sheet.node("CNCore_ControlReport", (2080, 0, 580, 640), values, color=PAINT)
    for node in (plan, run):
        sheet.link(start.model, "model", node, "model")
        sheet.link(control, "positive", node, "positive")
        sheet.link(latent, "LATENT", node, "latent")
    sheet.link(control, "negative", run, "negative")
    decode = sheet.node("VAEDecode", (2700, 0, 320, 60), color=PAINT)
    save = sheet.node("SaveImage", (2700, 110, 320, 340), {"filename_prefix": "control_study"}, color=SHOW)
    sheet.link(run, "latent", decode, "samples")
    sheet.link(start.model, "vae", decode, "vae")
    sheet.link(decode, decode.spec.output_names[0], save, "images")
    sheet.group("5  Does it obey, and thanks to which blocks?", (1060, 680, 1980, 780))
    fidelity = sheet.node("CNCore_ControlFidelity", (1080, 760, 940, 680), {"kind": "canny"}, color=SHOW)
    sheet.link(decode, decode.spec.output_names[0], fidelity, "picture")
    sheet.link(edges, "image", fidelity, "hint")
    blocks = sheet.node("CNCore_BlockSensitivity", (2080, 760, 940, 680), {"steps": 20, "samples": 3}, color=SHOW)
    sheet.link(start.model, "model", blocks, "model")
    sheet.link(control, "positive", blocks, "positive")
    sheet.link(run, "latent", blocks, "latent")


DRAWINGS: Mapping[str, Callable[[Sheet], None]] = {
    function.__name__: function
    for function in (
        canny_to_image,
        scribble_to_image,
        depth_and_pose,
        union,
        strength_and_window,
        img2img_with_control,
        canny_photo,
        pose_from_json,
        depth_from_zpass,
        contact_sheet,
        masks_for_two_nets,
        strength_schedules,
        block_weights,
        inpaint_with_control,
        tile_upscale,
        control_study,
    )
}


def main() -> None:
    """Write all drawings."""
    classes = build_nodes(StandaloneHost(device="cpu"))
    for name, draw in DRAWINGS.items():
        sheet = Sheet(classes)
        draw(sheet)
        text = json.dumps(sheet.json(), indent=1, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"workflows/{name}.json: {len(sheet.nodes)} nodes")


if __name__ == "__main__":
    main()
