// Icons as paths in a box of 24 x 24, drawn as lines.
export const ICONS = {
  undo: "M9 14 4 9l5-5M4 9h10a6 6 0 0 1 0 12h-3",
  redo: "m15 14 5-5-5-5M20 9H10a6 6 0 0 0 0 12h3",
  add: "M10 4a3 3 0 1 1 0 6 3 3 0 0 1 0-6ZM4 21v-3a6 6 0 0 1 10-4M18 14v7M14.5 17.5h7",
  copy: "M8 8h12v12H8zM16 8V4H4v12h4",
  mirror: "M12 3v18M9 7 3 17h6zM15 7l6 10h-6z",
  remove: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v6M14 11v6",
  left_hand: "M8 21c-3-3-4-5-4-8l2-1 2 3V5a1.5 1.5 0 0 1 3 0v6-7a1.5 1.5 0 0 1 3 0v7-6a1.5 1.5 0 0 1 3 0v7-4a1.5 1.5 0 0 1 3 0v7c0 3-1 4-2 6z",
  right_hand: "M16 21c3-3 4-5 4-8l-2-1-2 3V5a1.5 1.5 0 0 0-3 0v6-7a1.5 1.5 0 0 0-3 0v7-6a1.5 1.5 0 0 0-3 0v7-4a1.5 1.5 0 0 0-3 0v7c0 3 1 4 2 6z",
  face: "M12 3a9 9 0 1 1 0 18 9 9 0 0 1 0-18ZM9 9v1M15 9v1M8 14c2 3 6 3 8 0",
  hide: "M3 12c4-7 14-7 18 0-4 7-14 7-18 0ZM12 9a3 3 0 1 1 0 6 3 3 0 0 1 0-6ZM4 4l16 16",
  showAll: "M3 12c4-7 14-7 18 0-4 7-14 7-18 0ZM12 9a3 3 0 1 1 0 6 3 3 0 0 1 0-6Z",
  keepLengths: "M6 11h12v10H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  snapLimbs: "m3 16 13-13 5 5L8 21zM7 12l2 2M10 9l2 2M13 6l2 2",
  json: "M9 3c-5 0-1 9-5 9 4 0 0 9 5 9M15 3c5 0 1 9 5 9-4 0 0 9-5 9",
  fit: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  reset: "M4 4v6h6M4 10a8.5 8.5 0 1 1 0 5",
  fromPicture: "M3 5h18v14H3zM3 16l5-5 5 5 3-3 5 4M15.5 8.5v1",
};

/** An <svg> element of an icon. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS(svg.namespaceURI, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}
