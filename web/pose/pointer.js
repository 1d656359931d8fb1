// Mouse, pen and fingers on the canvas of the editor: select, drag, resize, turn, pan, pinch.
import { mapPerson, PARTS } from "./document.js";
import { rotation } from "./figure.js";
import { moveSelected } from "./model.js";
import { handles, pick, selectionBox } from "./view.js";

const RADIUS = { mouse: 10, pen: 12, touch: 22 }; // pixels of the editor within which a point is meant
const OPPOSITE = { nw: "se", ne: "sw", se: "nw", sw: "ne" };
const MIN_FACTOR = 0.02;
const WHEEL_SPEED = 0.0015;

/** Listens on the canvas element. editor: {model, view, settings, redraw}; place() gives pixels of the editor. */
export class PointerInput {
  constructor(canvas, editor) {
    Object.assign(this, { canvas, editor, pointers: new Map(), drag: null, hover: null });
    for (const name of ["pointerdown", "pointermove", "pointerup", "pointercancel", "pointerleave", "dblclick", "wheel"]) {
      canvas.addEventListener(name, (event) => this[name](event), { passive: false });
    }
    // A press on what cannot have the focus takes it from the editor's keys.
    canvas.addEventListener("mousedown", (event) => event.preventDefault());
  }

  /** Pixels of the editor; its element may be drawn larger or smaller, as ComfyUI's canvas is zoomed. */
  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return [x * this.canvas.offsetWidth, y * this.canvas.offsetHeight];
  }

  under(event) {
    const { model, view } = this.editor;
    return pick(model, view, this.place(event), RADIUS[event.pointerType] ?? RADIUS.mouse);
  }

  pointerdown(event) {
    this.editor.focus();
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.place(event));
    if (this.pointers.size === 2) return this.startPinch();
    if (this.pointers.size > 2) return;
    if (event.button === 1) return this.startPan(event);
    if (event.button !== 0) return;
    this.start(this.under(event), event);
  }

  start(hit, event) {
    const { model } = this.editor;
    if (!hit) {
      model.select({});
      return this.startPan(event);
    }
    if (!hit.handle) model.select(hit);
    const kind = hit.handle === "turn" ? "turn" : hit.handle ? "resize" : "move";
    this.drag = { kind, handle: hit.handle, from: this.place(event), box: selectionBox(model, this.editor.view) };
    model.startDrag();
  }

  startPan(event) {
    this.drag = { kind: "pan", from: this.place(event) };
  }

  startPinch() {
    this.editor.model.cancelDrag();
    this.drag = { kind: "pinch", ...this.pinch() };
  }

  /** Middle and distance of two fingers. */
  pinch() {
    const [a, b] = [...this.pointers.values()];
    return { middle: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2], apart: Math.max(Math.hypot(a[0] - b[0], a[1] - b[1]), 1) };
  }

  pointermove(event) {
    if (!this.drag) return this.setHover(this.under(event));
    if (!this.pointers.has(event.pointerId)) return;
    const place = this.place(event);
    this.pointers.set(event.pointerId, place);
    this[this.drag.kind + "To"](place, event);
  }

  moveTo([x, y], event) {
    const { model, view, settings } = this.editor;
    const [dx, dy] = [(x - this.drag.from[0]) / view.scale, (y - this.drag.from[1]) / view.scale];
    const options = { withChildren: event.shiftKey, keepLengths: settings.keepLengths };
    model.drag((person) => moveSelected(person, model.selection, dx, dy, options));
  }

  resizeTo([x, y], event) {
    const corners = handles(this.drag.box);
    const fixed = corners[OPPOSITE[this.drag.handle]];
    const start = corners[this.drag.handle];
    let [sx, sy] = [(x - fixed[0]) / (start[0] - fixed[0]), (y - fixed[1]) / (start[1] - fixed[1])];
    if (!event.shiftKey) sx = sy = Math.max((sx + sy) / 2, MIN_FACTOR); // with shift, width and height apart
    const [cx, cy] = this.editor.view.toCanvas(fixed);
    this.mapSelected(([px, py]) => [cx + (px - cx) * sx, cy + (py - cy) * sy]);
  }

  turnTo(place, event) {
    const { left, right, top, bottom } = this.drag.box;
    const middle = [(left + right) / 2, (top + bottom) / 2];
    const angleTo = ([x, y]) => Math.atan2(y - middle[1], x - middle[0]);
    let angle = angleTo(place) - angleTo(this.drag.from);
    if (event.shiftKey) angle = (Math.round((angle * 12) / Math.PI) * Math.PI) / 12; // steps of 15 degrees
    this.mapSelected(rotation(...this.editor.view.toCanvas(middle), angle));
  }

  mapSelected(map) {
    const { part } = this.editor.model.selection;
    this.editor.model.drag((person) => mapPerson(person, map, part ? [part] : PARTS));
  }

  panTo([x, y]) {
    this.editor.pan(x - this.drag.from[0], y - this.drag.from[1]);
    this.drag.from = [x, y];
  }

  pinchTo() {
    const { middle, apart } = this.pinch();
    this.editor.pan(middle[0] - this.drag.middle[0], middle[1] - this.drag.middle[1]);
    this.editor.zoom(apart / this.drag.apart, middle);
    Object.assign(this.drag, { middle, apart });
  }

  pointerup(event) {
    this.end(event, () => this.editor.model.endDrag());
  }

  pointercancel(event) {
    this.end(event, () => this.editor.model.cancelDrag());
  }

  end(event, finish) {
    if (!this.pointers.delete(event.pointerId) || !this.drag) return;
    const isPinch = this.drag.kind === "pinch";
    this.drag = null; // one finger that is left over after a pinch does nothing
    if (!isPinch) finish();
  }

  pointerleave() {
    this.setHover(null);
  }

  setHover(hover) {
    const same = hover?.person === this.hover?.person && hover?.part === this.hover?.part && hover?.point === this.hover?.point;
    const cursors = { nw: "nwse-resize", se: "nwse-resize", ne: "nesw-resize", sw: "nesw-resize", turn: "grab" };
    this.canvas.style.cursor = !hover ? "default" : (cursors[hover.handle] ?? (hover.point >= 0 ? "pointer" : "move"));
    this.hover = hover;
    if (!same) this.editor.redraw();
  }

  /** A double click takes more: from a joint the person, from a point of a hand or face that part. */
  dblclick(event) {
    const hit = this.under(event);
    if (hit && !hit.handle) this.editor.model.select({ person: hit.person, part: hit.part === "body" ? null : hit.part });
  }

  /** The wheel zooms the pose once the editor was clicked on; else ComfyUI's canvas zooms, as over any node. */
  wheel(event) {
    if (!this.editor.hasFocus) return;
    event.preventDefault();
    event.stopPropagation();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 20 : 1);
    this.editor.zoom(Math.exp(-pixels * WHEEL_SPEED), this.place(event));
  }
}
