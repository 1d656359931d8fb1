"""Parts that several of the bundled workflows share; see `draw_workflows.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from editor_sheet import Box, Placed, Sheet

SIZE = 128
LOAD, TEXT, HINT = ("#322", "#533"), ("#232", "#353"), ("#223", "#335")
PAINT, SHOW = ("#323", "#535"), ("#233", "#355")
BALLS = "a photo of a red ball and a blue ball on yellow ground"
OWN_MODEL = (
    "### Your own model\n\n"
    "The demo model is small: it knows only coloured solids and a mannequin, at {size} x {size} pixels. To use your "
    "own model:\n\n"
    "1. put a Stable Diffusion 1.5 checkpoint into `models/checkpoints` and ControlNets made for it into "
    "`models/controlnet`,\n"
    "2. choose them in the loaders (the red nodes),\n"
    "3. set the picture sizes to 512.\n\n"
    "Without ComfyUI: `controlnet run {name} --models DIR`."
)


@dataclass(frozen=True)
class Base:
    """The nodes that every workflow starts with."""

    model: Placed
    prompt: Placed


def base(sheet: Sheet, name: str, about: str, prompt: str, negative: str = "") -> Base:
    """Draw the left column: notes, checkpoint and prompt."""
    sheet.note(about, (-420, -60, 380, 260))
    sheet.note(OWN_MODEL.format(name=name, size=SIZE), (-420, 250, 380, 330))
    sheet.group("1  Model and prompt", (-20, -80, 400, 480))
    model = sheet.node("CNCore_LoadCheckpoint", (0, 0, 360, 120), {"checkpoint": "demo (built in)"}, color=LOAD)
    values = {"prompt": prompt, "negative_prompt": negative}
    text = sheet.node("CNCore_EncodePrompt", (0, 160, 360, 220), values, color=TEXT)
    sheet.link(model, "clip", text, "clip")
    return Base(model, text)


def net(sheet: Sheet, kind: str, at: tuple[int, int]) -> Placed:
    """Draw a loader with a built-in ControlNet."""
    return sheet.node("CNCore_LoadControlNet", (*at, 320, 70), {"control_net": f"demo {kind} (built in)"}, color=LOAD)


def example(sheet: Sheet, picture: str, view: str, at: tuple[int, int], title: str = "") -> Placed:
    """Draw an example picture, or one of its exact hints."""
    values = {"picture": picture, "view": view, "size": SIZE}
    return sheet.node("CNCore_ExampleImage", (*at, 320, 130), values, title=title, color=HINT)


def empty(sheet: Sheet, at: tuple[int, int]) -> Placed:
    """Draw an empty latent."""
    return sheet.node("EmptyLatentImage", (*at, 320, 110), {"width": SIZE, "height": SIZE}, color=PAINT)


def preview(sheet: Sheet, source: Placed, output: str, at: tuple[int, int], title: str) -> None:
    """Draw a preview of a picture."""
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
    """Draw one row: sample, decode, save. `control` has the outputs positive and negative."""
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
    """Draw Apply ControlNet on the prompt."""
    node = sheet.node("CNCore_ApplyControlNet", box, values, title=title, color=HINT)
    sheet.link(start.prompt, "positive", node, "positive")
    sheet.link(start.prompt, "negative", node, "negative")
    sheet.link(loaded, loaded.spec.output_names[0], node, "control_net")
    sheet.link(*hint, node, "image")
    return node


def preprocess(sheet: Sheet, source: Placed, kind: str, settings: str, at: tuple[int, int]) -> Placed:
    """Draw a preprocessor on a picture."""
    output = "image" if "image" in source.spec.output_names else "hint"
    node = sheet.node("CNCore_Preprocess", (*at, 320, 210), {"kind": kind, "settings": settings}, color=HINT)
    sheet.link(source, output, node, "image")
    return node


def outlines(sheet: Sheet) -> tuple[Placed, Placed]:
    """Draw a photograph of coins and the edges of their outlines; the blur removes the engravings."""
    photo = example(sheet, "coins", "picture", (420, 0), "Photograph")
    smooth = preprocess(sheet, photo, "blur", "sigma=2", (420, 160))
    edges = sheet.node(
        "CNCore_Preprocess", (420, 410, 320, 210), {"kind": "canny", "settings": "low=60, high=140"}, color=HINT
    )
    sheet.link(smooth, "hint", edges, "image")
    return photo, edges


def right_side(sheet: Sheet, at: tuple[int, int], kept: int) -> Placed:
    """Draw a mask that is white from column `kept` on, with a soft edge.

    It is the mask that outpainting gives for a black picture.
    """
    x, y = at
    black = sheet.node("EmptyImage", (x, y, 320, 130), {"width": kept, "height": SIZE}, title="Left side", color=HINT)
    values = {"right": SIZE - kept, "feathering": 16}
    mask = sheet.node("ImagePadForOutpaint", (x, y + 170, 320, 180), values, title="Mask of the right side", color=HINT)
    sheet.link(black, black.spec.output_names[0], mask, "image")
    return mask
