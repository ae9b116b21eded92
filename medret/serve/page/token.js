// The dialog that asks for a token. The token stays in this tab: it is gone when the tab is closed.

import { byId, h } from "./dom.js";

let asking = null;

/** Resolves to the token that a person enters. refused: why the last one was not taken. */
export function askToken(refused) {
  asking ??= new Promise((resolve) => {
    const field = h("input", { id: "token-field", type: "password", required: true, autocomplete: "off" });
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", { id: "token-title" }, "This server asks for a token"),
      h("p", {}, "Whoever runs the server gives it to you. It is kept in this tab only."),
      refused && h("p", { className: "wrong", role: "alert" }, refused),
      h("label", { htmlFor: "token-field" }, "Token"),
      field,
      h("button", { className: "main" }, "Continue"),
    );
    const dialog = byId("token");
    dialog.replaceChildren(form);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    form.addEventListener("submit", () => {
      asking = null;
      resolve(field.value.trim());
    });
    dialog.showModal();
    field.focus();
  });
  return asking;
}
