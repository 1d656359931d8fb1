"""Bundled workflows that show where hints come from; see `draw_workflows.py`."""

from __future__ import annotations

import json

import numpy as np
from comfyui_controlnet_core.controlnet_core.training.demo_world import render_seed
from comfyui_controlnet_core.nodes.example_pictures import SCENES
from comfyui_controlnet_core.preprocessors.catalog import ENTRIES
from comfyui_controlnet_core.preprocessors.pose import Person, Pose, write_poses
from editor_sheet import Sheet
from workflow_parts import (
    BALLS,
    HINT,
    SHOW,
    SIZE,
    apply,
    base,
    empty,
    example,
    net,
    outlines,
    paint,
    preprocess,
    preview,
)


def canny_to_image(sheet: Sheet) -> None:
    """Draw: the edges of a photograph, and a new picture along them."""
    about = (
        "## Canny to picture\n\n"
        "The edges of a photograph become the edges of a new picture. Only the lines come from the photograph; "
        "colours and objects come from the prompt.\n\n"
        "Try another photograph, another prompt, a strength of 0, or another seed."
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


def canny_photo(sheet: Sheet) -> None:
    """Draw: a photograph, its edges, and the same seed without and with control."""
    about = (
        "## A real photograph, without and with control\n\n"
        "The same prompt and seed twice: the upper picture without control, the lower one with the edges of the "
        "photograph.\n\n"
        "The photograph is free of rights; its notice is in `controlnet_core/assets/NOTICE.md`. To use your own "
        "photograph, put it into the input folder and link Load Image to Preprocess."
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


def scribble_to_image(sheet: Sheet) -> None:
    """Draw: rough strokes, and a picture from them."""
    about = (
        "## Scribble to picture\n\n"
        "Rough strokes are enough. To use your own drawing (dark strokes on white paper), put it into the input "
        "folder and add Load Image. Link it to Preprocess with kind scribble_drawing, and link that to Apply "
        "ControlNet in place of the example."
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


def pose_json() -> str:
    """Return the keypoints of a demo scene as OpenPose JSON, as other tools write it."""
    (seed,) = (seed for name, seed in SCENES.items() if name == "demo scene 10")
    people = tuple(Person(np.round(body, 1)) for body in render_seed(seed, SIZE).keypoints)
    return json.dumps(write_poses([Pose(people, SIZE, SIZE)])[0])


def pose_from_json(sheet: Sheet) -> None:
    """Draw: keypoints as text, the skeleton, and a picture of a figure in this pose."""
    about = (
        "## Pose from JSON to picture\n\n"
        "Pose Render draws keypoints in OpenPose JSON, which other tools write, as a skeleton for a pose "
        "ControlNet. Paste your own JSON into its field. If the field is empty, it draws a template.\n\n"
        "The strokes are thicker than usual because the small demo net was trained with thick strokes. Set stroke "
        "to 1 for other nets."
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


BENT_ARM = {6: (62.5, 53.0), 7: (64.0, 43.0)}
"""Elbow and wrist of the left arm, as somebody drags them, in pixels of the demo scene."""
FEET, PLACE, LARGER = (45.0, 100.0), (54.0, 110.0), 1.25
"""Where the figure stands in the demo scene and where it is put, and how much larger it is made."""


def edited_pose() -> str:
    """Return the pose of `pose_json` with the other arm bent, larger and elsewhere, as the editor saves it."""
    frame = json.loads(pose_json())
    body = np.reshape(frame["people"][0]["pose_keypoints_2d"], (18, 3))
    for joint, place in BENT_ARM.items():
        body[joint, :2] = place
    body[:, :2] = (body[:, :2] - FEET) * LARGER + PLACE
    frame["people"][0]["pose_keypoints_2d"] = [float(f"{value:.1f}") for value in body.ravel()]
    return json.dumps(frame, separators=(",", ":"))


def pose_editor(sheet: Sheet) -> None:
    """Draw: a pose to drag in the browser, and a picture of a figure in this pose."""
    about = (
        "## Draw a pose, get the picture\n\n"
        "Drag the joints in the Pose Editor and press Run. Its buttons add people in several poses, copy, mirror and "
        "delete them, add hands and faces and hide joints; the help of the node (?) lists mouse and keys.\n\n"
        "The pose is saved in this workflow. To draw over a photograph, link Load Image to the editor's image. To "
        "correct a pose that was found in a photograph, link its keypoints.\n\n"
        "The strokes are thicker than usual because the small demo net was trained with thick strokes. Set stroke "
        "to 1 for other nets."
    )
    start = base(sheet, "pose_editor", about, "a photo of a magenta figure waving")
    sheet.group("2  The pose", (400, -80, 600, 960))
    values = {"pose": edited_pose(), "stroke": 1.75}
    pose = sheet.node("CNCore_PoseEditor", (420, 0, 560, 760), values, color=HINT)
    sheet.group("3  The picture", (1020, -80, 1680, 700))
    loaded = net(sheet, "openpose", (1040, 0))
    latent = empty(sheet, (1040, 120))
    preview(sheet, pose, "hint", (1040, 290), "The skeleton")
    control = apply(sheet, start, loaded, (pose, "hint"), (1380, 0, 320, 240))
    paint(sheet, start, control, (latent, "LATENT"), "pose_editor", (1740, 0))


def depth_from_zpass(sheet: Sheet) -> None:
    """Draw: the distances of a renderer, the depth hint, and a picture with the same layout."""
    about = (
        "## Depth from a Z-pass\n\n"
        "A renderer knows the distance of every pixel. Depth Convert turns the distances into a hint: near is "
        "white, far is black. The sky, which renderers write as a huge distance, is black too. With space set to "
        "disparity the hint is 1 / distance, which depth nets were trained on.\n\n"
        "To use your own Z-pass, link Load Image (16 bits) or a loader for EXR to Depth Convert. If near is already "
        "bright in it, set invert."
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
    """Draw: one photograph through every preprocessor that needs no files."""
    sheet.note(
        "## All preprocessors without files\n\n"
        "One photograph and the hint that each preprocessor makes from it. Preprocessors that read a map get one "
        "that is made from the photograph, in place of a real one: a blurred copy as depth, its slopes as normals, "
        "a copy with a shifted half as stereo pair, its bright parts as mask.\n\n"
        "The hints are for ControlNets in `models/controlnet`, together with the checkpoint that they were made for "
        "in `models/checkpoints`. The titles say which kind of net reads each hint. Preprocessors that need a "
        "network are not shown; their files go into `models/annotators`.\n\n"
        "Without ComfyUI: `controlnet run contact_sheet`, or `controlnet preprocess canny FOLDER` for many pictures.",
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
