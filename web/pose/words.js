// The editor's texts, in English and Korean. {name} stands for a value.
const ENGLISH = {
  canvas: "Pose. Drag joints; arrow keys move the selected one, comma and period select the next.",
  undo: "Undo (Ctrl+Z)",
  redo: "Redo (Ctrl+Y)",
  add: "Add a person (A)",
  copy: "Copy the person (Ctrl+D)",
  mirror: "Mirror the person (M)",
  remove: "Delete the person (Delete)",
  left_hand: "Left hand: add or remove",
  right_hand: "Right hand: add or remove",
  face: "Face: add or remove",
  hide: "Hide or show the joint (H)",
  showAll: "Show all joints of the person, missing ones too",
  keepLengths: "Keep limb lengths while dragging (L)",
  snapLimbs: "Snap limb lengths to usual proportions",
  json: "Load or save as JSON",
  fit: "Show the whole canvas (0)",
  reset: "Start again from the linked pose, or from one standing person",
  width: "Width",
  height: "Height",
  fromPicture: "Canvas as large as the linked image",
  opacity: "Image",
  frame: "Frame",
  jsonText: "OpenPose JSON",
  use: "Use this",
  open: "Open file",
  save: "Save file",
  close: "Close",
  nothing: "People: {count}. Click a joint to select it.",
  person: "Person {number}",
  hidden: "hidden",
  unedited: "Not edited yet",
  fromLink: "From the link; an edit makes a copy",
  linkUnused: "Edited: the linked pose is not used",
  linkWaits: "Run once to see the linked pose",
  tooLong: "The text is longer than {limit} characters.",
  noJson: "This is not valid JSON.",
  noPose: 'This is no pose: expected a mapping with a list of "people", or a list of those.',
  tooManyFrames: "{count} frames; expected at most {limit}.",
  tooManyPixels: "The canvas is too large; expected at most {limit} pixels.",
  tooManyPeople: "{count} people in a frame; expected at most {limit}.",
  noCanvas: "The pose names no canvas size.",
  badCanvas: "A canvas side must be from 1 to {limit} pixels.",
  badNumbers: "{key} must hold triples of numbers up to {limit}.",
  badBody: "A body of {count} points; expected 17, 18, 25, 133 or 134.",
  standing: "Standing",
  t_pose: "T-pose",
  arms_up: "Arms up",
  waving: "Waving",
  walking: "Walking",
  running: "Running",
  sitting: "Sitting",
  hands_on_hips: "Hands on hips",
  points: {
    body: [
      "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
      "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle", "right eye", "left eye",
      "right ear", "left ear",
    ], // prettier-ignore
    left_hand: "left hand {number}",
    right_hand: "right hand {number}",
    face: "face {number}",
  },
  parts: { left_hand: "left hand", right_hand: "right hand", face: "face" },
};

const KOREAN = {
  canvas: "자세. 관절을 끌어 옮기세요. 화살표 키는 선택한 관절을 움직이고, 쉼표와 마침표는 다음 관절을 선택합니다.",
  undo: "실행 취소 (Ctrl+Z)",
  redo: "다시 실행 (Ctrl+Y)",
  add: "사람 추가 (A)",
  copy: "사람 복사 (Ctrl+D)",
  mirror: "사람 좌우 반전 (M)",
  remove: "사람 삭제 (Delete)",
  left_hand: "왼손 추가 또는 제거",
  right_hand: "오른손 추가 또는 제거",
  face: "얼굴 추가 또는 제거",
  hide: "관절 숨기기 또는 보이기 (H)",
  showAll: "빠진 관절까지 모두 보이기",
  keepLengths: "끌 때 팔다리 길이 유지 (L)",
  snapLimbs: "팔다리 길이를 보통 비율로 맞추기",
  json: "JSON으로 불러오기 또는 저장",
  fit: "캔버스 전체 보기 (0)",
  reset: "연결된 자세 또는 서 있는 한 사람으로 다시 시작",
  width: "너비",
  height: "높이",
  fromPicture: "연결된 이미지와 같은 크기의 캔버스",
  opacity: "이미지",
  frame: "프레임",
  jsonText: "OpenPose JSON",
  use: "사용",
  open: "파일 열기",
  save: "파일 저장",
  close: "닫기",
  nothing: "{count}명. 관절을 눌러 선택하세요.",
  person: "사람 {number}",
  hidden: "숨김",
  unedited: "아직 편집하지 않음",
  fromLink: "연결된 자세. 편집하면 사본이 만들어집니다",
  linkUnused: "편집됨: 연결된 자세는 쓰이지 않습니다",
  linkWaits: "한 번 실행하면 연결된 자세가 보입니다",
  tooLong: "글이 {limit}자보다 깁니다.",
  noJson: "올바른 JSON이 아닙니다.",
  noPose: '자세가 아닙니다. "people" 목록이 있는 객체나 그 목록이어야 합니다.',
  tooManyFrames: "프레임 {count}개, 최대 {limit}개까지입니다.",
  tooManyPixels: "캔버스가 너무 큽니다. 최대 {limit}픽셀까지입니다.",
  tooManyPeople: "한 프레임에 {count}명, 최대 {limit}명까지입니다.",
  noCanvas: "자세에 캔버스 크기가 없습니다.",
  badCanvas: "캔버스의 변은 1에서 {limit}픽셀까지여야 합니다.",
  badNumbers: "{key}에는 {limit} 이하 숫자가 세 개씩 있어야 합니다.",
  badBody: "몸의 점이 {count}개입니다. 17, 18, 25, 133 또는 134개여야 합니다.",
  standing: "서기",
  t_pose: "T 자세",
  arms_up: "두 팔 들기",
  waving: "손 흔들기",
  walking: "걷기",
  running: "달리기",
  sitting: "앉기",
  hands_on_hips: "허리에 손",
  points: {
    body: [
      "코", "목", "오른쪽 어깨", "오른쪽 팔꿈치", "오른쪽 손목", "왼쪽 어깨", "왼쪽 팔꿈치", "왼쪽 손목", "오른쪽 엉덩이",
      "오른쪽 무릎", "오른쪽 발목", "왼쪽 엉덩이", "왼쪽 무릎", "왼쪽 발목", "오른쪽 눈", "왼쪽 눈", "오른쪽 귀", "왼쪽 귀",
    ], // prettier-ignore
    left_hand: "왼손 {number}",
    right_hand: "오른손 {number}",
    face: "얼굴 {number}",
  },
  parts: { left_hand: "왼손", right_hand: "오른손", face: "얼굴" },
};

export const LANGUAGES = { en: ENGLISH, ko: KOREAN };

/** A function from key and values to text, in a language; English for all that have no texts here. */
export function words(language) {
  const texts = LANGUAGES[language] ?? ENGLISH;
  const say = (key, values = {}) => fill(texts[key] ?? ENGLISH[key] ?? key, values);
  say.selection = ({ person, part, point }) => {
    const name = say("person", { number: person + 1 });
    if (!part) return name;
    if (point < 0) return `${name}: ${texts.parts[part]}`;
    const known = texts.points[part];
    return `${name}: ${Array.isArray(known) ? known[point] : fill(known, { number: point })}`;
  };
  return say;
}

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => (values[name] ?? "").toLocaleString());
