// Draws the pose as the node's hint will be, the picture behind it, and what is selected.
import { isPlaced, isSeen } from "./document.js";
import { BODY_COLOURS, BODY_LIMBS, HAND_BONES, LIMB_SHADE, STROKES } from "./tables.js";
import { handles, selectionBox } from "./view.js";

const REFERENCE_SIDE = 512; // strokes have their sizes at this shorter side
const FACE_COLOUR = "#fff";
const HAND_COLOUR = "#00f";
const MARK = "#fff";
const HANDLE_SIZE = 9;

const rgb = (colour, shade = 1) => `rgb(${colour.map((channel) => Math.floor(channel * shade)).join(",")})`;

/** Everything. options: {picture, opacity, stroke, hover, accent, outside}; width, height: of the editor in its pixels. */
export function draw(context, model, view, { width, height }, options) {
  context.clearRect(0, 0, width, height);
  context.fillStyle = options.outside;
  context.fillRect(0, 0, width, height);
  const { frame } = model;
  const [left, top] = view.toScreen([0, 0]);
  const [wide, high] = [frame.width * view.scale, frame.height * view.scale];
  context.fillStyle = "#000";
  context.fillRect(left, top, wide, high);
  if (options.picture) {
    context.globalAlpha = options.opacity;
    context.drawImage(options.picture, left, top, wide, high);
    context.globalAlpha = 1;
  }
  const unit = (Math.min(frame.width, frame.height) / REFERENCE_SIDE) * options.stroke * view.scale;
  const sizes = Object.fromEntries(Object.entries(STROKES).map(([name, size]) => [name, size * unit]));
  for (const person of frame.people) drawPerson(context, person, view, sizes);
  drawEdge(context, [left, top, wide, high], [width, height], options.outside);
  drawMarks(context, model, view, sizes, options);
}

/** What leaves the canvas is cut off in the hint: here it is pale. */
function drawEdge(context, [left, top, wide, high], [width, height], outside) {
  context.save();
  context.globalAlpha = 0.7;
  context.fillStyle = outside;
  context.beginPath();
  context.rect(0, 0, width, height);
  context.rect(left, top, wide, high);
  context.fill("evenodd");
  context.restore();
}

function drawPerson(context, person, view, sizes) {
  BODY_LIMBS.forEach(([start, end], i) => {
    const [a, b] = [person.body[start], person.body[end]];
    if (isSeen(a) && isSeen(b)) drawLimb(context, view.toScreen(a), view.toScreen(b), sizes.limb, rgb(BODY_COLOURS[i], LIMB_SHADE));
  });
  person.body.forEach((point, i) => isSeen(point) && drawDot(context, view.toScreen(point), sizes.joint, rgb(BODY_COLOURS[i])));
  for (const hand of [person.left_hand, person.right_hand]) if (hand) drawHand(context, hand, view, sizes);
  for (const point of person.face ?? []) if (isSeen(point)) drawDot(context, view.toScreen(point), sizes.face, FACE_COLOUR);
}

function drawLimb(context, [ax, ay], [bx, by], halfWidth, colour) {
  const angle = Math.atan2(by - ay, bx - ax);
  context.fillStyle = colour;
  context.beginPath();
  context.ellipse((ax + bx) / 2, (ay + by) / 2, Math.hypot(bx - ax, by - ay) / 2, halfWidth, angle, 0, 2 * Math.PI);
  context.fill();
}

function drawHand(context, hand, view, sizes) {
  HAND_BONES.forEach(([start, end], i) => {
    if (!isSeen(hand[start]) || !isSeen(hand[end])) return;
    context.strokeStyle = `hsl(${(360 * i) / HAND_BONES.length} 100% 50%)`;
    context.lineWidth = sizes.bone;
    context.beginPath();
    context.moveTo(...view.toScreen(hand[start]));
    context.lineTo(...view.toScreen(hand[end]));
    context.stroke();
  });
  for (const point of hand) if (isSeen(point)) drawDot(context, view.toScreen(point), sizes.hand, HAND_COLOUR);
}

function drawDot(context, [x, y], radius, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, Math.max(radius, 0.5), 0, 2 * Math.PI);
  context.fill();
}

// ---- marks of the editor, which are not in the hint

function drawMarks(context, model, view, sizes, { hover, accent }) {
  const { person, selection } = model;
  if (person) {
    for (const [part, points] of Object.entries(person)) {
      for (const point of points ?? []) if (isPlaced(point) && !isSeen(point)) ring(context, view.toScreen(point), radiusOf(part, sizes), "#999", [3, 3]);
    }
  }
  const box = selectionBox(model, view);
  if (box) drawBox(context, box, accent);
  const marked = [[hover, MARK], [selection, accent]];
  for (const [place, colour] of marked) {
    const point = place && place.point >= 0 && model.frame.people[place.person]?.[place.part]?.[place.point];
    if (point && isPlaced(point)) ring(context, view.toScreen(point), radiusOf(place.part, sizes) + 3, colour, []);
  }
}

const radiusOf = (part, sizes) => Math.max({ body: sizes.joint, face: sizes.face }[part] ?? sizes.hand, 3);

function ring(context, [x, y], radius, colour, dash) {
  for (const [width, stroke] of [[4, "rgba(0,0,0,0.6)"], [2, colour]]) {
    context.setLineDash(dash);
    [context.lineWidth, context.strokeStyle] = [width, stroke];
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.stroke();
  }
  context.setLineDash([]);
}

function drawBox(context, box, accent) {
  [context.lineWidth, context.strokeStyle] = [1.5, accent];
  context.setLineDash([5, 4]);
  context.strokeRect(box.left, box.top, box.right - box.left, box.bottom - box.top);
  context.setLineDash([]);
  const { turn, ...corners } = handles(box);
  context.beginPath();
  context.moveTo(turn[0], box.top);
  context.lineTo(...turn);
  context.stroke();
  context.fillStyle = MARK;
  for (const [x, y] of Object.values(corners)) {
    context.fillRect(x - HANDLE_SIZE / 2, y - HANDLE_SIZE / 2, HANDLE_SIZE, HANDLE_SIZE);
    context.strokeRect(x - HANDLE_SIZE / 2, y - HANDLE_SIZE / 2, HANDLE_SIZE, HANDLE_SIZE);
  }
  drawDot(context, turn, HANDLE_SIZE / 2 + 1, accent);
}
