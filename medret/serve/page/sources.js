// Where slices come from: a stored volume, or a file that a person chose. Both answer the same questions.

import { getJson, query, upload, volumePath } from "./api.js";
import { load } from "./pictures.js";

export const AXIS = { sagittal: 0, coronal: 1, axial: 2 };
const OUT_OF_REACH = [404, 422, 503]; // what a server answers when it cannot read a volume of the archive
export const PLANES = ["axial", "coronal", "sagittal"];

const nearest = (indices, index) =>
  indices.reduce((best, each) => (Math.abs(each - index) < Math.abs(best - index) ? each : best), indices[0]);
const middle = (indices) => indices[Math.floor((indices.length - 1) / 2)];
const once = (make) => {
  let promise = null;
  return () => (promise ??= make().catch((error) => {
    promise = null;
    throw error;
  }));
};

/** A volume of the store. */
export class StoredSource {
  constructor(id, store) {
    Object.assign(this, { id, store, name: id });
    this.described = once(() => getJson(volumePath(id, store)));
    this.view = once(() => getJson("v1/view", { volume: id, store }));
  }

  path(place, { window = "", side = 384 } = {}) {
    const given = query({ side, store: this.store, ...windowParameters(window) });
    return volumePath(this.id, null, `/slices/${place.plane}/${place.index}.png${given}`);
  }

  /** The slice at a place, or one in the middle; a stored preview of it while the archive is out of reach. */
  async picture(place, { thumbnail = false } = {}) {
    if (place && !thumbnail) {
      try {
        const path = this.path(place);
        await load(path);
        return { ...place, path };
      } catch (error) {
        if (!OUT_OF_REACH.includes(error.status)) throw error;
        const preview = await this.preview(place);
        if (preview) return preview;
        throw error;
      }
    }
    const described = await this.described();
    const preview = await this.preview(place);
    if (preview) return preview;
    const plane = PLANES.find((each) => described.planes[each]);
    if (!plane) throw new Error("no slice of this volume is stored");
    const shown = { plane, index: middle(described.planes[plane]) };
    return { ...shown, path: this.path(shown) };
  }

  /** The stored preview that is nearest to a place; null if there are none. */
  async preview(place) {
    const { previews } = await this.described();
    const numbered = previews.map(({ plane, slice_index: index }, number) => ({ plane, index, number }));
    const chosen = numbered.filter(({ plane }) => plane === place?.plane);
    const near = chosen.length ? chosen : numbered;
    if (!near.length) return null;
    const at = place ? nearest(near.map(({ index }) => index), place.index) : middle(near.map(({ index }) => index));
    const found = near.find(({ index }) => index === at);
    return { ...found, preview: true, path: volumePath(this.id, this.store, `/previews/${found.number}`) };
  }

  /** What the viewer needs: sides, spacing, slices by plane, window, and whether CT windows mean something. */
  async facts() {
    try {
      const view = await this.view();
      const planes = Object.fromEntries(PLANES.map((plane) => [plane, [...Array(view.shape[AXIS[plane]]).keys()]]));
      return { shape: view.shape, spacing: view.spacing_mm, planes, window: view.window, hounsfield: view.hounsfield };
    } catch (error) {
      if (!OUT_OF_REACH.includes(error.status)) throw error;
      const described = await this.described();
      if (!described.previews.length || !described.shape) throw error;
      const planes = {};
      for (const { plane, slice_index: index } of described.previews) (planes[plane] ??= []).push(index);
      const numbers = { shape: described.shape, spacing: described.spacing_mm ?? [1, 1, 1] };
      return { ...numbers, planes, window: null, hounsfield: false, previews: true, reason: error.message };
    }
  }

  /** The path of the picture that the viewer shows. */
  async slice(place, window, previews) {
    return previews ? (await this.preview(place)).path : this.path(place, { window, side: 640 });
  }
}

/** Files that a person chose. Their slices are those that a search embeds. */
export class FileSource {
  constructor(files, modality) {
    Object.assign(this, { files, name: filesName(files) });
    this.slices = once(() => upload("v1/slices", files, modality ? { modality } : {}));
  }

  async picture(place) {
    const { pictures } = await this.slices();
    const plane = pictures.some((each) => each.plane === place?.plane) ? place.plane : pictures[0].plane;
    const indices = pictures.filter((each) => each.plane === plane).map((each) => each.slice_index);
    const index = place ? nearest(indices, place.index) : middle(indices);
    return { plane, index, path: pictures.find((each) => each.plane === plane && each.slice_index === index).image };
  }

  async facts() {
    const { shape, spacing_mm: spacing, pictures } = await this.slices();
    const planes = {};
    for (const { plane, slice_index: index } of pictures) (planes[plane] ??= []).push(index);
    return { shape, spacing, planes, window: null, hounsfield: false, sparse: true };
  }

  async slice(place) {
    return (await this.picture(place)).path;
  }
}

/** How a choice of files is called. */
export function filesName(files) {
  return files.length === 1 ? files[0].name : `${files[0].name} and ${files.length - 1} more`;
}

/** `lung`, or `1500,-600` for width and level, as parameters of a picture. */
export function windowParameters(window) {
  if (!window) return {};
  const [width, level] = window.split(",");
  return level === undefined ? { preset: width } : { window: width, level };
}
