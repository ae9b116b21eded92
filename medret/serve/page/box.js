// A part of the query: drawn on its slices, or entered as numbers. A box of voxels along x, y, z (RAS+), both ends in it.

import { h, svg } from "./dom.js";
import { AXIS } from "./sources.js";
import { inPlane } from "./pane.js";

const NAMES = ["x, left to right", "y, back to front", "z, bottom to top"];
const DEPTH_MM = 10; // of a new box, to each side of the slice on which it is drawn

const clamp = (value, most) => Math.max(0, Math.min(most, value));

export class Box {
  /** pane: of the query. text: the box so far, or null. onSearch: called with a box as text, or null. */
  constructor(pane, text, onSearch) {
    this.pane = pane;
    this.bounds = text ? text.split(",").map((range) => range.split(":").map(Number)) : null;
    this.mark = svg("rect", { class: "mark" });
    this.draw = h("button", { type: "button", ariaPressed: "false", onclick: () => this.setDrawing(!pane.drawing) }, "Draw a box on the query");
    this.fields = NAMES.map((name, axis) => [0, 1].map((end) => this.field(name, axis, end)));
    this.search = h("button", { type: "button", className: "main", onclick: () => onSearch(this.text) }, "Search with this part");
    this.clear = h("button", { type: "button", onclick: () => this.set(null) }, "Remove the box");
    this.element = h(
      "details",
      { className: "box", open: Boolean(text) },
      h("summary", {}, "Search with a part of the query"),
      h("p", { className: "soft" }, "Drag over what is of interest, or enter voxels. The third direction starts with 10 mm to each side."),
      h("div", { className: "row" }, this.draw),
      h("div", { className: "bounds" }, NAMES.map((name, axis) => h("fieldset", {}, h("legend", {}, name), this.fields[axis][0], h("span", { ariaHidden: "true" }, "–"), this.fields[axis][1]))),
      h("div", { className: "row" }, this.search, this.clear),
    );
    pane.over.append(svg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" }, this.mark));
    this.listen();
    this.set(this.bounds);
  }

  get text() {
    return this.bounds?.map(([first, last]) => `${first}:${last}`).join(",") ?? null;
  }

  field(name, axis, end) {
    const most = this.pane.facts.shape[axis] - 1;
    return h("input", {
      type: "number",
      min: 0,
      max: most,
      step: 1,
      ariaLabel: `${end ? "Last" : "First"} voxel along ${name}`,
      onchange: () => {
        const bounds = this.fields.map((pair, at) => pair.map((field, which) => (field.value === "" ? (which ? this.pane.facts.shape[at] - 1 : 0) : clamp(Math.round(Number(field.value)), this.pane.facts.shape[at] - 1))));
        this.set(bounds.map(([first, last]) => [Math.min(first, last), Math.max(first, last)]));
      },
    });
  }

  set(bounds) {
    this.bounds = bounds;
    this.fields.forEach((pair, axis) => pair.forEach((field, end) => (field.value = bounds ? bounds[axis][end] : "")));
    this.search.disabled = this.clear.disabled = !bounds;
    this.show();
  }

  /** Show the box on the slice of the pane, if the slice lies in it. */
  show() {
    const { plane, index, facts } = this.pane;
    const inside = this.bounds && plane && index >= this.bounds[AXIS[plane]][0] && index <= this.bounds[AXIS[plane]][1];
    this.mark.classList.toggle("hidden", !inside);
    if (!inside) return;
    // A slice is drawn with the ends of both axes first: the patient's right on the left, the front or the top above.
    const [across, down] = inPlane(plane).map((axis) => {
      const [first, last] = this.bounds[axis];
      return { at: 1 - (last + 1) / facts.shape[axis], size: (last + 1 - first) / facts.shape[axis] };
    });
    for (const [name, value] of Object.entries({ x: across.at, y: down.at, width: across.size, height: down.size })) this.mark.setAttribute(name, value);
  }

  setDrawing(on) {
    this.pane.drawing = on;
    this.draw.ariaPressed = String(on);
    this.pane.stage.classList.toggle("drawing", on);
  }

  listen() {
    const { pane } = this;
    let start = null;
    const at = (event) => {
      const frame = pane.slice.getBoundingClientRect();
      return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
    };
    const drawn = (event) => {
      const end = at(event);
      const shape = pane.facts.shape;
      const bounds = this.bounds ? this.bounds.map((range) => [...range]) : shape.map((side) => [0, side - 1]);
      inPlane(pane.plane).forEach((axis, number) => {
        const [low, high] = [start[number], end[number]].sort((a, b) => a - b);
        bounds[axis] = [clamp(Math.floor((1 - high) * shape[axis]), shape[axis] - 1), clamp(Math.ceil((1 - low) * shape[axis]) - 1, shape[axis] - 1)];
      });
      const depth = bounds[pane.axis];
      if (!this.bounds || pane.index < depth[0] || pane.index > depth[1]) {
        const slices = Math.max(1, Math.round(DEPTH_MM / (pane.facts.spacing[pane.axis] || 1)));
        bounds[pane.axis] = [clamp(pane.index - slices, shape[pane.axis] - 1), clamp(pane.index + slices, shape[pane.axis] - 1)];
      }
      return bounds;
    };
    pane.stage.addEventListener("pointerdown", (event) => {
      if (!pane.drawing || event.button) return;
      event.preventDefault();
      pane.stage.setPointerCapture(event.pointerId);
      start = at(event);
    });
    pane.stage.addEventListener("pointermove", (event) => start && this.set(drawn(event)));
    pane.stage.addEventListener("pointerup", () => (start = null));
    pane.stage.addEventListener("pointercancel", () => (start = null));
  }
}
