// Loss and Dice of every epoch, drawn by Chart.js and read again while the training runs. The same numbers as a table.
import { attribute, find, messageOf } from "./page.js";

const READ_EVERY_MS = 3000;
const TABLE_ROWS = 200;

/** @import { ChartDataset, ScriptableContext } from "chart.js" */
/** @typedef {ChartDataset<"line", (number | null)[] | { x: number, y: number }[]>} Line */
/** @typedef {{ type?: "linear", min?: number, max?: number, offset?: boolean, title?: string }} Axis */
/** @typedef {"train_loss" | "val_loss" | "val_dice" | "val_iou"} Measure */
/** @typedef {{ epoch: number, images_per_second: number | null } & Record<Measure, number | null>} Epoch */

/**
 * The value of a CSS variable.
 * @param {string} name
 */
export function style(name) {
  return getComputedStyle(document.body).getPropertyValue(name).trim();
}

/**
 * Two points make no line to speak of: then they are drawn as dots.
 * @param {ScriptableContext<"line">} context
 */
const visibleWhenFew = ({ dataset }) => (dataset.data.length < 3 ? 4 : 0);

/**
 * A line without data yet.
 * @param {string} label
 * @param {string} color
 * @param {number[]} dash
 * @returns {Line}
 */
export function line(label, color, dash = []) {
  return {
    label,
    data: [],
    borderColor: color,
    backgroundColor: color,
    borderDash: dash,
    borderWidth: 2,
    pointRadius: visibleWhenFew,
    pointHitRadius: 12,
    tension: 0.15,
  };
}

/**
 * Axes: `title` is their text, the rest is Chart.js's. Epochs along x unless told otherwise.
 * @param {HTMLCanvasElement} canvas
 * @param {Line[]} datasets
 * @param {{ x?: Axis, y?: Axis, mode?: "index" | "nearest" }} axes
 */
export function chart(canvas, datasets, { x = { offset: true, title: "Epoch" }, y = {}, mode = "index" }) {
  const { color: ink, fontFamily: family } = getComputedStyle(canvas.closest(".plot") ?? canvas);
  const grid = "rgba(128, 128, 128, .25)";
  /** @param {string | undefined} text */
  const title = (text) => ({ display: Boolean(text), text, color: ink });
  Chart.defaults.font.family = family;
  return new Chart(canvas, {
    type: "line",
    data: { labels: /** @type {number[]} */ ([]), datasets },
    options: {
      animation: false,
      maintainAspectRatio: false,
      interaction: { mode, intersect: false },
      scales: {
        x: {
          ...x,
          title: title(x.title),
          ticks: { color: ink, maxTicksLimit: 10, maxRotation: 0 },
          grid: { display: false },
        },
        y: { ...y, title: title(y.title), ticks: { color: ink, maxTicksLimit: 6 }, grid: { color: grid } },
      },
      plugins: { legend: { position: "bottom", labels: { color: ink, usePointStyle: true, pointStyle: "line" } } },
    },
  });
}

/**
 * All pages of the list of epochs.
 * @param {string} url
 * @returns {Promise<Epoch[]>}
 */
async function readEpochs(url) {
  const rows = [];
  for (let next = url; next; ) {
    const response = await fetch(next, { headers: { Accept: "application/json" } });
    if (!response.ok) throw new Error(`status ${response.status}`);
    const page = await response.json();
    rows.push(...page.results);
    next = page.next;
  }
  return rows;
}

/** @param {number | null} value */
function number(value, digits = 4) {
  return typeof value === "number" ? value.toFixed(digits) : "–";
}

/**
 * @param {HTMLElement} body
 * @param {Epoch[]} rows
 */
function fillTable(body, rows) {
  const lines = rows.slice(-TABLE_ROWS).map((row) => {
    const tr = document.createElement("tr");
    const cells = [
      row.epoch,
      number(row.train_loss),
      number(row.val_loss),
      number(row.val_dice),
      number(row.val_iou),
      number(row.images_per_second, 1),
    ];
    for (const text of cells) {
      const td = document.createElement("td");
      td.textContent = String(text);
      tr.append(td);
    }
    return tr;
  });
  body.replaceChildren(...lines.reverse());
}

/** @param {HTMLElement} root */
export function mountCurves(root) {
  const note = find(root, "[data-note]", HTMLElement);
  const plots = find(root, "[data-plots]", HTMLElement);
  const body = find(root, "tbody", HTMLElement);
  const losses = [line("Training loss", style("--tblr-blue")), line("Validation loss", style("--tblr-orange"), [6, 4])];
  const scores = [
    line("Validation Dice", style("--tblr-green")),
    line("Validation IoU", style("--tblr-purple"), [6, 4]),
  ];
  /** @type {[Measure, Line][]} */
  const columns = [
    ["train_loss", losses[0]],
    ["val_loss", losses[1]],
    ["val_dice", scores[0]],
    ["val_iou", scores[1]],
  ];
  /** @type {ReturnType<typeof chart>[]} */
  let charts = [];
  let seen = -1;

  /** @param {Epoch[]} rows */
  function draw(rows) {
    if (rows.length === seen) return;
    seen = rows.length;
    note.hidden = rows.length > 0;
    plots.hidden = !rows.length;
    if (!rows.length) return;
    if (!charts.length) {
      charts = [
        chart(find(root, "[data-loss]", HTMLCanvasElement), losses, {}),
        chart(find(root, "[data-dice]", HTMLCanvasElement), scores, { y: { min: 0, max: 1 } }),
      ];
    }
    for (const [name, set] of columns) set.data = rows.map((row) => row[name]);
    for (const item of charts) {
      item.data.labels = rows.map((row) => row.epoch);
      item.update("none");
    }
    fillTable(body, rows);
  }

  async function read() {
    if (!root.isConnected) {
      for (const item of charts) item.destroy();
      return;
    }
    try {
      if (!document.hidden || seen < 0) draw(await readEpochs(attribute(root, "data-url")));
    } catch (error) {
      if (seen < 1) note.textContent = `The curves could not be read (${messageOf(error)}).`;
    }
    if (root.dataset.live) setTimeout(read, READ_EVERY_MS);
  }

  read();
}
