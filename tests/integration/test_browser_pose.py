"""The Pose Editor in ComfyUI's page, with the classic canvas and with Vue nodes: mouse, fingers, keyboard, links.

What a pose drawn here looks like is decided by Python: each test compares with `controlnet run` or the saved text.
Needs what `test_browser.py` needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.test_browser import VUE, Editor, editor, get, pixels, pytestmark, server, wait

__all__ = ["editor", "pytestmark", "server"]  # fixtures and marks of that file, used here by their names

NODE = "app.graph.nodes.find(node => node.type === 'CNCore_PoseEditor')"
ADD = """() => {
    app.graph.clear();
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        node.pos = [x, y];
        return node;
    };
    const pose = add('CNCore_PoseEditor', 520, 60);
    pose.connect(0, add('SaveImage', 1120, 60), 0);
    app.canvas.ds.scale = 0.9;
    app.canvas.ds.offset = [0, 0];
    app.canvas.setDirty(true, true);
}"""
ADD_LINKS = """() => {
    const add = (type, y, values) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        node.pos = [100, y];
        for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value;
        return node;
    };
    add('CNCore_ExampleImage', 80, {picture: 'coffee', size: 320}).connect(0, NODE, 0);
    add('CNCore_PoseRender', 320, {template: 'walking', width: 320, height: 320}).connect(1, NODE, 1);
}""".replace("NODE", NODE)
UNLINK = f"() => {{ const node = {NODE}; node.disconnectInput(0); node.disconnectInput(1); }}"
PLACE = f"""([part, point]) => {{
    const editor = {NODE}.poseEditor, box = editor.canvas.getBoundingClientRect();
    const [x, y] = editor.view.toScreen(editor.model.frame.people.at(-1)[part][point]);
    const scale = box.width / editor.canvas.offsetWidth;
    return [box.x + x * scale, box.y + y * scale];
}}"""
TEXT = f"() => {NODE}.widgets.find(widget => widget.name === 'pose').value"
SAVED = f"() => {NODE}.serialize()"
STATUS = "() => document.querySelector('.cncore-pose-status').textContent"
INK = """() => {
    const canvas = document.querySelector('.cncore-pose-canvas');
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return data.reduce((sum, value, index) => index % 4 < 3 ? sum + value : sum, 0);  // without opacity
}"""
NODE_PLACE = f"() => [...{NODE}.pos]"
RESTORE = "async text => { await app.loadGraphData(JSON.parse(text)); }"
RIGHT_WRIST, NOSE = 4, 0


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def page(request: pytest.FixtureRequest, editor: Editor) -> Iterator[Any]:
    """The page with a new Pose Editor and a Save Image behind it."""
    if request.param not in editor.modes():
        pytest.skip("this frontend has Vue nodes as an experiment only")
    editor.page.keyboard.press("Escape")  # the templates, which a first visit opens
    editor.set(VUE, request.param)
    editor.page.evaluate(ADD)
    editor.page.locator(".cncore-pose-canvas").wait_for()
    editor.page.wait_for_timeout(500)
    yield editor.page
    editor.set(VUE, False)


def text_of(page: Any) -> dict[str, Any]:
    return json.loads(page.evaluate(TEXT))


def joint(page: Any, index: int, part: str = "pose_keypoints_2d", person: int = -1) -> list[float]:
    return text_of(page)["people"][person][part][3 * index : 3 * index + 3]


def drag(page: Any, point: tuple[str, int], dx: float, dy: float) -> None:
    """Drag a point of the last person by the mouse."""
    x, y = page.evaluate(PLACE, list(point))
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up()


def press(page: Any, name: str) -> None:
    page.locator(f"[data-action={name}]").click()


def run(editor: Editor) -> np.ndarray:
    """Press Run; the picture that Save Image wrote."""
    entry = editor.press_run()
    (file,) = (image for output in entry["outputs"].values() for image in output.get("images", ()))
    return pixels(get(f"{editor.server}/view?{urllib.parse.urlencode(file)}"))


def run_without_comfyui(workflow: bytes, folder: Path) -> np.ndarray:
    """What `controlnet run` saves for a workflow file."""
    (folder / "pose.json").write_bytes(workflow)
    command = [
        sys.executable,
        "-m",
        "comfyui_controlnet_core",
        "run",
        "pose.json",
        "--output",
        "out",
        "--device",
        "cpu",
    ]
    subprocess.run(command, cwd=folder, check=True, timeout=300, capture_output=True)
    (file,) = (folder / "out").rglob("*.png")
    return pixels(file.read_bytes())


def save(page: Any) -> bytes:
    """The workflow file that the editor saves."""
    return json.dumps(page.evaluate("() => app.graph.serialize()")).encode()


def test_a_dragged_pose_is_saved_reloaded_and_is_the_picture_of_a_run_without_comfyui(
    page: Any, editor: Editor, tmp_path: Path
) -> None:
    assert page.evaluate(TEXT) == ""
    before = run(editor)
    drag(page, ("body", RIGHT_WRIST), -40, -60)
    for part in ("right_hand", "left_hand", "face"):
        press(page, part)
    press(page, "add")
    page.locator("[data-template=running]").click()
    text = page.evaluate(TEXT)
    assert len(json.loads(text)["people"]) == 2
    first = run(editor)
    assert first.shape == (512, 512, 3) and (first != before).any()
    file = save(page)
    assert np.array_equal(run_without_comfyui(file, tmp_path), first)

    editor.forget()
    editor.open()
    page.evaluate(RESTORE, file.decode())
    wait(lambda: page.evaluate(f"() => Boolean({NODE})"), "the workflow")
    assert page.evaluate(TEXT) == text
    wait(lambda: page.locator(".cncore-pose-canvas").count(), "the editor")
    assert np.array_equal(run(editor), first)


def test_keys_are_the_editors_and_undo_goes_back_to_nothing_edited(page: Any) -> None:
    where = page.evaluate(NODE_PLACE)
    drag(page, ("body", RIGHT_WRIST), -30, -40)
    x, y, _ = joint(page, RIGHT_WRIST)
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowUp")
    assert joint(page, RIGHT_WRIST)[:2] == pytest.approx([x + 10, y - 1], abs=0.11)
    page.keyboard.press("h")
    assert joint(page, RIGHT_WRIST)[2] == 0
    page.keyboard.press("Control+d")
    page.keyboard.press("m")
    assert len(text_of(page)["people"]) == 2
    last = page.evaluate(TEXT)
    page.keyboard.press("Delete")
    page.keyboard.press("Delete")  # nobody is selected: it must not delete the node
    assert len(text_of(page)["people"]) == 1
    page.keyboard.press("Control+z")
    assert page.evaluate(TEXT) == last
    for _ in range(6):
        page.keyboard.press("Control+z")
    assert page.evaluate(TEXT) == ""
    for _ in range(6):
        page.keyboard.press("Control+Shift+z")
    assert page.evaluate(TEXT) == last
    assert page.evaluate(NODE_PLACE) == where  # dragged joints, not nodes


def test_a_finger_drags_and_two_zoom(page: Any) -> None:
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        given = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": given})

    where = page.evaluate(NODE_PLACE)
    x, y = page.evaluate(PLACE, ["body", RIGHT_WRIST])
    touch("touchStart", (x + 12, y))  # a finger is wide
    touch("touchMove", (x - 10, y - 30))
    touch("touchMove", (x - 28, y - 50))
    touch("touchEnd")
    wait(lambda: page.evaluate(TEXT), "an edit")
    moved = page.evaluate(PLACE, ["body", RIGHT_WRIST])
    assert moved == pytest.approx([x - 40, y - 50], abs=1)
    text, scale = page.evaluate(TEXT), page.evaluate(f"() => {NODE}.poseEditor.view.scale")
    touch("touchStart", (x, y))
    touch("touchStart", (x, y), (x + 100, y))
    touch("touchMove", (x - 20, y), (x + 130, y))
    touch("touchEnd")
    assert page.evaluate(f"() => {NODE}.poseEditor.view.scale") == pytest.approx(1.5 * scale, rel=0.02)
    assert page.evaluate(TEXT) == text
    assert page.evaluate(NODE_PLACE) == where


def test_the_wheel_zooms_the_pose_once_the_editor_was_clicked_on(page: Any) -> None:
    scales = f"() => [{NODE}.poseEditor.view.scale, app.canvas.ds.scale]"
    x, y = page.evaluate(PLACE, ["body", NOSE])
    page.mouse.click(x, y)
    pose, graph = page.evaluate(scales)
    page.mouse.wheel(0, -240)
    wait(lambda: page.evaluate(scales)[0] > 1.2 * pose, "a larger pose")
    assert page.evaluate(scales)[1] == graph
    page.keyboard.press("0")
    assert page.evaluate(scales)[0] == pytest.approx(pose)


def test_a_frame_resizes_and_turns_a_person(page: Any) -> None:
    press(page, "add")
    page.locator("[data-template=standing]").click()
    corner = f"""name => {{
        const editor = {NODE}.poseEditor, box = editor.canvas.getBoundingClientRect();
        const [x, y] = editor.handlePlace(name), scale = box.width / editor.canvas.offsetWidth;
        return [box.x + x * scale, box.y + y * scale];
    }}"""

    def span() -> tuple[float, float]:
        body = np.reshape(text_of(page)["people"][-1]["pose_keypoints_2d"], (18, 3))
        low, high = body[:, :2].min(axis=0), body[:, :2].max(axis=0)
        return tuple(high - low)

    def pull(name: str, dx: float, dy: float) -> None:
        x, y = page.evaluate(corner, name)
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + dx, y + dy, steps=3)
        page.mouse.up()

    width, height = span()
    pull("se", -60, -70)
    smaller = span()
    assert smaller[0] / width == pytest.approx(smaller[1] / height, abs=0.02)
    assert smaller[0] < 0.9 * width
    x, y = page.evaluate(corner, "turn")
    middle = page.evaluate(corner, "middle")
    pull("turn", middle[0] - x + (middle[1] - y), middle[1] - y)  # to the right of the middle: a quarter
    turned = span()
    assert turned == pytest.approx((smaller[1], smaller[0]), rel=0.05)


def test_links_bring_an_image_and_a_pose(page: Any, editor: Editor) -> None:
    ink = page.evaluate(INK)
    page.evaluate(ADD_LINKS)
    wait(lambda: "Run once" in page.evaluate(STATUS), "the link")
    editor.press_run()
    wait(lambda: "From the link" in page.evaluate(STATUS), "the linked pose")
    wait(lambda: page.evaluate(INK) > 2 * ink, "the image behind the pose")
    assert page.evaluate(TEXT) == ""
    assert page.locator(".cncore-pose input[type=number]").first.input_value() == "320"
    behind = page.evaluate(INK)
    page.locator(".cncore-pose input[type=range]").first.fill("0.1")
    wait(lambda: page.evaluate(INK) < behind, "a darker image")
    assert page.evaluate(SAVED)["properties"]["pose_editor"]["opacity"] == 0.1
    linked = run(editor)
    drag(page, ("body", RIGHT_WRIST), -20, -30)
    assert "not used" in page.evaluate(STATUS)
    edited = run(editor)
    assert edited.shape == linked.shape == (320, 320, 3) and (edited != linked).any()
    # ComfyUI's undo and tabs make the nodes anew: what the run brought is still shown.
    page.evaluate("async () => { await app.loadGraphData(app.graph.serialize()); }")
    wait(lambda: page.evaluate(f"() => Boolean({NODE}.poseEditor.picture)"), "the image")
    assert page.evaluate(f"() => {NODE}.poseEditor.settings.opacity") == 0.1
    press(page, "reset")
    assert page.evaluate(TEXT) == ""
    assert np.array_equal(run(editor), linked)
    page.evaluate(UNLINK)
    wait(lambda: "Not edited" in page.evaluate(STATUS), "no link")


def test_json_is_shown_taken_and_refused(page: Any) -> None:
    field = page.locator(".cncore-pose-panel textarea")
    press(page, "json")
    shown = json.loads(field.input_value())
    assert (shown["canvas_width"], len(shown["people"])) == (512, 1)
    for bad, words in (("{", "valid JSON"), ('{"people": [{"pose_keypoints_2d": [1e9, 1, 1]}]}', "triples")):
        field.fill(bad)
        press(page, "json-use")
        assert words in page.locator(".cncore-pose-panel [role=alert]").text_content()
    assert page.evaluate(TEXT) == ""
    shown["canvas_width"] = 768
    field.fill(json.dumps(shown))
    press(page, "json-use")
    assert field.count() == 0
    assert text_of(page)["canvas_width"] == 768
    press(page, "undo")
    assert page.evaluate(TEXT) == ""


def test_people_are_copied_and_pasted_as_json(page: Any, editor: Editor) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=editor.server)
    x, y = page.evaluate(PLACE, ["body", NOSE])
    page.mouse.click(x, y)
    page.keyboard.press("Control+c")
    copied = json.loads(page.evaluate("() => navigator.clipboard.readText()"))
    assert len(copied["people"]) == 1
    page.keyboard.press("Control+v")
    assert len(text_of(page)["people"]) == 2
    assert page.evaluate("() => app.graph.nodes.length") == 2  # ComfyUI pasted no nodes


def test_korean_and_light(editor: Editor) -> None:
    editor.set("Comfy.Locale", "ko")
    editor.set("Comfy.ColorPalette", "light")
    try:
        editor.open()
        editor.page.wait_for_timeout(1000)
        editor.page.evaluate(ADD)
        editor.page.locator(".cncore-pose-canvas").wait_for()
        assert editor.page.locator("[data-action=undo]").get_attribute("title").startswith("실행 취소")
        colour = "() => getComputedStyle(document.querySelector('.cncore-pose')).backgroundColor.match(/[0-9.]+/g)"
        assert min(float(value) for value in editor.page.evaluate(colour)[:3]) > 128
    finally:
        editor.set("Comfy.Locale", "en")
        editor.set("Comfy.ColorPalette", "dark")
        editor.open()


def test_the_page_has_no_complaint_about_us(editor: Editor) -> None:
    assert editor.errors == []
