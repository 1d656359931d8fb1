// Pose documents: OpenPose JSON in, the same JSON out. Data only, no page: tests run this file without a browser.
//
// A document is {frames}, a frame {width, height, people}, a person {body, left_hand, right_hand, face}. A part is a
// list of points [x, y, confidence] in pixels of the canvas, or null. A body has OpenPose's 18 points, a hand 21, a face
// 56 to 70. Documents are never changed in place: undo keeps the old ones.
//
// A point with confidence 0 is not drawn. If it has a place it is hidden, and can be shown again; at 0, 0 it is missing.
import { BODY_25_TO_18, LIMITS } from "./tables.js";

export const KEYS = {
  body: "pose_keypoints_2d",
  left_hand: "hand_left_keypoints_2d",
  right_hand: "hand_right_keypoints_2d",
  face: "face_keypoints_2d",
};
export const PARTS = Object.keys(KEYS);
const BODY_POINTS = 18;
const COUNTS = { left_hand: [21, 21], right_hand: [21, 21], face: [56, 70] };
const WHOLE_BODIES = { 133: 17, 134: 18 }; // points of the body; six of the feet, then face and hands follow
const COCO_TO_18 = [0, null, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]; // null: the neck, which COCO lacks
const LARGEST_SHARE = 2; // a median coordinate up to this is a share of the canvas, not pixels

/** What is wrong with a text: a key of `words.js` and the values in that sentence. */
export class PoseError extends Error {
  constructor(key, values = {}) {
    super(`${key} ${JSON.stringify(values)}`);
    this.key = key;
    this.values = values;
  }
}

/** OpenPose JSON or POSE_KEYPOINT as text -> document. size: {width, height} for files that name no canvas. */
export function parse(text, size = null) {
  if (text.length > LIMITS.bytes) throw new PoseError("tooLong", { limit: LIMITS.bytes });
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new PoseError("noJson");
  }
  const frames = Array.isArray(data) ? data : [data];
  if (!frames.length || !frames.every((frame) => Array.isArray(frame?.people))) throw new PoseError("noPose");
  checkLimit(frames.length, LIMITS.frames, "tooManyFrames");
  const read = frames.map((frame) => readFrame(frame, size));
  checkLimit(sum(read.map((frame) => frame.width * frame.height)), LIMITS.filePixels, "tooManyPixels");
  return { frames: sharesToPixels(read) };
}

/** Document -> JSON text, as other tools read it: a mapping for one frame, else a list. */
export function serialise(document) {
  const frames = document.frames.map((frame) => ({
    people: frame.people.map((person) =>
      Object.fromEntries(PARTS.map((part) => [KEYS[part], person[part] && person[part].flat().map(rounded)])),
    ),
    canvas_height: frame.height,
    canvas_width: frame.width,
  }));
  return JSON.stringify(frames.length === 1 ? frames[0] : frames);
}

/** A tenth of a pixel: less is not seen, and digits make workflows long. */
export const rounded = (value) => Math.round(value * 10) / 10 || 0; // no -0

export const isSeen = (point) => point[2] > 0;
export const isPlaced = (point) => isSeen(point) || point[0] !== 0 || point[1] !== 0;

/** A copy of a document with one frame replaced. */
export function withFrame(document, index, frame) {
  return { frames: document.frames.map((old, i) => (i === index ? frame : old)) };
}

/** A copy of a frame with one person replaced. */
export function withPerson(frame, index, person) {
  return { ...frame, people: frame.people.map((old, i) => (i === index ? person : old)) };
}

/** The same person with every placed point mapped; missing points stay missing. map: [x, y] -> [x, y]. */
export function mapPerson(person, map, parts = PARTS) {
  const changed = { ...person };
  for (const part of parts) changed[part] = person[part] && person[part].map((point) => mapPoint(point, map));
  return changed;
}

export function mapPoint(point, map) {
  return isPlaced(point) ? [...map(point), point[2]] : point;
}

/** The frame on a canvas of another size: the pose keeps its shape, and its place in the middle. */
export function resizeFrame(frame, width, height) {
  const scale = Math.min(width / frame.width, height / frame.height);
  const [left, top] = [(width - frame.width * scale) / 2, (height - frame.height * scale) / 2];
  const people = frame.people.map((person) => mapPerson(person, ([x, y]) => [x * scale + left, y * scale + top]));
  return { width, height, people };
}

function readFrame(frame, size) {
  const width = readSide(frame.canvas_width || size?.width);
  const height = readSide(frame.canvas_height || size?.height);
  if (width * height > LIMITS.canvasPixels) throw new PoseError("tooManyPixels", { limit: LIMITS.canvasPixels });
  checkLimit(frame.people.length, LIMITS.people, "tooManyPeople");
  return { width, height, people: frame.people.map(readPerson) };
}

function readSide(value) {
  if (value === undefined || value === null) throw new PoseError("noCanvas");
  if (!(value >= 1 && value <= LIMITS.side)) throw new PoseError("badCanvas", { limit: LIMITS.side });
  return Math.floor(value);
}

function readPerson(data) {
  if (typeof data !== "object" || data === null) throw new PoseError("noPose");
  const points = readPoints(data, "body") ?? missing(BODY_POINTS);
  const person = { body: toBody18(points.slice(0, WHOLE_BODIES[points.length])) };
  const whole = WHOLE_BODIES[points.length];
  const rest = whole ? points.slice(whole + 6) : [];
  const found = { face: rest.slice(0, 68), left_hand: rest.slice(68, 89), right_hand: rest.slice(89) };
  for (const part of ["left_hand", "right_hand", "face"]) {
    const own = readPoints(data, part);
    person[part] = fits(own, part) ? own : fits(found[part], part) ? found[part] : null;
  }
  return person;
}

const missing = (count) => Array.from({ length: count }, () => [0, 0, 0]);
const fits = (points, part) => points !== null && points.length >= COUNTS[part][0] && points.length <= COUNTS[part][1];

function readPoints(data, part) {
  const flat = (data[KEYS[part]] ?? []).flat?.() ?? [null];
  if (!flat.length) return null;
  const good = flat.every((value) => Number.isFinite(value) && Math.abs(value) <= LIMITS.coordinate);
  if (!good || flat.length % 3) throw new PoseError("badNumbers", { key: KEYS[part], limit: LIMITS.coordinate });
  return Array.from({ length: flat.length / 3 }, (_, i) => flat.slice(3 * i, 3 * i + 3));
}

function toBody18(points) {
  if (points.length === 18) return points;
  if (points.length === 25) return BODY_25_TO_18.map((index) => points[index]);
  if (points.length !== 17) throw new PoseError("badBody", { count: points.length });
  const [left, right] = [points[5], points[6]];
  const neck = [(left[0] + right[0]) / 2, (left[1] + right[1]) / 2, Math.min(left[2], right[2])];
  return COCO_TO_18.map((index) => (index === null ? neck : points[index]));
}

/** Some tools write shares of the canvas. As in Python, the median of all visible coordinates decides for the file. */
function sharesToPixels(frames) {
  const people = frames.flatMap((frame) => frame.people);
  const points = people.flatMap((person) => PARTS.flatMap((part) => person[part] ?? [])).filter(isSeen);
  const sizes = points.flatMap(([x, y]) => [Math.abs(x), Math.abs(y)]).sort((a, b) => a - b);
  const middle = sizes.length / 2;
  const median = sizes.length ? (sizes[Math.ceil(middle) - 1] + sizes[Math.floor(middle)]) / 2 : Infinity;
  if (median > LARGEST_SHARE) return frames;
  const toPixels = (frame) => (person) => mapPerson(person, ([x, y]) => [x * frame.width, y * frame.height]);
  return frames.map((frame) => ({ ...frame, people: frame.people.map(toPixels(frame)) }));
}

function checkLimit(count, limit, key) {
  if (count > limit) throw new PoseError(key, { count, limit });
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
