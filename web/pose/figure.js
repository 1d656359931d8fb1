// What can be done with one person: the tree of joints, limb lengths, mirroring, hands and faces. Data in, data out.
import { isPlaced, isSeen, mapPerson, mapPoint, PARTS } from "./document.js";
import { BODY_LIMBS, TEMPLATES } from "./tables.js";

export const ROOT = 1; // the neck: every limb chain starts there
export const PARENTS = Object.fromEntries(BODY_LIMBS.map(([parent, child]) => [child, parent]));
const CARRIED = { 4: "right_hand", 7: "left_hand", 0: "face" }; // parts that go along with a joint of the body
const HAND_JOINTS = { right_hand: [4, 3], left_hand: [7, 6] }; // wrist and elbow
// Mirrored, the person's right side is drawn at the left: these points change their numbers.
const BODY_SIDES = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16];
const FACE_SIDES = [
  ...range(16, 0), ...range(26, 17), ...range(27, 30), ...range(35, 31), ...range(45, 42), 47, 46, ...range(39, 36), 41,
  40, ...range(54, 48), ...range(59, 55), ...range(64, 60), ...range(67, 65), 69, 68,
]; // prettier-ignore

/** The joint and all joints that hang on it, the joint first. */
export function subtree(joint) {
  const found = [joint];
  for (const at of found) found.push(...BODY_LIMBS.filter(([parent]) => parent === at).map(([, child]) => child));
  return found;
}

/** Move one joint of the body; a hand or face goes along with its wrist or nose. */
export function moveJoint(person, joint, [x, y]) {
  const [fromX, fromY] = person.body[joint];
  const shift = ([px, py]) => [px + x - fromX, py + y - fromY];
  const body = person.body.map((point, i) => (i === joint ? [x, y, point[2]] : point));
  const part = CARRIED[joint];
  return part ? mapPerson({ ...person, body }, shift, [part]) : { ...person, body };
}

/** Move a joint with all that hangs on it. */
export function moveSubtree(person, joint, [x, y]) {
  const [fromX, fromY] = person.body[joint];
  return mapJoints(person, subtree(joint), ([px, py]) => [px + x - fromX, py + y - fromY]);
}

/** Turn a joint about its parent, towards a place: the limb keeps its length, and what hangs on it turns along. */
export function turnJoint(person, joint, place) {
  const pivot = joint === ROOT ? null : person.body[PARENTS[joint]];
  if (!pivot || !isPlaced(pivot)) return moveSubtree(person, joint, place);
  const [cx, cy] = pivot;
  const angle = Math.atan2(place[1] - cy, place[0] - cx) - Math.atan2(person.body[joint][1] - cy, person.body[joint][0] - cx);
  return mapJoints(person, subtree(joint), rotation(cx, cy, angle));
}

/** [x, y] -> the same place turned about a centre; angle in radians, clockwise on the screen. */
export function rotation(cx, cy, angle) {
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return ([x, y]) => [cx + (x - cx) * cos - (y - cy) * sin, cy + (x - cx) * sin + (y - cy) * cos];
}

function mapJoints(person, joints, map) {
  const body = person.body.map((point, i) => (joints.includes(i) ? mapPoint(point, map) : point));
  const parts = joints.map((joint) => CARRIED[joint]).filter(Boolean);
  return mapPerson({ ...person, body }, map, parts);
}

/** Give all limbs the proportions of a standing person; directions and the size of the person stay. */
export function snapLimbs(person) {
  const usual = TEMPLATES.standing;
  const length = (points, [a, b]) => Math.hypot(points[a][0] - points[b][0], points[a][1] - points[b][1]);
  const limbs = BODY_LIMBS.filter(([a, b]) => isPlaced(person.body[a]) && isPlaced(person.body[b]));
  const scale = median(limbs.map((limb) => length(person.body, limb) / length(usual, limb)));
  let result = person;
  for (const limb of limbs) {
    const [[x, y], [toX, toY]] = limb.map((joint) => result.body[joint]);
    const now = Math.hypot(toX - x, toY - y);
    if (!now) continue;
    const factor = (scale * length(usual, limb)) / now;
    result = moveSubtree(result, limb[1], [x + (toX - x) * factor, y + (toY - y) * factor]);
  }
  return result;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? 1;
}

/** The person seen in a mirror: turned about the middle of the bounding box, right and left exchanged. */
export function mirrorPerson(person) {
  const box = bounds(person);
  if (!box) return person;
  const flipped = mapPerson(person, ([x, y]) => [box.left + box.right - x, y]);
  const { face } = flipped;
  return {
    body: BODY_SIDES.map((index) => flipped.body[index]),
    left_hand: flipped.right_hand,
    right_hand: flipped.left_hand,
    // Faces of other forms than 68 points (with pupils 70) have no known order; they are dots of one colour.
    face: face?.length === 68 || face?.length === 70 ? FACE_SIDES.slice(0, face.length).map((i) => face[i]) : face,
  };
}

/** {left, top, right, bottom} of all placed points of some parts; null without any. */
export function bounds(person, parts = PARTS) {
  const points = parts.flatMap((part) => person[part] ?? []).filter(isPlaced);
  if (!points.length) return null;
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  return { left: Math.min(...xs), top: Math.min(...ys), right: Math.max(...xs), bottom: Math.max(...ys) };
}

/** Hide a point, or show it. */
export function toggleSeen(person, part, index) {
  const points = person[part].map((point, i) => (i === index ? [point[0], point[1], isSeen(point) ? 0 : 1] : point));
  return { ...person, [part]: points };
}

/** Show every point; joints of the body without a place get the one that they have in a standing person. */
export function showAll(person) {
  const place = placement(person.body);
  const body = person.body.map((point, i) => (isPlaced(point) ? [point[0], point[1], 1] : [...place(TEMPLATES.standing[i]), 1]));
  const shown = { ...person, body };
  for (const part of PARTS.slice(1)) shown[part] = person[part]?.map(([x, y, seen]) => [x, y, seen || (x || y ? 1 : 0)]) ?? null;
  return shown;
}

/** Map from the box of the templates to where this body is: the same middle and the same spread. */
function placement(body) {
  const known = body.map((point, i) => [point, TEMPLATES.standing[i]]).filter(([point]) => isPlaced(point));
  if (!known.length) return ([x, y]) => [x * 100, y * 100];
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const middle = [0, 1].map((axis) => mean(known.map(([point]) => point[axis])));
  const usual = [0, 1].map((axis) => mean(known.map(([, place]) => place[axis])));
  const spread = (points, [x, y]) => Math.sqrt(mean(points.map((point) => (point[0] - x) ** 2 + (point[1] - y) ** 2)));
  const size = spread(known.map(([, place]) => place), usual);
  const scale = size > 0 ? spread(known.map(([point]) => point), middle) / size : 100;
  return ([x, y]) => [middle[0] + (x - usual[0]) * scale, middle[1] + (y - usual[1]) * scale];
}

/** A person in a pose of the templates, as Python places it: in the canvas with a margin, feet on the bottom. */
export function templatePerson(name, width, height) {
  const margin = 0.06 * Math.min(width, height);
  const points = TEMPLATES[name];
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = Math.min((width - 2 * margin) / (right - left), (height - 2 * margin) / (bottom - top));
  const [x0, y0] = [width / 2 - ((left + right) / 2) * scale, height - margin - bottom * scale];
  return { body: points.map(([x, y]) => [x0 + x * scale, y0 + y * scale, 1]), left_hand: null, right_hand: null, face: null };
}

/** The person with a new hand or face, or without the one that it has. */
export function togglePart(person, part) {
  if (person[part]) return { ...person, [part]: null };
  return { ...person, [part]: part === "face" ? newFace(person.body) : newHand(person.body, part) };
}

// A relaxed right hand on an arm that points down, in lengths of the forearm; y grows away from the wrist.
const HAND = [
  [0, 0], [0.1, 0.06], [0.19, 0.14], [0.25, 0.22], [0.3, 0.29], [0.11, 0.27], [0.13, 0.39], [0.14, 0.46], [0.15, 0.52],
  [0.04, 0.29], [0.05, 0.42], [0.05, 0.5], [0.05, 0.57], [-0.04, 0.28], [-0.05, 0.4], [-0.06, 0.47], [-0.06, 0.53],
  [-0.11, 0.25], [-0.14, 0.34], [-0.16, 0.4], [-0.17, 0.45],
]; // prettier-ignore

function newHand(body, part) {
  const [wrist, elbow] = HAND_JOINTS[part].map((joint) => body[joint]);
  const arm = isPlaced(wrist) && isPlaced(elbow) ? [wrist[0] - elbow[0], wrist[1] - elbow[1]] : [0, size(body) / 7];
  const [x0, y0] = isPlaced(wrist) ? wrist : middleOf(body);
  const side = part === "right_hand" ? 1 : -1; // the thumb points to the body
  // Along the forearm, and at a right angle to it.
  return HAND.map(([x, y]) => [x0 + arm[0] * y + side * arm[1] * x, y0 + arm[1] * y - side * arm[0] * x, 1]);
}

function newFace(body) {
  const [nose, neck] = [body[0], body[ROOT]];
  const [x0, y0] = isPlaced(nose) ? nose : middleOf(body);
  const up = isPlaced(nose) && isPlaced(neck) ? [nose[0] - neck[0], nose[1] - neck[1]] : [0, -size(body) / 9];
  return FACE.map(([x, y]) => [x0 - up[1] * x - up[0] * y, y0 + up[0] * x - up[1] * y, 1]);
}

const middleOf = (body) => {
  const box = bounds({ body }, ["body"]) ?? { left: 0, right: 200, top: 0, bottom: 200 };
  return [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
};
const size = (body) => {
  const box = bounds({ body }, ["body"]);
  return box ? Math.max(box.right - box.left, box.bottom - box.top) : 200;
};

/** 70 points of a face from the front, in lengths of nose to neck, the tip of the nose at 0, 0; y grows downwards. */
const FACE = faceShape();

function faceShape() {
  const at = (cx, cy, rx, ry, turn) => [cx + rx * Math.cos((turn * Math.PI) / 180), cy + ry * Math.sin((turn * Math.PI) / 180)];
  const arc = (count, cx, cy, rx, ry, from, to) =>
    Array.from({ length: count }, (_, i) => at(cx, cy, rx, ry, from + ((to - from) * i) / (count - 1)));
  const eye = (cx) => [180, 240, 300, 360, 60, 120].map((turn) => at(cx, -0.2, 0.09, 0.045, turn));
  return [
    ...arc(17, 0, -0.12, 0.5, 0.58, 180, 0), // the jaw, from the person's right ear to the left
    ...arc(5, -0.22, -0.3, 0.15, 0.08, 200, 340), ...arc(5, 0.22, -0.3, 0.15, 0.08, 200, 340), // brows
    [0, -0.2], [0, -0.13], [0, -0.06], [0, 0.01], // bridge of the nose
    [-0.09, 0.05], [-0.045, 0.07], [0, 0.08], [0.045, 0.07], [0.09, 0.05], // nostrils
    ...eye(-0.22), ...eye(0.22),
    ...arc(7, 0, 0.24, 0.17, 0.07, 180, 360), ...arc(7, 0, 0.24, 0.17, 0.09, 0, 180).slice(1, 6), // outer lips
    ...arc(5, 0, 0.24, 0.12, 0.02, 180, 360), ...arc(5, 0, 0.24, 0.12, 0.03, 0, 180).slice(1, 4), // inner lips
    [-0.22, -0.2], [0.22, -0.2], // pupils
  ]; // prettier-ignore
}

function range(from, to) {
  const step = from <= to ? 1 : -1;
  return Array.from({ length: Math.abs(to - from) + 1 }, (_, i) => from + i * step);
}
