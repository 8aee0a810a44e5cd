// The reliability diagram: how many pixels are right among those that the network is so sure of. On the diagonal it can be believed.
import { chart, line, style } from "./curves.js";

export function mountReliability(root) {
  const points = JSON.parse(document.getElementById(root.dataset.points).textContent);
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
  const axis = (text) => ({ type: "linear", min: 0, max: 1, title: text });
  chart(root.querySelector("canvas"), sets, { x: axis("Confidence"), y: axis("Share that is right"), mode: "nearest" });
}

function toPoints(rows) {
  return rows.map(([x, y]) => ({ x, y }));
}
