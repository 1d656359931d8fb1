// The state of one editor: document, selection, undo. No page in here; whoever shows it listens by `onChange`.
import { mapPerson, parse, PARTS, PoseError, rounded, serialise, withFrame, withPerson } from "./document.js";
import * as figure from "./figure.js";
import { LIMITS } from "./tables.js";

const MOST_STEPS = 200; // of undo
const COPY_OFFSET = 0.06; // of the canvas width
export const NOTHING = { person: -1, part: null, point: -1 };
export const START = { width: 512, height: 512 };

/** Selection: {person, part, point}. part null: the whole person; point -1: the whole part; person -1: nothing. */
export class PoseModel {
  constructor(onChange = () => {}) {
    this.onChange = onChange;
    this.linked = null; // document that a link brought
    this.size = START; // canvas of a new pose: that of the linked picture
    this.load("");
  }

  /** What the workflow saves: nothing as long as nothing is edited, so that a linked pose is used. */
  get text() {
    if (this.problem) return this.broken;
    return this.isEdited ? serialise(this.document) : "";
  }

  get frame() {
    return this.document.frames[this.index];
  }

  get person() {
    return this.frame.people[this.selection.person] ?? null;
  }

  /** Read a saved text. One that cannot be read is kept until the first edit, with the reason in `problem`. */
  load(text) {
    this.problem = this.broken = null;
    this.isEdited = text.trim() !== "";
    this.document = this.unedited();
    if (this.isEdited) {
      try {
        this.document = parse(text, this.size);
      } catch (error) {
        if (!(error instanceof PoseError)) throw error;
        [this.problem, this.broken] = [error, text];
      }
    }
    [this.past, this.future, this.index, this.selection, this.base] = [[], [], 0, NOTHING, null];
    this.onChange();
  }

  /** What an empty text stands for, as in the node's Python. */
  unedited() {
    if (this.linked) return this.linked;
    const { width, height } = this.size;
    return { frames: [{ width, height, people: [figure.templatePerson("standing", width, height)] }] };
  }

  /** Take what the links brought: JSON text of keypoints, and the size of the picture. null: no such link. */
  setLinks(linked, size) {
    [this.linked, this.size] = [linked === null ? null : parse(linked, size), size ?? START];
    if (this.isEdited) return this.onChange();
    [this.document, this.index, this.selection] = [this.unedited(), 0, NOTHING];
    this.onChange();
  }

  // ---- changes

  /** Replace the frame by a function of it, as one step of undo. selection: what is selected then. */
  change(update, selection = this.selection) {
    const frame = update(this.frame);
    if (frame === this.frame) return this.select(selection);
    this.commit(withFrame(this.document, this.index, frame), selection);
  }

  /** Replace the selected person by a function of it. */
  changePerson(update) {
    const { person } = this.selection;
    if (this.person) this.change((frame) => withPerson(frame, person, update(frame.people[person])));
  }

  /** Replace the whole document, such as by a loaded file. */
  replace(document) {
    this.index = 0;
    this.commit(document, NOTHING);
  }

  commit(document, selection = this.selection) {
    this.past = [...this.past.slice(1 - MOST_STEPS), this.snapshot()];
    this.future = [];
    this.problem = this.broken = null;
    [this.document, this.selection, this.isEdited] = [settle(document, this.document), selection, true];
    this.onChange();
  }

  snapshot() {
    return { document: this.document, isEdited: this.isEdited, index: this.index, selection: this.selection };
  }

  /** While something is dragged the picture follows; `endDrag` makes one step of undo of it. */
  startDrag() {
    this.base = this.snapshot();
  }

  /** update: of the person as it was when the drag began. */
  drag(update) {
    const { person } = this.selection;
    const frame = this.base.document.frames[this.index];
    const moved = withPerson(frame, person, update(frame.people[person]));
    this.document = withFrame(this.base.document, this.index, moved);
    this.onChange();
  }

  endDrag() {
    const [base, document] = [this.base, this.document];
    this.base = null;
    if (!base || base.document === document) return;
    this.document = base.document;
    this.commit(document);
  }

  cancelDrag() {
    if (this.base) this.document = this.base.document;
    this.base = null;
    this.onChange();
  }

  undo() {
    this.travel(this.past, this.future);
  }

  redo() {
    this.travel(this.future, this.past);
  }

  travel(from, to) {
    this.cancelDrag();
    if (!from.length) return;
    to.push(this.snapshot());
    Object.assign(this, from.pop());
    this.onChange();
  }

  /** Back to an unedited node, which shows what its links bring. Can be undone. */
  reset() {
    this.replace(this.unedited());
    this.isEdited = false;
    this.onChange();
  }

  // ---- selection

  select(selection) {
    this.selection = { ...NOTHING, ...selection };
    this.onChange();
  }

  showFrame(index) {
    this.index = Math.min(Math.max(index, 0), this.document.frames.length - 1);
    this.select(NOTHING);
  }

  /** The next person, or the one before; after the last comes the first. */
  nextPerson(step) {
    const count = this.frame.people.length;
    const { person } = this.selection;
    if (count) this.select({ person: person < 0 ? (step > 0 ? 0 : count - 1) : (person + step + count) % count });
  }

  /** The next point of the selected person, through body, hands and face. */
  nextPoint(step) {
    if (!this.person) return this.nextPerson(1);
    const points = PARTS.flatMap((part) => (this.person[part] ?? []).map((_, point) => ({ part, point })));
    const { person, part, point } = this.selection;
    const at = points.findIndex((entry) => entry.part === part && entry.point === point);
    const next = at < 0 ? (step > 0 ? 0 : points.length - 1) : (at + step + points.length) % points.length;
    this.select({ person, ...points[next] });
  }

  // ---- people

  /** Add a person: a template, or a copy of one. */
  add(person) {
    if (this.frame.people.length >= LIMITS.people) return;
    this.change((frame) => ({ ...frame, people: [...frame.people, person] }), { ...NOTHING, person: this.frame.people.length });
  }

  addTemplate(name) {
    const { width, height, people } = this.frame;
    const person = figure.templatePerson(name, width, height);
    const { left, right } = figure.bounds(person);
    // Beside those that are there, so that the new one can be seen, and inside of the canvas.
    const side = (people.length % 2 ? 1 : -1) * Math.ceil(people.length / 2) * 0.2 * width;
    const room = Math.max((width - (right - left)) / 2, 0);
    this.add(moved(person, Math.min(Math.max(side, -room), room), 0));
  }

  copy() {
    if (this.person) this.add(moved(this.person, COPY_OFFSET * this.frame.width, 0));
  }

  remove() {
    const { person } = this.selection;
    if (!this.person) return;
    this.change((frame) => ({ ...frame, people: frame.people.filter((_, i) => i !== person) }), NOTHING);
  }

  mirror() {
    this.changePerson(figure.mirrorPerson);
  }

  snapLimbs() {
    this.changePerson(figure.snapLimbs);
  }

  showAll() {
    this.changePerson(figure.showAll);
  }

  togglePart(part) {
    this.changePerson((person) => figure.togglePart(person, part));
    if (this.selection.part === part) this.select({ person: this.selection.person });
  }

  /** Hide or show the selected point. */
  toggleSeen() {
    const { part, point } = this.selection;
    if (this.person && point >= 0) this.changePerson((person) => figure.toggleSeen(person, part, point));
  }

  /** Move what is selected by whole pixels, as the arrow keys do. */
  nudge(dx, dy, options) {
    this.changePerson((person) => moveSelected(person, this.selection, dx, dy, options));
  }
}

/** A person whose selected point, part or whole is moved by dx, dy. options: {withChildren, keepLengths}. */
export function moveSelected(person, { part, point }, dx, dy, { withChildren = false, keepLengths = false } = {}) {
  if (part === null) return moved(person, dx, dy);
  if (point < 0) return moved(person, dx, dy, [part]);
  const [x, y] = person[part][point];
  const place = [x + dx, y + dy];
  if (part === "body") {
    const move = keepLengths ? figure.turnJoint : withChildren ? figure.moveSubtree : figure.moveJoint;
    return move(person, point, place);
  }
  return { ...person, [part]: person[part].map((old, i) => (i === point ? [...place, old[2]] : old)) };
}

const moved = (person, dx, dy, parts = PARTS) => mapPerson(person, ([x, y]) => [x + dx, y + dy], parts);

/** The document with the places that its text will have, so that what is shown is what is saved. */
function settle(document, before) {
  const point = ([x, y, seen]) => [rounded(x), rounded(y), seen];
  const person = (old) => Object.fromEntries(PARTS.map((part) => [part, old[part]?.map(point) ?? null]));
  const known = new Set(before.frames.flatMap((frame) => frame.people));
  const people = (frame) => frame.people.map((one) => (known.has(one) ? one : person(one)));
  return { frames: document.frames.map((frame) => ({ ...frame, people: people(frame) })) };
}
