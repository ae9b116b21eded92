// Requests to the server: the token, waiting when it is busy, and problems as errors.

import { askToken } from "./token.js";
import { say } from "./dom.js";

const TOKEN = "medret-token";
const TRIES = 6;
const WAIT_MAX_S = 30;

/** Why a request was refused: `code` and `reason` as the server gives them. */
export class Problem extends Error {
  constructor(status, code, reason) {
    super(reason);
    Object.assign(this, { status, code, reason });
  }
}

export const isAborted = (error) => error?.name === "AbortError";

/** The path of a volume below v1/volumes: each part of the id is escaped, its slashes stay. */
export function volumePath(id, store, rest = "") {
  const path = `v1/volumes/${id.split("/").map(encodeURIComponent).join("/")}${rest}`;
  return store ? `${path}${path.includes("?") ? "&" : "?"}store=${encodeURIComponent(store)}` : path;
}

/** Parameters of an address, without those that are null. */
export function query(parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

async function problemOf(response) {
  try {
    const { code, reason } = await response.json();
    return new Problem(response.status, code, reason ?? response.statusText);
  } catch {
    return new Problem(response.status, "failed", `the server answered ${response.status} ${response.statusText}`);
  }
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });

async function send(path, options, signal) {
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  try {
    return [await fetch(path, { ...options, headers, signal, credentials: "same-origin" }), token];
  } catch (error) {
    if (isAborted(error)) throw error;
    throw new Problem(0, "unreachable", "the server cannot be reached");
  }
}

/** Ask the server: asks for a token where one is needed, waits where the server says so. Throws Problem. */
export async function request(path, options = {}, signal = undefined, quiet = false) {
  for (let tried = 1; ; tried++) {
    const [response, token] = await send(path, options, signal);
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (response.status === 401) {
      const fresh = sessionStorage.getItem(TOKEN);
      if (fresh === token) sessionStorage.setItem(TOKEN, await askToken(token ? problem.reason : ""));
      continue;
    }
    const after = Number(response.headers.get("Retry-After"));
    if (![429, 503].includes(response.status) || !after || tried >= TRIES) throw problem;
    const seconds = Math.min(after, WAIT_MAX_S);
    if (!quiet) say(`${problem.reason}. Trying again in ${seconds} s.`, "busy");
    await pause(seconds, signal);
  }
}

export async function getJson(path, parameters = {}, signal = undefined) {
  return (await request(path + query(parameters), {}, signal)).json();
}

/** Search with a volume of the store. */
export async function search(body, signal) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await request("v1/search", options, signal)).json();
}

/** Send files to `v1/search` or `v1/slices`. */
export async function upload(path, files, options, signal) {
  const form = new FormData();
  form.append("options", JSON.stringify(options));
  for (const file of files) form.append("file", file, file.name);
  return (await request(path, { method: "POST", body: form }, signal)).json();
}
