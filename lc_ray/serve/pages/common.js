"use strict";

/** What both pages need: elements, the key, requests. */
const KEY = "lc_ray key";
const main = document.querySelector("main");
const forget = document.querySelector("#forget");

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

/** An answer other than 200; status 0 if there was none. */
class Refused extends Error {
  constructor(status, message, where = "", after = null) {
    super(message);
    Object.assign(this, { status, where, after });
  }

  static async of(response) {
    const told = (await response.json().catch(() => ({}))).error ?? {};
    const message = typeof told === "string" ? told : told.message ?? `the endpoint answered ${response.status}`;
    return new Refused(response.status, message, told.where ?? told.param ?? "", response.headers.get("retry-after"));
  }

  /** A sentence for people. */
  get said() {
    const sentence = this.message.charAt(0).toUpperCase() + this.message.slice(1);
    return /[.!?]$/.test(sentence) ? sentence : `${sentence}.`;
  }
}

const BROKE_OFF = "the answer broke off";

/** For a promise's catch: what the network did, for people; but a request that was given up is none of that. */
const failed = (message) => (error) => {
  throw error.name === "AbortError" ? error : new Refused(0, message);
};

/** The response to a request; paths are below the folder of the page, wherever a proxy put it. */
async function ask(path, body, signal) {
  const headers = new Headers();
  try {
    if (sessionStorage.getItem(KEY)) headers.set("authorization", `Bearer ${sessionStorage.getItem(KEY)}`);
  } catch {
    throw new Refused(401, "a key has no such characters");
  }
  if (body) headers.set("content-type", "application/json");
  const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal };
  const response = await fetch(path.slice(1), options).catch(failed("the endpoint can't be reached"));
  if (!response.ok) throw await Refused.of(response);
  return response;
}

/** Shows what `open` makes of the endpoint's description, once there is a key for it. */
async function begin(open) {
  try {
    const description = await (await ask("/openapi.json")).json().catch(failed(BROKE_OFF));
    forget.hidden = !sessionStorage.getItem(KEY);
    open(description);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) lock(open, sessionStorage.getItem(KEY) ? "This key is not valid." : "");
    else main.replaceChildren(el("p", { className: "alert", role: "alert" }, error.said));
  }
}

function lock(open, message) {
  sessionStorage.removeItem(KEY);
  forget.hidden = true;
  const input = el("input", { type: "password", id: "key", autocomplete: "off", spellcheck: false, required: true });
  const send = (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, input.value.trim());
    begin(open);
  };
  main.replaceChildren(
    el("form", { className: "card lock", onsubmit: send },
      el("h1", {}, "This endpoint needs a key"),
      el("label", { htmlFor: "key", className: "soft" }, "Whoever started it has one. It is kept until you close this tab, and sent nowhere else."),
      input,
      message ? el("p", { className: "alert", role: "alert" }, message) : null,
      el("button", { className: "main" }, "Continue")));
  input.focus();
}

forget.addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  location.reload();
});

/** A schema, with a reference to a named one followed. */
function resolved(schema, description) {
  return schema?.$ref ? resolved(schema.$ref.slice(2).split("/").reduce((at, part) => at[part], description), description) : schema;
}
