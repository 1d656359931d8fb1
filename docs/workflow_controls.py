"""Bundled workflows that show what control can do; see `draw_workflows.py`."""

from __future__ import annotations

from editor_sheet import Sheet
from workflow_parts import (
    HINT,
    PAINT,
    SHOW,
    SIZE,
    apply,
    base,
    empty,
    example,
    net,
    paint,
    preprocess,
    preview,
    right_side,
)


def depth_and_pose(sheet: Sheet) -> None:
    """Draw: two nets as a stack."""
    about = (
        "## Depth and pose together\n\n"
        "Two nets with two hints make one picture. The depth map says where things are; the skeleton gives the pose "
        "of the figure. Control Units form a chain: to add a third one, link its stack between the second unit and "
        "Apply Control Stack.\n\n"
        "Set one strength to 0 to see the effect of the other net."
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
    """Draw: one net for several kinds of hints, two at once and one alone."""
    about = (
        "## One net for several hints\n\n"
        "A ControlNet Union reads several kinds of hints, and must know the kind of each. In the upper row it reads "
        "two hints at once: a depth map, whose kind comes from Control Options, and a skeleton from More Hints. In "
        "the lower row the same net reads only edges; there ComfyUI's own Set Union ControlNet Type gives the "
        "kind.\n\n"
        "The demo Union knows openpose, depth, scribble, canny and segment. It does not know normals."
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
    """Draw: the same seed and hint with several strengths and windows."""
    about = (
        "## Strength and window\n\n"
        "Five pictures from one seed and one hint. From top to bottom: no control, strength 0.5, strength 1, full "
        "strength only in the first half of the sampling, full strength only in the second half.\n\n"
        "The first half decides where things are, so control in the second half can only correct details."
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
    """Draw: a repainted picture that keeps its edges."""
    about = (
        "## Repaint a picture, keep its lines\n\n"
        "The sampler starts from the picture instead of pure noise (denoise below 1). The edges of the picture keep "
        "the shapes in place, and the prompt changes the colours.\n\n"
        "A higher denoise changes more. At 1 only the edges of the picture are used."
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


def masks_for_two_nets(sheet: Sheet) -> None:
    """Draw: two nets, each in its half of the picture."""
    about = (
        "## A mask for each net\n\n"
        "The left half follows the edges of one scene, the right half the depth of another. Each unit acts where "
        "its mask is white. The soft border blends the halves.\n\n"
        "Paint your own masks in ComfyUI (Mask Editor on Load Image). Masks of any size are stretched over the "
        "picture."
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
    """Draw: one hint with three strength schedules."""
    about = (
        "## Strength along the way\n\n"
        "Three pictures from one seed and one hint, with three strength schedules. A keyframe is `position: "
        "strength`; position 0 is pure noise, 1 is the finished picture. A high strength at the start fixes the "
        "layout and leaves the details to the model. A high strength only at the end is too late for the layout.\n\n"
        "Control Plan shows which strength acts at which step."
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
    """Draw: one hint with different block weights."""
    about = (
        "## Block weights\n\n"
        "Four pictures from one seed and one hint, with different weights for the blocks of the net. Blocks at the "
        "full resolution of the latent place the lines; blocks at low resolution decide the layout. The preset soft "
        "reduces the weights of the fine blocks.\n\n"
        "Block Sensitivity in the workflow control_study measures which blocks matter."
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
    """Draw: a part of a picture repainted along its edges."""
    about = (
        "## Inpaint with control\n\n"
        "Only the right three quarters of the picture are repainted, where the mask is white. The edges of the "
        "picture keep the shapes, so that the new part fits the old one.\n\n"
        "With a checkpoint for inpainting, or an inpaint ControlNet, use the preprocessor inpaint instead of edges."
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


def inpaint_only(sheet: Sheet) -> None:
    """Draw: a part of a picture repainted, all other pixels as they were."""
    about = (
        "## Repaint a part, keep every other pixel\n\n"
        "Inpaint Control makes the latent and the mask of what to sample (inpaint_only). Paste Back takes only the "
        "pixels inside the mask from the result: all others stay those of the picture, bit for bit.\n\n"
        "With an inpaint ControlNet, link it to `control_net`; the node makes its hint. The demo has none, so edges "
        "keep the shapes here. The mode inpaint_global_harmonious lets the whole picture change: sample with a denoise "
        "below 1, and leave Paste Back out."
    )
    start = base(sheet, "inpaint_only", about, "a photo of a green box on yellow ground")
    sheet.group("2  The picture and its edges", (400, -80, 640, 720))
    source = example(sheet, "demo scene 9", "picture", (420, 0), "Picture")
    edges = preprocess(sheet, source, "canny", "", (420, 180))
    preview(sheet, source, "image", (760, 0), "Before")
    preview(sheet, edges, "hint", (760, 300), "The edges")
    loaded = net(sheet, "canny", (420, 440))
    sheet.group("3  Where to paint", (1060, -80, 760, 580))
    mask = right_side(sheet, (1080, 0), SIZE // 4)
    control = apply(sheet, start, loaded, (edges, "hint"), (1440, 0, 340, 280))
    sheet.group("4  Paint and paste", (1840, -80, 1480, 480))
    inpaint = sheet.node("CNCore_InpaintControl", (1860, 0, 320, 300), color=HINT)
    for half in ("positive", "negative"):
        sheet.link(control, half, inpaint, half)
    sheet.link(start.model, "vae", inpaint, "vae")
    sheet.link(source, "image", inpaint, "image")
    sheet.link(mask, "MASK", inpaint, "mask")
    values = {"seed": 7, "steps": 20, "cfg": 5.0, "sampler": "euler", "scheduler": "normal"}
    sampler = sheet.node("CNCore_Sample", (2220, 0, 320, 300), values, color=PAINT)
    sheet.link(start.model, "model", sampler, "model")
    for name in ("positive", "negative", "latent"):
        sheet.link(inpaint, name, sampler, name)
    decode = sheet.node("VAEDecode", (2580, 0, 200, 60), color=PAINT)
    sheet.link(sampler, "latent", decode, "samples")
    sheet.link(start.model, "vae", decode, "vae")
    pasted = sheet.node("CNCore_PasteBack", (2580, 110, 320, 150), color=HINT)
    sheet.link(source, "image", pasted, "source")
    sheet.link(decode, decode.spec.output_names[0], pasted, "result")
    sheet.link(mask, "MASK", pasted, "mask")
    save = sheet.node("SaveImage", (2940, 0, 340, 340), {"filename_prefix": "inpaint_only/pasted"}, color=SHOW)
    sheet.link(pasted, "image", save, "images")


def tile_upscale(sheet: Sheet) -> None:
    """Draw: a picture at twice its size with new details, decoded in tiles."""
    about = (
        "## Upscale with control, decode in tiles\n\n"
        "The picture is enlarged. The sampler then adds new details (denoise 0.25), and the edges of the picture "
        "keep the shapes. VAE Decode (Tiled) decodes the picture in pieces, which needs little memory at any "
        "size.\n\n"
        "The demo model was trained at 128 pixels, so the result is not sharp. It has no tile ControlNet, so edges "
        "are used instead. With your own model, load a tile ControlNet and link the enlarged picture to Apply "
        "ControlNet as the hint."
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
    """Draw: the plan, the report, the fidelity and the block sensitivity of one picture."""
    about = (
        "## A study of one picture\n\n"
        "Control Plan shows before the run which net acts at which step. Control Report samples, and shows what "
        "each block added. Control Fidelity measures how well the picture follows the hint. Block Sensitivity "
        "measures which blocks matter, and proposes weights.\n\n"
        "Keep steps, sampler and scheduler of Control Plan equal to those of Control Report."
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
