"""Bundled workflows with texts for regions, a reference and an edited prompt; see `draw_workflows.py`."""

from __future__ import annotations

from editor_sheet import Sheet
from workflow_parts import HINT, apply, base, empty, example, net, paint, preview

REGIONS = (
    "pole: a blue cylinder on pink ground\nball: a yellow ball on pink ground\ntower: a purple cone on pink ground"
)


def region_prompts(sheet: Sheet) -> None:
    """Draw: a text for each class of a label map, beside a net that keeps the layout."""
    about = (
        "## A text for each region\n\n"
        "Region Prompts gives each part of a label map a text of its own: its line begins with the name of the class. "
        "Elsewhere the prompt acts. The edges keep the layout.\n\n"
        "Change a colour in the lines and press Run. To use masks, link them to `masks` and write a line for each; to "
        "use a box, write `name [left, top, width, height]: text` in fractions of the picture.\n\n"
        "The lower picture has the same prompt without regions: nothing says which object has which colour."
    )
    prompt = "a blue cylinder, a yellow ball and a purple cone on pink ground with a pale sky"
    start = base(sheet, "region_prompts", about, prompt)
    sheet.group("2  Layout and regions", (400, -80, 640, 720))
    edges = example(sheet, "demo scene 7", "canny", (420, 0), "Edges")
    labels = example(sheet, "demo scene 7", "segmentation", (420, 300), "Label map")
    preview(sheet, edges, "image", (760, 0), "The edges")
    preview(sheet, labels, "image", (760, 300), "The label map")
    loaded, latent = net(sheet, "canny", (420, 170)), empty(sheet, (420, 470))
    sheet.group("3.1  With regions", (1060, -80, 2100, 560))
    control = apply(sheet, start, loaded, (edges, "image"), (1080, 0, 320, 240))
    regions = sheet.node("CNCore_RegionPrompts", (1440, 0, 400, 380), {"regions": REGIONS}, color=HINT)
    sheet.link(control, "positive", regions, "positive")
    sheet.link(control, "negative", regions, "negative")
    sheet.link(start.model, "clip", regions, "clip")
    sheet.link(labels, "image", regions, "label_map")
    paint(sheet, start, regions, (latent, "LATENT"), "region_prompts/regions", (1880, 0))
    sheet.group("3.2  One prompt alone", (1060, 500, 2100, 460))
    paint(sheet, start, control, (latent, "LATENT"), "region_prompts/prompt", (1880, 580))


def reference_look(sheet: Sheet) -> None:
    """Draw: the look of one picture on the layout of another."""
    about = (
        "## The look of a picture\n\n"
        "Reference Control takes sky, ground and colours over from the reference, without a model file for it. The "
        "prompt names no colours, and the edges come from another picture.\n\n"
        "style_fidelity 1 follows the reference most, 0 least. mode adain moves the colours and the mood only. Each "
        "step takes twice as long, since the UNet runs on the reference too."
    )
    start = base(sheet, "reference_look", about, "a photo of a cone and a box on ground")
    sheet.group("2  Layout and look", (400, -80, 640, 720))
    edges = example(sheet, "demo scene 6", "canny", (420, 0), "Edges")
    look = example(sheet, "demo scene 1", "picture", (420, 300), "Reference")
    preview(sheet, edges, "image", (760, 0), "The edges")
    preview(sheet, look, "image", (760, 300), "The reference")
    loaded, latent = net(sheet, "canny", (420, 170)), empty(sheet, (420, 470))
    sheet.group("3  The picture", (1060, -80, 2060, 560))
    control = apply(sheet, start, loaded, (edges, "image"), (1080, 0, 320, 240))
    values = {"mode": "attention+adain", "style_fidelity": 1.0}
    reference = sheet.node("CNCore_ReferenceControl", (1440, 0, 360, 300), values, color=HINT)
    sheet.link(control, "positive", reference, "positive")
    sheet.link(control, "negative", reference, "negative")
    sheet.link(start.model, "vae", reference, "vae")
    sheet.link(look, "image", reference, "image")
    paint(sheet, start, reference, (latent, "LATENT"), "reference_look", (1840, 0))


def prompt_edit(sheet: Sheet) -> None:
    """Draw: the same picture with one word swapped, beside the unedited one."""
    about = (
        "## One word, the same picture\n\n"
        "Prompt Edit swaps words of the prompt and keeps the rest: both pictures have the same seed, and the edges "
        "keep the layout. Write the prompt once more in the node, word for word.\n\n"
        "Each line of `edits` is one edit: `red -> green` swaps, `box: 2` weighs a word, `a red -> a shiny red` adds "
        "one.\n\n"
        "A later start_percent keeps more of the picture and changes less."
    )
    prompt = "a photo of a red box on a pink floor with a dark sky"
    start = base(sheet, "prompt_edit", about, prompt)
    sheet.group("2  Layout", (400, -80, 640, 720))
    edges = example(sheet, "demo scene 9", "canny", (420, 0), "Edges")
    preview(sheet, edges, "image", (760, 0), "The edges")
    loaded, latent = net(sheet, "canny", (420, 170)), empty(sheet, (420, 300))
    sheet.group("3.1  Without the edit", (1060, -80, 2100, 560))
    control = apply(sheet, start, loaded, (edges, "image"), (1080, 0, 320, 240))
    paint(sheet, start, control, (latent, "LATENT"), "prompt_edit/unedited", (1880, 0))
    sheet.group("3.2  With it", (1060, 500, 2100, 560))
    values = {"prompt": prompt, "edits": "red -> blue"}
    edit = sheet.node("CNCore_PromptEdit", (1440, 580, 400, 420), values, color=HINT)
    sheet.link(control, "positive", edit, "positive")
    sheet.link(control, "negative", edit, "negative")
    sheet.link(start.model, "clip", edit, "clip")
    paint(sheet, start, edit, (latent, "LATENT"), "prompt_edit/edited", (1880, 580))
