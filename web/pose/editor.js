// The editor as one element: toolbar, canvas, fields, status line. It knows nothing of ComfyUI.
import { isSeen, serialise } from "./document.js";
import { draw } from "./drawing.js";
import { pressKey } from "./keyboard.js";
import { PoseModel } from "./model.js";
import { togglePanel, tryParse } from "./panel.js";
import { PointerInput } from "./pointer.js";
import { make, makeFields, makeToolbar } from "./toolbar.js";
import { handles, selectionBox, View } from "./view.js";
import { words } from "./words.js";

// Events that ComfyUI would take for its own canvas: a drag of the node, its menu, its shortcuts.
const OURS = ["pointerdown", "mousedown", "touchstart", "touchmove", "dblclick", "contextmenu", "dragover", "drop"];
const PROPERTY_DEFAULTS = { opacity: 0.6, keepLengths: false };

/** Whether keys belong to a field of the editor, and not to its canvas. */
const isField = (element) => element.matches("input, textarea:not(.cncore-pose-keys)");

/** options: {language, settings, onEdit(text), onSetting(settings)}; settings: see PROPERTY_DEFAULTS. */
export class PoseEditor {
  constructor({ language = "en", settings = {}, onEdit = () => {}, onSetting = () => {} } = {}) {
    this.say = words(language);
    Object.assign(this, { onEdit, onSetting, settings: { ...PROPERTY_DEFAULTS, ...settings } });
    [this.stroke, this.picture, this.hasLink, this.isFitted] = [1, null, false, true];
    this.view = new View();
    this.model = new PoseModel();
    this.build();
    this.model.onChange = () => this.update();
    this.shown = this.model.text;
    this.update();
  }

  build() {
    this.canvas = make("canvas", { className: "cncore-pose-canvas" });
    // ComfyUI leaves keys such as Ctrl+Z to text fields only, so an empty one has the focus for the canvas.
    this.keys = make("textarea", { className: "cncore-pose-keys", inputMode: "none", spellcheck: false });
    this.keys.setAttribute("aria-label", this.say("canvas"));
    this.keys.addEventListener("beforeinput", (event) => event.preventDefault());
    this.status = make("div", { className: "cncore-pose-status" });
    this.status.setAttribute("role", "status");
    this.stage = make("div", { className: "cncore-pose-stage" }, this.keys, this.canvas);
    this.stage.dataset.captureWheel = "true"; // Vue nodes: the wheel is ours while something in here has the focus
    [this.toolbar, this.fields] = [makeToolbar(this), makeFields(this)];
    this.element = make("div", { className: "cncore-pose" }, this.toolbar.element, this.stage, this.fields.element, this.status);
    this.pointer = new PointerInput(this.canvas, this);
    for (const name of OURS) this.element.addEventListener(name, (event) => event.stopPropagation());
    this.element.addEventListener("contextmenu", (event) => event.target === this.canvas && event.preventDefault());
    this.element.addEventListener("keydown", (event) => this.keydown(event));
    this.element.addEventListener("dragover", (event) => event.preventDefault());
    this.element.addEventListener("drop", (event) => this.drop(event));
    for (const name of ["copy", "paste"]) this.element.addEventListener(name, (event) => this.clipboard(event));
    this.canvas.addEventListener("pointerenter", () => this.redraw());
    this.observer = new ResizeObserver(() => (this.isFitted ? this.fit() : this.redraw()));
    this.observer.observe(this.canvas);
  }

  remove() {
    this.observer.disconnect();
    this.element.remove();
  }

  // ---- what the node tells

  get text() {
    return this.model.text;
  }

  set text(text) {
    if (text === this.model.text) return;
    this.shown = text;
    this.model.load(text);
    this.fit();
  }

  setStroke(stroke) {
    this.stroke = stroke;
    this.redraw();
  }

  /** picture: an image element or null. size: its full size. linked: JSON text of the keypoints of a link, once known. */
  setLinks({ picture = null, size = null, linked = null, hasLink = false }) {
    [this.picture, this.hasLink] = [picture, hasLink];
    this.model.setLinks(linked, size);
    if (this.isFitted) this.fit();
  }

  setOpacity(opacity) {
    this.changeSetting({ opacity });
  }

  setKeepLengths(keepLengths) {
    this.changeSetting({ keepLengths });
  }

  changeSetting(change) {
    Object.assign(this.settings, change);
    this.onSetting({ ...this.settings });
    this.update();
  }

  // ---- JSON

  openJson() {
    togglePanel(this);
  }

  /** Use JSON text as the pose; the reason if it cannot be read. */
  take(text) {
    const { document, failure } = tryParse(text, this.say, this.model.size);
    if (failure) return failure;
    this.model.replace(document);
    this.fit();
    return "";
  }

  async drop(event) {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) this.complain(this.take(await file.text()));
  }

  /** Copy the selected person, or all; paste adds people. */
  clipboard(event) {
    if (isField(event.target)) return;
    const { model } = this;
    event.preventDefault();
    event.stopPropagation();
    if (event.type === "copy") {
      const frame = model.person ? { ...model.frame, people: [model.person] } : model.frame;
      return event.clipboardData.setData("text/plain", serialise({ frames: [frame] }));
    }
    const { document, failure } = tryParse(event.clipboardData.getData("text/plain"), this.say, model.frame);
    if (failure) return this.complain(failure);
    for (const person of document.frames[0].people) model.add(person);
  }

  keydown(event) {
    if (isField(event.target) || !pressKey(this, event)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  // ---- what is shown

  /** Let the keys act on the canvas. */
  focus() {
    this.keys.focus({ preventScroll: true });
  }

  get hasFocus() {
    return this.keys.ownerDocument.activeElement === this.keys;
  }

  fit() {
    this.isFitted = true;
    this.view.fit(this.model.frame, this.canvas.offsetWidth, this.canvas.offsetHeight);
    this.redraw();
  }

  zoom(factor, place = [this.canvas.offsetWidth / 2, this.canvas.offsetHeight / 2]) {
    this.isFitted = false;
    this.view.zoom(factor, place);
    this.redraw();
  }

  pan(dx, dy) {
    this.isFitted = false;
    this.view.pan(dx, dy);
    this.redraw();
  }

  /** Where a handle of the selection's frame lies, or its "middle", in pixels of the editor. */
  handlePlace(name) {
    const box = selectionBox(this.model, this.view);
    return name === "middle" ? [(box.left + box.right) / 2, (box.top + box.bottom) / 2] : handles(box)[name];
  }

  update() {
    this.toolbar.update();
    this.fields.update();
    this.complain(this.model.problem ? this.say(this.model.problem.key, this.model.problem.values) : "");
    this.redraw();
    if (this.model.base !== null || this.model.text === this.shown) return; // while dragging, the text waits
    this.shown = this.model.text;
    this.onEdit(this.shown);
  }

  /** A problem, or else what is selected. */
  complain(problem) {
    const { model, say } = this;
    this.status.classList.toggle("cncore-pose-problem", Boolean(problem));
    const point = model.person?.[model.selection.part]?.[model.selection.point];
    const place = point ? ` (${Math.round(point[0])}, ${Math.round(point[1])})${isSeen(point) ? "" : `, ${say("hidden")}`}` : "";
    const selected = model.person ? say.selection(model.selection) + place : say("nothing", { count: model.frame.people.length });
    const note = this.hasLink ? (model.isEdited ? "linkUnused" : model.linked ? "fromLink" : "linkWaits") : model.isEdited ? "" : "unedited";
    this.status.textContent = problem || [selected, note && say(note)].filter(Boolean).join(" · ");
  }

  /** Draw at the next frame of the screen. */
  redraw() {
    if (this.request) return;
    this.request = requestAnimationFrame(() => {
      this.request = null;
      this.paint();
    });
  }

  paint() {
    const { canvas } = this;
    const [width, height] = [canvas.offsetWidth, canvas.offsetHeight];
    if (!width || !height) return;
    // ComfyUI's zoom scales the element; as many pixels as are seen make it sharp at any zoom.
    const density = Math.min(Math.max((canvas.getBoundingClientRect().width / width) * devicePixelRatio, 0.5), 4);
    const [wide, high] = [Math.round(width * density), Math.round(height * density)];
    if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
    const context = canvas.getContext("2d");
    context.setTransform(wide / width, 0, 0, high / height, 0, 0);
    const style = getComputedStyle(this.element);
    const colour = (name) => style.getPropertyValue(name).trim();
    const { picture, stroke, settings, pointer } = this;
    const options = { picture, stroke, opacity: settings.opacity, hover: pointer.hover, accent: colour("--accent"), outside: colour("--outside") };
    draw(context, this.model, this.view, { width, height }, options);
  }
}
