// The reliability diagram: how many pixels are right among those that the network is so sure of. On the diagonal it can be believed.
import { chart, line, style } from "./curves.js";
import { attribute, find, readJson } from "./page.js";

/** @import { Axis } from "./curves.js" */
/** @typedef {[confidence: number, accuracy: number]} Bin */

/** @param {HTMLElement} root */
export function mountReliability(root) {
  /** @type {{ foreground: Bin[], all: Bin[] }} */
  const points = readJson(attribute(root, "data-points"));
  const sets = [
    { ...line("Where there is something", style("--tblr-primary")), data: toPoints(points.foreground), pointRadius: 3 },
    { ...line("All pixels", style("--tblr-orange"), [6, 4]), data: toPoints(points.all), pointRadius: 3 },
    {
      ...line("Perfect", style("--tblr-secondary"), [2, 3]),
      data: [
        { x: 0, y: 0 },
        { x: 1, y: 1 },
      ],
      pointRadius: 0,
      borderWidth: 1,
    },
  ];
  /** @param {string} title @returns {Axis} */
  const axis = (title) => ({ type: "linear", min: 0, max: 1, title });
  chart(find(root, "canvas", HTMLCanvasElement), sets, {
    x: axis("Confidence"),
    y: axis("Share that is right"),
    mode: "nearest",
  });
}

/** @param {Bin[]} rows */
function toPoints(rows) {
  return rows.map(([x, y]) => ({ x, y }));
}
