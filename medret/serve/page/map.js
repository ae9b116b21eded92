// The map: volumes as points, near each other where their vectors are, coloured by a label.

import { byId, chips, h, nameOf, say, svg, words } from "./dom.js";
import { getJson, isAborted, volumePath } from "./api.js";
import { sourceOf } from "./chosen.js";
import { figureOf } from "./pictures.js";
import { filterOf } from "./where.js";
import { go, queryOf } from "./state.js";

const SIZE = [1000, 640];
const MARGIN = 26;
const COLOURS = 10; // page/map.css has them; further values share the last
const SHAPES = {
  circle: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
  square: (r) => `M${-r * 0.9} ${-r * 0.9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}z`,
  triangle: (r) => `M0 ${-r * 1.15}L${r * 1.1} ${r * 0.8}H${-r * 1.1}z`,
  diamond: (r) => `M0 ${-r * 1.3}L${r * 1.1} 0L0 ${r * 1.3}L${-r * 1.1} 0z`,
};
const shapeNames = Object.keys(SHAPES);
const colourOf = (rank) => Math.min(rank, COLOURS - 1);
const path = (rank, r) => SHAPES[shapeNames[Math.min(rank, COLOURS - 1) % shapeNames.length]](r);
let asking = null;

/** Points to places in the picture, both axes alike. */
function placed(points) {
  const range = (values) => [Math.min(...values), Math.max(...values)];
  const [x0, x1] = range(points.map(({ x }) => x));
  const [y0, y1] = range(points.map(({ y }) => y));
  const scale = Math.min((SIZE[0] - 2 * MARGIN) / (x1 - x0 || 1), (SIZE[1] - 2 * MARGIN) / (y1 - y0 || 1));
  return points.map(({ x, y }) => [SIZE[0] / 2 + (x - (x0 + x1) / 2) * scale, SIZE[1] / 2 - (y - (y0 + y1) / 2) * scale]);
}

/** Values with their number of points, the most frequent first. */
function classesOf(points) {
  const counts = new Map();
  for (const { value } of points) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort(([a, m], [b, n]) => n - m || (a === null) - (b === null) || String(a).localeCompare(String(b)));
}

class Plot {
  constructor(answer, state, several, panel) {
    Object.assign(this, { answer, several, panel, at: -1 });
    this.points = answer.points;
    this.places = placed(this.points);
    this.classes = classesOf(this.points);
    this.rank = new Map(this.classes.map(([value], number) => [value, number]));
    const r = this.points.length > 1500 ? 3.5 : this.points.length > 200 ? 5 : 8;
    this.marks = this.points.map((point, number) => {
      const rank = this.rank.get(point.value);
      const [x, y] = this.places[number];
      const isQuery = point.volume_id === state.volume;
      return svg(
        "path",
        { id: `point-${number}`, class: `point c${colourOf(rank)}${isQuery ? " query" : ""}`, d: path(rank, isQuery ? r * 1.5 : r), transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, role: "option", "aria-selected": "false", "aria-label": `${point.volume_id}, ${point.value ?? "no value"}` },
        svg("title", {}, `${point.volume_id}\n${point.value ?? "no value"}`),
      );
    });
    this.ring = svg("circle", { class: "ring hidden", r: r + 6 });
    this.svg = svg(
      "svg",
      { viewBox: `0 0 ${SIZE[0]} ${SIZE[1]}`, class: "plot", role: "listbox", tabindex: "0", "aria-label": "Volumes as points; arrow keys go to the nearest point in that direction, Enter finds similar volumes" },
      this.marks,
      this.ring,
    );
    this.svg.addEventListener("click", (event) => this.choose(this.nearest(event)));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.svg.addEventListener("focus", () => this.at < 0 && this.points.length && this.choose(0));
  }

  nearest(event) {
    const frame = this.svg.getScreenCTM().inverse();
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(frame);
    const far = this.places.map(([a, b]) => Math.hypot(a - x, b - y));
    return far.reduce((best, each, number) => (each < far[best] ? number : best), 0);
  }

  key(event) {
    const directions = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const direction = directions[event.key];
    if (event.key === "Enter" && this.at >= 0) go(queryOf(this.points[this.at].volume_id, this.several ? this.points[this.at].store : null));
    else if (direction) this.choose(this.beyond(direction));
    else if (event.key === "Home") this.choose(0);
    else if (event.key === "End") this.choose(this.points.length - 1);
    else return;
    event.preventDefault();
  }

  /** The nearest point in a direction; distances across it count double. */
  beyond([dx, dy]) {
    const [x, y] = this.places[this.at];
    let best = this.at;
    let least = Infinity;
    this.places.forEach(([a, b], number) => {
      const along = (a - x) * dx + (b - y) * dy;
      const across = Math.abs((a - x) * dy) + Math.abs((b - y) * dx);
      if (number !== this.at && along > 0.01 && along + 2 * across < least) [best, least] = [number, along + 2 * across];
    });
    return best;
  }

  choose(number) {
    if (this.at >= 0) this.marks[this.at].setAttribute("aria-selected", "false");
    this.at = number;
    this.marks[number].setAttribute("aria-selected", "true");
    this.svg.setAttribute("aria-activedescendant", `point-${number}`);
    this.ring.setAttribute("cx", this.places[number][0]);
    this.ring.setAttribute("cy", this.places[number][1]);
    this.ring.classList.remove("hidden");
    this.describe(this.points[number]);
  }

  async describe(point) {
    asking?.abort();
    asking = new AbortController();
    const { signal } = asking;
    const store = this.several ? point.store : null;
    const labels = h("div", {});
    this.panel.replaceChildren(
      figureOf(sourceOf(point.volume_id, store), null, `A slice of ${point.volume_id}`, (shown) => `${shown.plane} ${shown.index}${shown.preview ? ", preview" : ""}`),
      h("h2", {}, nameOf(point.volume_id)),
      labels,
      h(
        "div",
        { className: "row" },
        h("button", { type: "button", className: "main", onclick: () => go(queryOf(point.volume_id, store)) }, "Find similar"),
        h("button", { type: "button", onclick: () => go({ viewer: { hit: point.volume_id, hitStore: store } }) }, "View"),
      ),
    );
    try {
      labels.append(chips((await getJson(volumePath(point.volume_id, store), {}, signal)).labels) ?? "");
    } catch (error) {
      if (!isAborted(error)) labels.append(h("p", { className: "wrong" }, error.message));
    }
  }

  /** The values and their colours; pressing one leaves the others pale. */
  legend() {
    let chosen = null;
    const buttons = this.classes.map(([value, count], rank) =>
      h(
        "button",
        { type: "button", ariaPressed: "false", onclick: () => press(rank) },
        svg("svg", { viewBox: "-10 -10 20 20", "aria-hidden": "true" }, svg("path", { class: `point c${colourOf(rank)}`, d: path(rank, 7) })),
        h("span", {}, value ?? "no value"),
        h("span", { className: "count" }, count.toLocaleString("en")),
      ),
    );
    const press = (rank) => {
      chosen = chosen === rank ? null : rank;
      buttons.forEach((button, number) => (button.ariaPressed = String(number === chosen)));
      this.marks.forEach((mark, number) => mark.classList.toggle("pale", chosen !== null && this.rank.get(this.points[number].value) !== chosen));
    };
    return h("div", { className: "legend", role: "group", ariaLabel: `Values of ${words(this.answer.label ?? "")}` }, buttons);
  }
}

/** Show the map of the volumes that the filter keeps. */
export async function showMap(state, served, signal) {
  say("Drawing the map …", "busy");
  const answer = await getJson("v1/map", { where: filterOf(state), label: state.label, model: state.model === "*" ? null : state.model }, signal);
  const several = served.stores.length > 1;
  const title = h("h1", { id: "title", tabIndex: -1 }, "Map of the archive");
  if (!answer.points.length) {
    byId("view").replaceChildren(title, h("p", { className: "empty" }, "There is no volume to show: the filter keeps none."));
    say("");
    return;
  }
  const panel = h("div", { className: "about", role: "region", ariaLabel: "The chosen volume" }, h("p", { className: "soft" }, "Choose a point to see its volume."));
  const plot = new Plot(answer, state, several, panel);
  const field = h("select", { id: "label", onchange: () => go({ label: field.value }) }, served.label_columns.map((name) => h("option", { value: name, selected: name === answer.label }, words(name))));
  const all = answer.points.length === answer.total ? `All ${answer.total.toLocaleString("en")} volumes` : `${answer.points.length.toLocaleString("en")} of ${answer.total.toLocaleString("en")} volumes`;
  const share = Math.round((answer.spread[0] + answer.spread[1]) * 100);
  byId("view").replaceChildren(
    title,
    h("p", { className: "lead" }, `${all}; near points look alike to ${answer.model}. The plane shows ${share} % of the spread of their vectors.`),
    h("div", { className: "field inline" }, h("label", { htmlFor: "label" }, "Colour by"), field),
    h("div", { className: "map" }, h("div", { className: "drawn" }, plot.svg, plot.legend()), panel),
  );
  say("");
}
