// The Pose Editor's modules without a browser, for tests/unit/test_pose_editor.py: JSON on stdin, JSON on stdout.
//
// in: {folder, texts: [{text, size}], seeds}. out: {parsed: [text or {problem}], templates, checks: {name: "" or why it
// failed}, edited: [texts after random edits]}.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const given = JSON.parse(readFileSync(0, "utf-8"));
const load = (name) => import(pathToFileURL(`${given.folder}/${name}.js`));
const [{ parse, serialise, PoseError, PARTS, isSeen }, figure, { PoseModel, NOTHING }, view, tables, { LANGUAGES, words }, { pressKey }] =
  await Promise.all(["document", "figure", "model", "view", "tables", "words", "keyboard"].map(load));

const near = (a, b, limit = 1e-6) => assert.ok(Math.abs(a - b) <= limit, `${a} is not ${b}`);
const length = ({ body }, [a, b]) => Math.hypot(body[a][0] - body[b][0], body[a][1] - body[b][1]);
const withAll = () => PARTS.slice(1).reduce(figure.togglePart, figure.templatePerson("running", 512, 768));

function random(seed) {
  return () => {
    seed = (seed * 1664525 + 1013904223) % 4294967296;
    return seed / 4294967296;
  };
}

/** A model after some random edits, as a user makes them. */
function edit(seed, count) {
  const next = random(seed);
  const choose = (values) => values[Math.floor(next() * values.length)];
  const model = new PoseModel();
  const actions = [
    () => model.addTemplate(choose(Object.keys(tables.TEMPLATES))), () => model.copy(), () => model.mirror(), () => model.remove(),
    () => model.togglePart(choose(PARTS.slice(1))), () => model.toggleSeen(), () => model.showAll(), () => model.snapLimbs(),
    () => model.nextPerson(choose([1, -1])), () => model.nextPoint(choose([1, -1, 7])), () => model.undo(), () => model.redo(),
    () => model.nudge(next() * 90 - 45, next() * 90 - 45, { withChildren: next() < 0.3, keepLengths: next() < 0.3 }),
    () => {
      if (!model.person) return;
      model.startDrag();
      for (let i = 0; i < 3; i++) model.drag((person) => figure.mirrorPerson(person));
      choose([() => model.endDrag(), () => model.cancelDrag()])();
    },
  ]; // prettier-ignore
  for (let i = 0; i < count; i++) choose(actions)();
  return model;
}

const checks = {
  "nothing edited is an empty text": () => {
    const model = new PoseModel();
    assert.equal(model.text, "");
    model.select({ person: 0 });
    assert.equal(model.text, "");
    model.addTemplate("sitting");
    model.undo();
    assert.equal(model.text, "");
    model.redo();
    assert.equal(JSON.parse(model.text).people.length, 2);
    model.reset();
    assert.equal(model.text, "");
    model.undo();
    assert.equal(JSON.parse(model.text).people.length, 2);
  },
  "a text is read and written back": () => {
    const model = edit(3, 40);
    model.addTemplate("waving");
    const again = new PoseModel();
    again.load(model.text);
    assert.equal(again.text, model.text);
    assert.deepEqual(again.document, model.document);
  },
  "a text that cannot be read stays until the first edit": () => {
    const model = new PoseModel();
    model.load("{");
    assert.equal(model.problem.key, "noJson");
    assert.equal(model.text, "{");
    model.addTemplate("standing");
    assert.equal(model.problem, null);
    assert.equal(JSON.parse(model.text).people.length, 2);
  },
  "undo goes back to the start and redo to the end": () => {
    for (let seed = 0; seed < 20; seed++) {
      const model = edit(seed, 30);
      const end = model.text;
      while (model.future.length) model.redo();
      const last = model.text;
      while (model.past.length) model.undo();
      assert.equal(model.text, "");
      while (model.future.length) model.redo();
      assert.equal(model.text, last);
      assert.ok(typeof end === "string");
    }
  },
  "a linked pose is shown until something is edited": () => {
    const model = new PoseModel();
    const other = edit(5, 30);
    other.addTemplate("standing");
    model.setLinks(other.text, { width: 640, height: 480 });
    assert.equal(model.text, "");
    assert.equal(serialise(model.document), other.text);
    model.select({ person: 0 });
    model.nudge(1, 1);
    const edited = model.text;
    model.setLinks(null, null);
    assert.equal(model.text, edited);
    model.reset();
    assert.equal(model.frame.people.length, 1);
    model.setLinks(null, { width: 640, height: 480 });
    assert.equal(model.frame.width, 640);
  },
  "a drag is one step, and a cancelled one is none": () => {
    const model = new PoseModel();
    model.select({ person: 0, part: "body", point: 4 });
    const before = model.document;
    model.startDrag();
    model.drag((person) => figure.moveJoint(person, 4, [10, 20]));
    model.drag((person) => figure.moveJoint(person, 4, [30, 40]));
    model.endDrag();
    assert.deepEqual(model.person.body[4], [30, 40, 1]);
    assert.equal(model.past.length, 1);
    model.startDrag();
    model.drag((person) => figure.moveJoint(person, 4, [1, 1]));
    model.cancelDrag();
    assert.deepEqual(model.person.body[4], [30, 40, 1]);
    model.undo();
    assert.equal(model.document, before);
    model.startDrag(); // a click without a move
    model.endDrag();
    assert.equal(model.past.length, 0);
  },
  "a hand goes along with its wrist, a face with the nose": () => {
    for (const [joint, part, other] of [[4, "right_hand", "left_hand"], [7, "left_hand", "face"], [0, "face", "right_hand"]]) {
      const person = withAll();
      const [x, y] = person.body[joint];
      const moved = figure.moveJoint(person, joint, [x + 5, y - 3]);
      person[part].forEach(([px, py], i) => {
        near(moved[part][i][0], px + 5);
        near(moved[part][i][1], py - 3);
      });
      assert.deepEqual(moved[other], person[other]);
    }
  },
  "a new hand lies along the forearm, with the thumb to the body": () => {
    const standing = figure.templatePerson("standing", 512, 512);
    for (const [part, wrist, inwards] of [["right_hand", 4, 1], ["left_hand", 7, -1]]) {
      const hand = figure.togglePart(standing, part)[part];
      near(hand[0][0], standing.body[wrist][0]);
      near(hand[0][1], standing.body[wrist][1]);
      assert.ok(hand[12][1] > hand[0][1] + 20); // the middle finger points down, as the arm does
      assert.ok((hand[4][0] - hand[20][0]) * inwards > 0);
    }
  },
  "with kept lengths a joint turns about its parent": () => {
    for (let joint = 0; joint < 18; joint++) {
      const person = withAll();
      const turned = figure.turnJoint(person, joint, [77, 333]);
      for (const limb of tables.BODY_LIMBS) near(length(turned, limb), length(person, limb), 1e-6);
      const stays = figure.subtree(joint);
      person.body.forEach((point, i) => joint === figure.ROOT || stays.includes(i) || assert.deepEqual(turned.body[i], point));
    }
  },
  "the tree of joints has every joint once": () => {
    assert.deepEqual(figure.subtree(figure.ROOT).sort((a, b) => a - b), [...Array(18).keys()]);
    assert.deepEqual(figure.subtree(2), [2, 3, 4]);
  },
  "mirrored twice is the same": () => {
    const person = withAll();
    const once = figure.mirrorPerson(person);
    assert.notDeepEqual(once, person);
    const twice = figure.mirrorPerson(once);
    for (const part of PARTS) twice[part].forEach((point, i) => point.forEach((value, axis) => near(value, person[part][i][axis], 1e-9)));
    // The right side of the person is on the right of the picture then.
    assert.ok(person.body[2][0] < person.body[5][0] && once.body[2][0] < once.body[5][0]);
    near(once.left_hand[0][0], once.body[7][0]);
    const symmetric = figure.togglePart(figure.templatePerson("standing", 512, 512), "face").face;
    const face = figure.mirrorPerson({ body: figure.templatePerson("standing", 512, 512).body, left_hand: null, right_hand: null, face: symmetric }).face;
    symmetric.forEach((point, i) => near(face[i][0], point[0], 1e-6)); // each point of a symmetric face meets its twin
  },
  "snapped limbs have usual proportions and the same directions": () => {
    const standing = figure.templatePerson("standing", 512, 512);
    let person = figure.moveJoint(figure.moveJoint(standing, 4, [20, 300]), 10, [400, 500]);
    const snapped = figure.snapLimbs(person);
    for (const limb of tables.BODY_LIMBS) near(length(snapped, limb), length(standing, limb), 1e-6);
    const angle = ({ body }, [a, b]) => Math.atan2(body[b][1] - body[a][1], body[b][0] - body[a][0]);
    for (const limb of tables.BODY_LIMBS) near(angle(snapped, limb), angle(person, limb), 1e-9);
    const again = figure.snapLimbs(snapped);
    again.body.forEach((point, i) => near(point[0], snapped.body[i][0], 1e-6));
  },
  "a hidden joint keeps its place; missing ones get one": () => {
    const model = new PoseModel();
    model.select({ person: 0, part: "body", point: 3 });
    const place = model.person.body[3].slice(0, 2);
    model.toggleSeen();
    assert.ok(!isSeen(model.person.body[3]));
    model.toggleSeen();
    near(model.person.body[3][0], place[0], 0.1);
    const full = figure.templatePerson("standing", 300, 500);
    const holes = { ...full, body: full.body.map((point, i) => ([4, 7, 10, 13].includes(i) ? [0, 0, 0] : point)) };
    const shown = figure.showAll(holes);
    assert.ok(shown.body.every(isSeen));
    for (const joint of [4, 7, 10, 13]) assert.ok(Math.hypot(shown.body[joint][0] - full.body[joint][0], shown.body[joint][1] - full.body[joint][1]) < 80);
    assert.ok(figure.showAll({ ...full, body: full.body.map(() => [0, 0, 0]) }).body.every(isSeen));
  },
  "a person without a visible body can be edited": () => {
    const empty = { body: Array(18).fill([0, 0, 0]), left_hand: null, right_hand: null, face: null };
    for (const change of [figure.mirrorPerson, figure.snapLimbs, figure.showAll, ...PARTS.slice(1).map((part) => (one) => figure.togglePart(one, part))]) {
      const points = PARTS.flatMap((part) => change(empty)[part] ?? []);
      assert.ok(points.flat().every(Number.isFinite));
    }
    assert.equal(figure.bounds(empty), null);
  },
  "a click takes the nearest joint, a limb the person, a frame its handles": () => {
    const model = new PoseModel();
    const seen = new view.View();
    seen.fit(model.frame, 400, 500);
    const at = (joint) => seen.toScreen(model.frame.people[0].body[joint]);
    assert.deepEqual(view.pick(model, seen, [at(4)[0] + 3, at(4)[1]], 10), { person: 0, part: "body", point: 4 });
    const middle = [0, 1].map((axis) => (at(8)[axis] + at(9)[axis]) / 2);
    assert.deepEqual(view.pick(model, seen, middle, 10), { person: 0, part: null, point: -1 });
    assert.equal(view.pick(model, seen, [5, 5], 10), null);
    model.select({ person: 0 });
    const box = view.selectionBox(model, seen);
    for (const [handle, place] of Object.entries(view.handles(box))) assert.deepEqual(view.pick(model, seen, place, 10), { handle });
    const [x, y] = seen.toCanvas(seen.toScreen([12, 34]));
    near(x, 12);
    near(y, 34);
    seen.zoom(2, at(4));
    assert.equal(view.pick(model, seen, at(4), 10).point, 4);
  },
  "another size of the canvas keeps the shape of the pose": async () => {
    const { resizeFrame } = await load("document");
    const frame = new PoseModel().frame;
    const resized = resizeFrame(frame, 1024, 512);
    for (const limb of tables.BODY_LIMBS) near(length(resized.people[0], limb), length(frame.people[0], limb), 1e-9);
    near(resized.people[0].body[1][0], 512, 1e-9);
  },
  "keys do what the help says": () => {
    const model = new PoseModel();
    const editor = { model, settings: { keepLengths: false }, setKeepLengths: (value) => (editor.settings.keepLengths = value), fit() {}, zoom() {} };
    const press = (key, more = {}) => pressKey(editor, { key, ...more });
    assert.equal(press("Delete"), true); // nothing is selected: still not ComfyUI's key, which would delete the node
    assert.equal(press("ArrowLeft"), false);
    assert.ok(press("PageDown") && model.selection.person === 0);
    assert.ok(press(".") && model.selection.point === 0 && press(",") && press(".") && press("."));
    const [x] = model.person.body[1];
    assert.ok(press("ArrowRight", { shiftKey: true }));
    near(model.person.body[1][0], x + 10, 0.1);
    assert.ok(press("z", { ctrlKey: true }) && press("Z", { ctrlKey: true, shiftKey: true }) && press("z", { metaKey: true }));
    assert.ok(press("d", { ctrlKey: true }) && model.frame.people.length === 2);
    assert.ok(press("a") && model.frame.people.length === 3);
    assert.ok(press("L") && editor.settings.keepLengths);
    assert.ok(press("Escape") && model.selection.person === -1);
    assert.equal(press("Escape"), false);
    for (const key of ["q", "Enter", "F5"]) assert.equal(press(key), false);
    assert.equal(press("s", { ctrlKey: true }), false);
  },
  "at most as many people as Python reads": () => {
    const model = new PoseModel();
    const one = figure.templatePerson("standing", 64, 64);
    model.replace({ frames: [{ width: 64, height: 64, people: Array(tables.LIMITS.people).fill(one) }] });
    model.add(one);
    assert.equal(model.frame.people.length, tables.LIMITS.people);
  },
  "both languages have the same texts": () => {
    const keys = (texts) => Object.entries(texts).flatMap(([key, value]) => (typeof value === "object" ? keys(value).map((k) => `${key}.${k}`) : [key])).sort();
    assert.deepEqual(keys(LANGUAGES.ko), keys(LANGUAGES.en));
    for (const [key, text] of Object.entries(LANGUAGES.en)) {
      if (typeof text === "string") assert.deepEqual(LANGUAGES.ko[key].match(/\{\w+\}/g)?.sort(), text.match(/\{\w+\}/g)?.sort(), key);
    }
    for (const name of Object.keys(tables.TEMPLATES)) assert.ok(LANGUAGES.en[name], name);
    assert.equal(words("de")("width"), "Width");
    assert.equal(words("ko").selection({ ...NOTHING, person: 0, part: "body", point: 0 }), "사람 1: 코");
    assert.equal(words("en").selection({ person: 1, part: "face", point: -1 }), "Person 2: face");
  },
};

function attempt(action) {
  try {
    return action();
  } catch (error) {
    if (error instanceof PoseError) return { problem: error.key, said: words("en")(error.key, error.values) };
    throw error;
  }
}

const results = {};
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    results[name] = "";
  } catch (error) {
    results[name] = error.stack;
  }
}
process.stdout.write(
  JSON.stringify({
    checks: results,
    parsed: given.texts.map(({ text, size }) => attempt(() => serialise(parse(text, size)))),
    templates: Object.fromEntries(Object.keys(tables.TEMPLATES).map((name) => [name, figure.templatePerson(name, 300, 500).body])),
    edited: Array.from({ length: given.seeds }, (_, seed) => edit(seed + 100, 40).text),
  }),
);
