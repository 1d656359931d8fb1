"""The bundled workflow that finds a strength; see `draw_workflows.py`."""

from __future__ import annotations

from editor_sheet import Sheet
from workflow_parts import HINT, PAINT, SHOW, apply, base, empty, example, net, paint, preview


def auto_strength(sheet: Sheet) -> None:
    """Draw: the strength that a target asks for, beside strength 1."""
    about = (
        "## The strength for a target\n\n"
        "Auto Strength finds the smallest strength at which the picture follows its edges as well as `target` asks, "
        "and samples with it. The plot shows all runs of the search.\n\n"
        "Raise the target for more control, lower it for more freedom. `kind` says what the hint shows, since that is "
        "what is compared. The lower picture has the strength of Apply ControlNet."
    )
    start = base(sheet, "auto_strength", about, "a photo of an orange cube and a purple cone on ground")
    sheet.group("2  Hint", (400, -80, 640, 720))
    edges = example(sheet, "demo scene 6", "canny", (420, 0), "Edges")
    preview(sheet, edges, "image", (760, 0), "The edges")
    loaded, latent = net(sheet, "canny", (420, 180)), empty(sheet, (420, 300))
    sheet.group("3.1  The strength that is found", (1060, -80, 1740, 860))
    control = apply(sheet, start, loaded, (edges, "image"), (1080, 0, 320, 280))
    values = {
        "seed": 7, "steps": 20, "cfg": 5.0, "sampler": "euler", "scheduler": "normal", "kind": "canny", "target": 0.7,
    }  # fmt: skip
    search = sheet.node("CNCore_AutoStrength", (1440, 0, 600, 760), values, color=HINT)
    sheet.link(start.model, "model", search, "model")
    for half in ("positive", "negative"):
        sheet.link(control, half, search, half)
    sheet.link(latent, "LATENT", search, "latent")
    sheet.link(start.model, "vae", search, "vae")
    sheet.link(edges, "image", search, "hint")
    decode = sheet.node("VAEDecode", (2080, 0, 320, 60), color=PAINT)
    sheet.link(search, "latent", decode, "samples")
    sheet.link(start.model, "vae", decode, "vae")
    save = sheet.node("SaveImage", (2440, 0, 340, 340), {"filename_prefix": "auto_strength/found"}, color=SHOW)
    sheet.link(decode, decode.spec.output_names[0], save, "images")
    sheet.group("3.2  Strength 1", (1060, 820, 1740, 460))
    paint(sheet, start, control, (latent, "LATENT"), "auto_strength/one", (1440, 900))
