// One volume in the viewer: a slice, a slider, the wheel, touch and the keyboard, and the window for its values.

import { h, nameOf, words } from "./dom.js";
import { isAborted } from "./api.js";
import { load } from "./pictures.js";
import { AXIS, PLANES } from "./sources.js";

const WHEEL = 50; // how far a wheel turns for one slice
const TOUCH = 14; // px that a finger moves for one slice

/** The axes of a slice along (columns, rows), as RAS+ axes. */
export const inPlane = (plane) => [0, 1, 2].filter((axis) => axis !== AXIS[plane]);

export class Pane {
  /** title: "Query" or "Hit". onMove: called after a person moved this pane. windows: for CT, by name. */
  constructor(title, source, facts, windows, onMove, onWindow) {
    Object.assign(this, { title, source, facts, windows, onMove, onWindow, plane: null, index: 0, window: "" });
    this.turned = 0;
    this.image = h("img", { alt: "", decoding: "async", draggable: false });
    this.over = h("div", { className: "over" });
    this.slice = h("div", { className: "slice" }, this.image, this.over);
    this.stage = h("div", { className: "stage", tabIndex: 0, role: "img" }, this.slice);
    this.text = h("output", { className: "at" });
    this.slider = h("input", { type: "range", min: 0, oninput: () => this.move(Number(this.slider.value)) });
    this.notes = h("p", { className: "soft" });
    this.element = h(
      "section",
      { className: "pane", "aria-label": title },
      h("header", {}, h("h3", {}, title), nameOf(source.name)),
      this.stage,
      h("div", { className: "slide" }, this.slider, this.text),
      this.windowing(),
      this.notes,
    );
    if (facts.sparse) this.notes.textContent = "The slices that the search uses are shown: a file is not kept.";
    if (facts.previews) this.notes.textContent = `Stored previews are shown: ${facts.reason}`;
    this.listen();
  }

  get indices() {
    return this.facts.planes[this.plane] ?? [];
  }

  get axis() {
    return AXIS[this.plane];
  }

  /** Show a plane, at the slice nearest to an index; in the middle if there is none. */
  show(plane, index) {
    this.plane = plane;
    const indices = this.indices;
    const [across, down] = inPlane(plane).map((axis) => this.facts.shape[axis] * this.facts.spacing[axis]);
    this.slice.style.setProperty("--ratio", across / down || 1);
    this.slider.max = indices.length - 1;
    this.slider.ariaLabel = `${this.title}: ${plane} slice`;
    this.place(index ?? indices[Math.floor(indices.length / 2)]);
  }

  /** Go to the slice nearest to an index, without telling anyone. */
  place(index) {
    const at = this.indices.reduce((best, each, number) => (Math.abs(each - index) < Math.abs(this.indices[best] - index) ? number : best), 0);
    this.index = this.indices[at];
    this.slider.value = at;
    this.slider.setAttribute("aria-valuetext", `${this.plane} ${this.index}`);
    this.text.value = `${this.plane} ${this.index} of 0–${this.facts.shape[this.axis] - 1}`;
    this.stage.ariaLabel = `${this.title}: ${this.plane} slice ${this.index} of ${this.source.name}`;
    this.draw();
    this.onPlace?.();
  }

  /** Go to a place of the slider, as a person does. */
  move(at) {
    const wanted = Math.max(0, Math.min(this.indices.length - 1, at));
    if (this.indices[wanted] === this.index) return;
    this.place(this.indices[wanted]);
    this.onMove(this);
  }

  step(by) {
    this.move(Number(this.slider.value) + by);
  }

  async draw() {
    const asked = `${this.plane} ${this.index} ${this.window}`;
    this.asked = asked;
    const at = (index) => this.source.slice({ plane: this.plane, index }, this.window, this.facts.previews);
    this.stage.classList.add("loading");
    try {
      const address = await load(await at(this.index));
      if (this.asked !== asked) return;
      this.image.src = address;
      this.slice.querySelector(".absent")?.remove();
      this.stage.classList.remove("loading");
      for (const by of [1, -1]) {
        const next = this.indices[Number(this.slider.value) + by];
        if (next !== undefined) at(next).then(load).catch(() => {});
      }
    } catch (error) {
      if (isAborted(error) || this.asked !== asked) return;
      this.stage.classList.remove("loading");
      this.slice.querySelector(".absent")?.remove();
      this.slice.append(h("p", { className: "absent" }, h("b", {}, "No picture"), h("span", {}, error.message)));
    }
  }

  /** Show other values: "" for the usual ones, the name of a CT window, or `width,level`. */
  setWindow(window) {
    this.window = window ?? "";
    const parts = this.window.split(",");
    const named = this.windows.find(({ name }) => name === this.window) ?? this.facts.window;
    const [width, level] = parts.length === 2 ? parts : named ? [named.width, named.level].map((value) => Number(value.toPrecision(4))) : ["", ""];
    if (this.width) [this.width.value, this.level.value] = [width, level];
    if (this.preset) this.preset.value = parts.length === 2 ? "chosen" : this.window;
    if (this.plane) this.draw();
  }

  windowing() {
    if (!this.facts.window) return null;
    const changed = () => {
      if (!(Number(this.width.value) > 0) || this.level.value === "") return;
      this.setWindow(`${Number(this.width.value)},${Number(this.level.value)}`);
      this.onWindow(this);
    };
    const number = (label, least) => h("input", { type: "number", step: "any", min: least, ariaLabel: `${this.title}: ${label}`, onchange: changed });
    [this.width, this.level] = [number("window width", "0"), number("window level")];
    if (this.facts.hounsfield) {
      this.preset = h("select", { ariaLabel: `${this.title}: CT window`, onchange: () => {
        this.setWindow(this.preset.value);
        this.onWindow(this);
      } });
      const names = this.windows.map(({ name }) => [name, words(name)]);
      for (const [value, text] of [["", "Usual window"], ...names]) this.preset.append(h("option", { value }, text));
      this.preset.append(h("option", { value: "chosen", disabled: true }, "By hand"));
    }
    return h("div", { className: "window" }, this.preset, h("label", {}, "W ", this.width), h("label", {}, "L ", this.level));
  }

  listen() {
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 };
    this.stage.addEventListener("keydown", (event) => {
      const ends = { Home: 0, End: this.indices.length - 1 };
      if (event.key in steps) this.step(steps[event.key]);
      else if (event.key in ends) this.move(ends[event.key]);
      else return;
      event.preventDefault();
    });
    this.stage.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.turned += event.deltaY * (event.deltaMode ? 20 : 1);
        const by = Math.trunc(this.turned / WHEEL);
        this.turned -= by * WHEEL;
        if (by) this.step(-by);
      },
      { passive: false },
    );
    let from = null;
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" && !this.drawing) from = event.clientY;
    });
    this.stage.addEventListener("pointermove", (event) => {
      if (from === null) return;
      const by = Math.trunc((from - event.clientY) / TOUCH);
      from -= by * TOUCH;
      if (by) this.step(by);
    });
    for (const name of ["pointerup", "pointercancel"]) this.stage.addEventListener(name, () => (from = null));
  }
}

export const planesOf = (panes) => PLANES.filter((plane) => panes.every((pane) => pane.facts.planes[plane]?.length));
