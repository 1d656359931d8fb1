"""The pack in the editor itself: a headless Chromium on the host's own page, as a user would sit before it.

Needs COMFYUI_DIR as `test_comfyui.py` does, the package playwright, and a Chromium of the system's (CHROMIUM
names another one). SCREENSHOTS=docs/images/templates writes the pictures that the documentation shows.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_controlnet_core.nodes import PREFIX, own_nodes
from comfyui_controlnet_core.workflows.bundled import FOLDER, bundled_names
from PIL import Image

CHROMIUM = os.environ.get("CHROMIUM") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set: no host to run in"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: install one, or name it in CHROMIUM"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs the package playwright"),
]

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("comfyui_host.py")
PARTS = (
    "controlnet_core", "nodes", "preprocessors", "workflows", "web", "locales", "subgraphs", "__init__.py",
    "pyproject.toml",
)  # fmt: skip
PACK = "comfyui-controlnet-core"
TIMEOUT = float(os.environ.get("COMFYUI_TIMEOUT", "600"))
VIEW = {"width": 1600, "height": 800}
QUALITY = 72
LARGEST = 150_000
"""Bytes that a screenshot may have."""

QUIET = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "Comfy.Workflow.WorkflowTabsPosition": "Sidebar",
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,  # texts at any zoom, in older editors
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # and in newer ones
}
"""Settings that leave the canvas to the workflow."""
READY = "() => window.app?.vueAppReady && 'CNCore_Sample' in LiteGraph.registered_node_types"
TYPES = "() => app.graph.nodes.map(node => node.type)"
SHOWN = """() => {
    const nodes = app.graph.nodes.filter(n => ['SaveImage', 'PreviewImage'].includes(n.type) && n.mode === 0);
    const loaded = image => image.complete && image.naturalWidth > 0;
    return nodes.every(n => n.imgs?.length && [...n.imgs].every(loaded));
}"""
SHOWN_BY_VUE = """() => {
    const nodes = app.graph.nodes.filter(n => ['SaveImage', 'PreviewImage'].includes(n.type) && n.mode === 0);
    const shown = nodes.map(n => [...document.querySelectorAll(`[data-node-id="${n.id}"] img`)]);
    return shown.every(images => images.length && images.every(i => i.complete && i.naturalWidth > 0));
}"""
FIT = """() => {
    const boxes = [...app.graph.nodes, ...app.graph.groups].map(item => [...item.pos, ...item.size]);
    const left = Math.min(...boxes.map(b => b[0])), right = Math.max(...boxes.map(b => b[0] + b[2]));
    const top = Math.min(...boxes.map(b => b[1])), bottom = Math.max(...boxes.map(b => b[1] + b[3]));
    const view = app.canvas.ds, room = app.canvas.canvas.getBoundingClientRect();
    const bar = document.querySelector('.side-tool-bar-container')?.getBoundingClientRect().right ?? 0;
    const margin = 15, head = 30, foot = 65;  // for titles, and for the buttons that lie over the canvas
    const side = Math.max(0, bar - room.left) + margin;  // newer editors lay the side bar over the canvas too
    const [width, height] = [room.width - side - margin, room.height - head - foot];
    view.scale = Math.min(width / (right - left), height / (bottom - top), 1);
    view.offset[0] = (side + width / 2) / view.scale - (left + right) / 2;
    view.offset[1] = (head + height / 2) / view.scale - (top + bottom) / 2;
    app.canvas.setDirty(true, true);
}"""
OVERLAPS = """() => {
    const scale = app.canvas.ds.scale, title = LiteGraph.NODE_TITLE_HEIGHT;
    const box = node => {
        const [x, y] = node.pos, [width, height] = node.size;
        const shown = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
        const right = x + (shown ? shown.width / scale : width);
        const bottom = shown ? y - title + shown.height / scale : y + height;
        return {name: node.title, left: x, top: y - title, right, bottom};
    };
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    const boxes = app.graph.nodes.map(box);
    return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => meet(a, b)).map(b => `${a.name} and ${b.name}`));
}"""
"""Nodes that overlap, by their size on the screen. A Vue node is an element of the page, a classic one is drawn."""
VUE = "Comfy.VueNodes.Enabled"
VUE_NODES = "() => document.querySelectorAll('[data-node-id]').length"
FIRST_WITH_VUE = (1, 49)
"""The first release of the frontend that these tests drive with Vue nodes. Before it they are an experiment."""
ADD_APPLY = """() => {
    app.graph.clear();
    const node = LiteGraph.createNode('CNCore_ApplyControlNet');
    app.graph.add(node);
    node.pos = [300, 250];
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [0, 0];
    app.canvas.setDirty(true, true);
    const canvas = app.canvas.canvas.getBoundingClientRect();
    return {
        head: [canvas.x + node.pos[0] + 60, canvas.y + node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT / 2],
        title: node.title,
        sockets: Object.fromEntries(node.inputs.map(input => [input.name, input.localized_name])),
        widgets: Object.fromEntries(node.widgets.map(widget => [widget.name, widget.label])),
    };
}"""
ADD_FIDELITY = """() => {
    const find = type => app.graph.nodes.filter(node => node.type === type).at(-1);
    const node = LiteGraph.createNode('CNCore_ControlFidelity');
    app.graph.add(node);
    find('VAEDecode').connect(0, node, 0);
    find('CNCore_Preprocess').connect(0, node, 1);
    node.pos = [1080, 420];
}"""
LOAD_BLUEPRINT = "async text => { await app.loadGraphData(JSON.parse(text)); }"
PROMPT = "async () => Object.values((await app.graphToPrompt()).output).map(n => [n.class_type, n.inputs])"
WIDGETS = "() => app.graph.nodes.flatMap(node => (node.widgets ?? []).map(widget => widget.name))"
SAID = "() => app.graph.nodes.at(-1).widgets.find(widget => widget.name === 'said')?.value ?? ''"
SAVED = "() => app.graph.nodes.filter(n => n.type === 'SaveImage').flatMap(n => [...n.imgs].map(i => i.src))"


# ---- the host


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host's server on loopback with this pack and its own demo model; its address."""
    base = tmp_path_factory.mktemp("editor")
    pack = base / "custom_nodes" / PACK
    (base / "user").mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, pack / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            pack.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, pack / part)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    interpreter = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [interpreter, str(PROGRAM), "--serve", os.environ["COMFYUI_DIR"], str(pack), str(port)]
    log = base / "log.txt"
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        wait(lambda: process.poll() is not None or answers(f"{address}/object_info/CNCore_Sample"), "the server")
        assert process.poll() is None, log.read_text()[-4000:]
        yield address
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    """Whether a GET succeeds."""
    try:
        return bool(get(url))
    except OSError:
        return False


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as reply:
        return reply.read()


def wait(done: Callable[[], Any], what: str, page: Any = None) -> Any:
    """What `done` answers, once it is true.

    page: where `done` does not ask the page itself. Requests of the page pass through this process (`route`), and stand
    still while it sleeps.
    """
    end = time.monotonic() + TIMEOUT
    while not (found := done()):
        assert time.monotonic() < end, f"waited {TIMEOUT:g} s for {what}"
        if page is None:
            time.sleep(0.2)
        else:
            page.wait_for_timeout(200)
    return found


# ---- the editor


class Editor:
    """One browser page on the host's editor, driven by what a user can do there."""

    def __init__(self, browser: Any, server: str) -> None:
        self.server = server
        self.errors: list[str] = []
        """What the page complained about that has to do with this pack."""
        context = browser.new_context(viewport=VIEW)
        # nothing outside this machine is asked for anything
        context.route(lambda url: not url.startswith(server), lambda route: route.abort())
        context.route("**/templates/index*.json", own_templates)
        self.page = context.new_page()
        self.page.set_default_timeout(90_000)
        self.page.on("pageerror", lambda error: self.note(f"{error}\n{error.stack}"))
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.note(message.text))
        self.page.on("dialog", lambda dialog: dialog.accept())

    def note(self, complaint: str) -> None:
        """Keep a complaint about our files or nodes; the editor has some of its own."""
        if PACK in complaint or PREFIX in complaint:
            self.errors.append(complaint)

    def open(self) -> None:
        """Load the page, or load it anew."""
        self.page.goto(self.server)
        self.page.wait_for_function(READY)
        for setting, value in QUIET.items():
            self.set(setting, value)

    def set(self, setting: str, value: Any) -> None:
        """Change one of the editor's settings."""
        self.page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [setting, value])

    def modes(self) -> tuple[bool, ...]:
        """Values of the setting for Vue nodes that this frontend can be tested with."""
        version = self.page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
        return (False, True) if tuple(map(int, version.split(".")[:2])) >= FIRST_WITH_VUE else (False,)

    def choose_mode(self, vue: bool) -> None:
        """Draw nodes with Vue or on the canvas; skip where this frontend cannot."""
        if vue not in self.modes():
            pytest.skip("Vue nodes are an experiment in this frontend")
        self.set(VUE, vue)

    def command(self, name: str) -> None:
        """What a menu entry or key does."""
        self.page.evaluate("name => app.extensionManager.command.execute(name)", name)

    def browse(self) -> Any:
        """Open the template browser at this pack's templates; its dialog."""
        self.command("Comfy.BrowseTemplates")
        dialog = self.page.get_by_role("dialog")
        entries = [dialog.get_by_role(role, name=PACK, exact=True) for role in ("option", "button")]
        entries[0].or_(entries[1]).click()  # an option up to frontend 1.27, a button later
        return dialog

    def card(self, dialog: Any, name: str) -> Any:
        """The picture of a template.

        Up to frontend 1.27 the browser adds cards while one scrolls down. Later it adds the picture of a card that is
        in view.
        """
        picture = dialog.get_by_alt_text(name, exact=True)
        card = dialog.get_by_test_id(f"template-workflow-{name}")

        def scroll() -> None:
            if card.count():
                card.first.scroll_into_view_if_needed()
            else:
                self.scroll_down(dialog)

        from playwright.sync_api import TimeoutError as TooLong

        def bring_into_view() -> Any:
            try:
                picture.first.locator("xpath=..").scroll_into_view_if_needed(timeout=5_000)
            except TooLong:  # the browser took the card away again while it added others
                return None
            return picture.first

        return wait(lambda: bring_into_view() if picture.count() else scroll(), f"the card of {name}")

    def scroll_down(self, dialog: Any) -> None:
        """Turn the wheel over the cards."""
        box = dialog.bounding_box()
        self.page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.6 * box["height"])
        self.page.mouse.wheel(0, 3000)

    def load_template(self, name: str) -> None:
        """Choose a template in the template browser."""
        dialog = self.browse()
        self.card(dialog, name)
        dialog.get_by_text(name, exact=True).first.click()  # its title; the line below may say the same
        dialog.wait_for(state="hidden")
        wanted = [node["type"] for node in nodes_of(name)]
        wait(lambda: sorted(self.page.evaluate(TYPES)) == sorted(wanted), f"the nodes of {name}")
        self.show_all()

    def run(self) -> dict[str, Any]:
        """Press Run, wait until the pictures are on the nodes; the server's record of the run.

        The editor gives a picture up that does not load in 16 s, which happens on a machine that is at its
        limit while it samples; Run pressed again brings it, as it would for a user.
        """
        from playwright.sync_api import TimeoutError as TooLong

        entry = self.press_run()
        for last in (False, False, True):
            try:
                vue = self.page.evaluate(VUE_NODES) > 0
                self.page.wait_for_function(SHOWN_BY_VUE if vue else SHOWN, timeout=20_000)
                break
            except TooLong:
                assert not last, "the run is done, and its pictures are not on the nodes"
                self.press_run()
        return entry

    def press_run(self) -> dict[str, Any]:
        """Press Run and wait for the end; the server's record of the run."""
        before = set(self.history())
        self.page.get_by_test_id("queue-button").click()
        (name,) = wait(lambda: set(self.history()) - before, "the run", self.page)
        entry = self.history()[name]
        assert entry["status"]["status_str"] == "success", entry["status"]
        return entry

    def history(self) -> dict[str, Any]:
        """All runs of the server by id."""
        return json.loads(get(f"{self.server}/history"))

    def shown_results(self) -> list[np.ndarray]:
        """The pictures on the nodes that save, as the browser got them."""
        return [pixels(get(source)) for source in self.page.evaluate(SAVED)]

    def forget(self) -> None:
        """Let the server drop what it keeps of the last run, so that the next one runs all nodes."""
        body = json.dumps({"unload_models": True, "free_memory": True}).encode()
        request = urllib.request.Request(f"{self.server}/free", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=60).close()

    def show_all(self) -> None:
        """Bring the whole workflow into view; the editor gives pictures only to nodes that it draws."""
        self.page.evaluate(FIT)
        self.page.wait_for_timeout(500)

    def screenshot(self, target: Path) -> None:
        """The whole workflow as JPEG."""
        self.show_all()
        with Image.open(io.BytesIO(self.page.screenshot())) as picture:
            picture.convert("RGB").save(target, quality=QUALITY, optimize=True)


def own_templates(route: Any) -> None:
    """The editor's list of its own templates, which are a package of their own: empty where that is not installed.

    Up to frontend 1.27 no template opens before this list has come.
    """
    answer = route.fetch()
    route.fulfill(response=answer) if answer.ok else route.fulfill(json=[])


def nodes_of(name: str) -> list[dict[str, Any]]:
    """The nodes of a template."""
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["nodes"]


def pixels(data: bytes) -> np.ndarray:
    """(H, W, 3) of a picture file."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.fixture(scope="module")
def editor(server: str) -> Iterator[Editor]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        found = Editor(browser, server)
        found.open()
        yield found
        browser.close()


# ---- what a user does


def test_templates_have_their_thumbnails(editor: Editor) -> None:
    dialog = editor.browse()
    for name in bundled_names():
        thumbnail = editor.card(dialog, name)
        editor.page.wait_for_function("image => image.naturalWidth > 0", arg=thumbnail.element_handle())
    editor.page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def mode(request: pytest.FixtureRequest, editor: Editor) -> Iterator[None]:
    """Each way to draw nodes. The server forgets what it knows, so that each of them runs all nodes."""
    editor.choose_mode(request.param)
    editor.forget()
    yield
    editor.set(VUE, False)


@pytest.mark.usefixtures("mode")
def test_a_template_runs_is_saved_and_runs_again_after_a_reload(editor: Editor, request: pytest.FixtureRequest) -> None:
    title = f"my own work {request.node.callspec.id}"
    editor.load_template("canny_to_image")
    first = editor.run()
    (before,) = editor.shown_results()
    assert before.std() > 10

    editor.page.keyboard.press("Control+s")
    dialog = editor.page.get_by_role("dialog")
    dialog.get_by_role("textbox").fill(title)
    dialog.get_by_role("button", name="Confirm").click()
    dialog.wait_for(state="hidden")
    path = f"{editor.server}/api/userdata/{urllib.parse.quote(f'workflows/{title}.json', safe='')}"
    wait(lambda: answers(path), "the saved workflow", editor.page)

    editor.command("Comfy.NewBlankWorkflow")
    wait(lambda: editor.page.evaluate(TYPES) == [], "an empty canvas")
    editor.forget()
    editor.open()
    editor.page.keyboard.press("w")
    editor.page.get_by_role("tree").get_by_text(title).first.click()
    wait(lambda: "CNCore_Sample" in editor.page.evaluate(TYPES), "the opened workflow")
    editor.page.keyboard.press("w")
    editor.show_all()
    second = editor.run()
    (after,) = editor.shown_results()
    assert np.array_equal(before, after)
    assert ran(second) >= {"CNCore_Sample", "SaveImage"}
    assert names(first) != names(second)


def ran(entry: dict[str, Any]) -> set[str]:
    """Classes of the nodes that a run did not take from the cache."""
    graph = entry["prompt"][2]
    cached = [message[1]["nodes"] for message in entry["status"]["messages"] if message[0] == "execution_cached"]
    return {node["class_type"] for name, node in graph.items() if name not in cached[0]}


def names(entry: dict[str, Any]) -> set[str]:
    """Files that a run saved."""
    found = [image for output in entry["outputs"].values() for image in output.get("images", ())]
    return {image["filename"] for image in found if image["type"] == "output"}


@pytest.mark.parametrize("name", bundled_names())
def test_every_template_in_the_editor(name: str, editor: Editor, tmp_path: Path) -> None:
    editor.load_template(name)
    for vue in editor.modes():
        editor.set(VUE, vue)
        editor.show_all()
        wait(lambda vue=vue: editor.page.evaluate(VUE_NODES) == (len(nodes_of(name)) if vue else 0), "the other mode")
        editor.run()
        assert editor.page.evaluate(OVERLAPS) == []
        check_screenshot(editor, tmp_path / f"{name}_{'vue' if vue else 'classic'}.jpg")
    editor.set(VUE, False)
    if "SCREENSHOTS" in os.environ:
        editor.screenshot(Path(os.environ["SCREENSHOTS"]).resolve() / f"{name}.jpg")


def check_screenshot(editor: Editor, target: Path) -> None:
    """The whole workflow with its pictures, in a file that is small enough for the documentation."""
    editor.screenshot(target)
    assert target.stat().st_size <= LARGEST
    with Image.open(target) as picture:
        assert len(picture.getcolors(2**24) or ()) > 1000


def test_a_node_says_in_words_what_it_found_and_does_not_save_that(editor: Editor) -> None:
    editor.load_template("canny_to_image")
    editor.page.evaluate(ADD_FIDELITY)
    editor.show_all()
    editor.run()
    wait(lambda: "F1" in editor.page.evaluate(SAID), "the words")
    saved = editor.page.evaluate("() => app.graph.serialize().nodes.at(-1).widgets_values")
    assert saved == ["canny", 2]


def test_a_blueprint_is_offered_and_opens(editor: Editor) -> None:
    """The node that holds others shows their fields, and becomes a prompt of the inner nodes."""
    try:
        offered = json.loads(get(f"{editor.server}/global_subgraphs"))
    except OSError:
        pytest.skip("this release has no blueprints of packs")
    for path in sorted((ROOT / "subgraphs").glob("*.json")):
        (name,) = (key for key, entry in offered.items() if entry["name"] == path.stem)
        text = json.loads(get(f"{editor.server}/global_subgraphs/{name}"))["data"]
        drawn = json.loads(text)
        assert drawn == json.loads(path.read_text("utf-8"))
        editor.page.evaluate(LOAD_BLUEPRINT, text)
        (graph,), (outside,) = drawn["definitions"]["subgraphs"], drawn["nodes"]
        wait(lambda outside=outside: editor.page.evaluate(TYPES) == [outside["type"]], "the node")
        values = dict(
            zip((f for _, f in outside["properties"]["proxyWidgets"]), outside["widgets_values"], strict=True)
        )
        assert set(values) <= set(editor.page.evaluate(WIDGETS))
        prompt = editor.page.evaluate(PROMPT)
        assert sorted(kind for kind, _ in prompt) == sorted(node["type"] for node in graph["nodes"])
        given = {field: value for _, inputs in prompt for field, value in inputs.items()}
        assert {field: given[field] for field in values} == values


def test_the_server_has_help_in_both_languages_for_every_node(server: str) -> None:
    """The addresses that the editor asks for, with the pictures on these pages; the name of each node."""
    docs = f"{server}/extensions/{PACK}/docs"
    texts = json.loads(get(f"{server}/i18n"))
    for name in own_nodes():
        for page in (f"{name}.md", f"{name}/ko.md"):
            (picture,) = re.findall(r"!\[.*\]\((images/.*)\)", get(f"{docs}/{page}").decode())
            assert get(f"{docs}/{picture}").startswith(b"\xff\xd8")  # a JPEG
        for language in ("en", "ko"):
            assert texts[language]["nodeDefs"][name]["display_name"]
    assert texts["ko"]["nodeCategories"]


def test_a_node_and_its_help_speak_korean(editor: Editor) -> None:
    entry = json.loads((ROOT / "locales" / "ko" / "nodeDefs.json").read_text("utf-8"))["CNCore_ApplyControlNet"]
    page = (ROOT / "web" / "docs" / "CNCore_ApplyControlNet" / "ko.md").read_text("utf-8")
    editor.set("Comfy.Locale", "ko")
    try:
        editor.open()
        shown = wait(lambda: add_and_select(editor), "a selected node")
        assert shown["title"] == entry["display_name"]
        for name, text in entry["inputs"].items():
            assert shown["sockets"][name] == text["name"]
            assert shown["widgets"].get(name, text["name"]) == text["name"]
        editor.page.get_by_test_id("info-button").click()
        for heading in (line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")):
            editor.page.get_by_role("heading", name=heading, exact=True).first.wait_for()
        picture = editor.page.get_by_role("img", name=entry["display_name"]).element_handle()
        editor.page.wait_for_function("image => image.naturalWidth > 0", arg=picture)
    finally:
        editor.set("Comfy.Locale", "en")
        editor.open()


def add_and_select(editor: Editor) -> dict[str, Any] | None:
    """A new node, clicked on; None while a page just loaded still puts the last workflow back in its place."""
    shown = editor.page.evaluate(ADD_APPLY)
    editor.page.mouse.click(*shown["head"])
    editor.page.wait_for_timeout(1000)
    return shown if editor.page.get_by_test_id("info-button").is_visible() else None


def test_the_editor_has_no_complaint_about_us(editor: Editor) -> None:
    assert editor.errors == []
