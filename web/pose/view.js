// Where the canvas of the pose lies in the editor: panned, zoomed, and what lies under a pointer.
import { isPlaced, PARTS } from "./document.js";
import { bounds } from "./figure.js";
import { BODY_LIMBS } from "./tables.js";

const MARGIN = 24; // pixels of the editor around the canvas
const MIN_SCALE = 0.02;
const MAX_SCALE = 40;
export const PADDING = 12; // pixels of the editor between a figure and its frame
export const KNOB = 26; // pixels between the frame and the knob that turns it

/** Maps pixels of the canvas to pixels of the editor: place * scale + offset. */
export class View {
  scale = 1;
  x = 0;
  y = 0;

  /** Show the whole canvas in the middle. */
  fit(frame, width, height) {
    this.scale = Math.max(Math.min((width - 2 * MARGIN) / frame.width, (height - 2 * MARGIN) / frame.height), MIN_SCALE);
    this.x = (width - frame.width * this.scale) / 2;
    this.y = (height - frame.height * this.scale) / 2;
  }

  toScreen([x, y]) {
    return [x * this.scale + this.x, y * this.scale + this.y];
  }

  toCanvas([x, y]) {
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
  }

  /** Zoom; the place under x, y of the editor stays there. */
  zoom(factor, [x, y]) {
    const scale = Math.min(Math.max(this.scale * factor, MIN_SCALE), MAX_SCALE);
    this.x = x - (x - this.x) * (scale / this.scale);
    this.y = y - (y - this.y) * (scale / this.scale);
    this.scale = scale;
  }
}

/** The frame around a selected person or part, in pixels of the editor; null where a point or nothing is selected. */
export function selectionBox(model, view) {
  const { part, point } = model.selection;
  const box = model.person && point < 0 ? bounds(model.person, part ? [part] : PARTS) : null;
  if (!box) return null;
  const [left, top] = view.toScreen([box.left, box.top]);
  const [right, bottom] = view.toScreen([box.right, box.bottom]);
  return { left: left - PADDING, top: top - PADDING, right: right + PADDING, bottom: bottom + PADDING };
}

/** The handles of that frame: corners to resize, a knob above it to turn; name -> place in the editor. */
export function handles(box) {
  const { left, top, right, bottom } = box;
  const corners = { nw: [left, top], ne: [right, top], se: [right, bottom], sw: [left, bottom] };
  return { ...corners, turn: [(left + right) / 2, top - KNOB] };
}

/** What lies under a place of the editor: {handle}, {person, part, point}, {person} on a limb; null for nothing. */
export function pick(model, view, place, radius) {
  const box = selectionBox(model, view);
  if (box) {
    const [name] = nearest(Object.entries(handles(box)), ([, at]) => distance(at, place), radius) ?? [];
    if (name) return { handle: name };
  }
  const found = nearest(points(model), (entry) => distance(view.toScreen(entry.at), place) + entry.late, radius);
  if (found) return { person: found.person, part: found.part, point: found.point };
  const limb = nearest(limbs(model), ({ ends }) => toSegment(place, ...ends.map((end) => view.toScreen(end))), radius);
  if (limb) return { person: limb.person, part: null, point: -1 };
  const [x, y] = place;
  const inside = box && x >= box.left && x <= box.right && y >= box.top && y <= box.bottom;
  return inside ? { ...model.selection } : null;
}

/** All placed points; `late` lets those win that are more likely meant: of the selected person, and of bodies. */
function points(model) {
  return model.frame.people.flatMap((figure, person) =>
    PARTS.flatMap((part) =>
      (figure[part] ?? []).flatMap((point, index) => {
        // The first point of a hand lies on the wrist, which takes the hand along.
        if (!isPlaced(point) || (part.endsWith("hand") && index === 0 && isPlaced(wristOf(figure, part)))) return [];
        const late = (person === model.selection.person ? 0 : 3) + (part === "body" ? 0 : 2);
        return [{ person, part, point: index, at: point, late }];
      }),
    ),
  );
}

const wristOf = (figure, hand) => figure.body[hand === "right_hand" ? 4 : 7];

function limbs(model) {
  return model.frame.people.flatMap(({ body }, person) =>
    BODY_LIMBS.map((limb) => limb.map((joint) => body[joint]))
      .filter((ends) => ends.every(isPlaced))
      .map((ends) => ({ person, ends })),
  );
}

function nearest(entries, distanceTo, limit) {
  let [best, least] = [null, limit];
  for (const entry of entries) {
    const far = distanceTo(entry);
    if (far <= least) [best, least] = [entry, far];
  }
  return best;
}

const distance = ([x, y], [toX, toY]) => Math.hypot(x - toX, y - toY);

function toSegment([x, y], [ax, ay], [bx, by]) {
  const length = (bx - ax) ** 2 + (by - ay) ** 2;
  const share = length ? Math.min(Math.max(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length, 0), 1) : 0;
  return distance([x, y], [ax + share * (bx - ax), ay + share * (by - ay)]);
}
