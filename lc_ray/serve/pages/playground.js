/** The playground: a control per input column, made from the endpoint's own description. */
begin((description) => {
  const schemas = description.components.schemas;
  const names = Object.keys(schemas).filter((name) => name.endsWith(".Instance")).map((name) => name.slice(0, -".Instance".length));
  const languages = (path) => description.paths[path]?.post.requestBody.content["application/json"].schema.properties.model.enum ?? [];
  const place = el("div");

  function open(name) {
    const instance = schemas[`${name}.Instance`];
    const columns = (instance.anyOf?.[0] ?? instance).properties;
    const optional = (column) => !(instance.anyOf?.[0] ?? instance).required.includes(column);
    const [first, ...others] = Object.values(columns).map(bare);
    const speaks = languages("/v1/chat/completions").includes(name) && others.length === 0;
    const model = { name, columns, optional, answer: resolved(schemas[`${name}.Answer`], description) };
    place.replaceChildren(speaks && first.anyOf ? chat(name) : panes(model, speaks));
    place.querySelector("textarea, input")?.focus();
  }

  const choice = names.length > 1
    ? el("select", { id: "model", onchange: (event) => open(event.target.value) }, names.map((name) => el("option", {}, name)))
    : el("h1", {}, names[0]);
  main.replaceChildren(el("div", { className: "head" }, el("div", {}, el("label", { className: "soft", htmlFor: "model" }, "Model"), choice)), place);
  open(names[0]);
});

/** A column's schema without that it may be null. */
function bare(schema) {
  return schema.anyOf?.some(({ type }) => type === "null") ? schema.anyOf[0] : schema;
}

/** The control of a column; `value()` is undefined if it is empty. */
function control(column, schema) {
  const id = `column ${column}`;
  const kind = schema.contentMediaType?.split("/")[0];
  if (kind === "image" || kind === "audio") return media(kind, id);
  const types = [schema.type].flat();
  if (types.includes("integer")) {
    const input = el("input", { id, type: "number", step: 1, min: schema.minimum ?? "", value: schema.minimum ?? "" });
    return { element: input, focus: input, value: () => (input.value === "" ? undefined : Number(input.value)) };
  }
  if (types.includes("number")) {
    const input = el("input", { id, autocomplete: "off" });
    const number = () => (Number.isNaN(Number(input.value)) ? input.value : Number(input.value));
    return { element: input, focus: input, value: () => (input.value.trim() ? number() : undefined) };
  }
  const area = el("textarea", { id, spellcheck: false });
  return { element: area, focus: area, value: () => (area.value.trim() ? area.value : undefined) };
}

function panes({ name, columns, optional, answer }, speaks) {
  const fields = Object.entries(columns).map(([column, given]) => {
    const schema = bare(given);
    const made = control(column, schema);
    const wrong = el("p", { className: "wrong", id: `wrong ${column}`, role: "alert", hidden: true });
    const notes = [optional(column) ? "optional" : null, schema.contentMediaType ? null : schema.description].filter(Boolean).join(" · ");
    const label = el("label", { htmlFor: made.focus.id }, column, notes ? el("span", { className: "soft" }, ` ${notes}`) : null);
    return { ...made, column, wrong, whole: el("div", { className: "field" }, label, made.element, wrong) };
  });
  const send = el("button", { className: "main" }, "Ask");
  const out = el("section", { className: "card answer", ariaLive: "polite", ariaLabel: "Answer" }, el("h2", {}, "Answer"), el("p", { className: "empty" }, "What the model answers appears here."));
  const show = (...children) => out.replaceChildren(el("h2", {}, "Answer"), ...children);

  async function submit(event) {
    event.preventDefault();
    for (const field of fields) mark(field, "");
    const given = Object.fromEntries(fields.map(({ column, value }) => [column, value()]).filter(([, value]) => value !== undefined));
    send.disabled = true;
    out.classList.add("waiting");
    out.ariaBusy = "true";
    const start = performance.now();
    try {
      if (speaks) await complete(name, given[fields[0].column] ?? "", show, start);
      else {
        const content = await (await ask(`/v1/models/${name}:predict`, { instances: [given] })).json().catch(failed(BROKE_OFF));
        const time = performance.now() - start;
        show(...told(content.predictions[0], answer, given), meta(content.model, time, content.version), raw(content));
      }
    } catch (error) {
      refuse(error);
    } finally {
      send.disabled = false;
      out.classList.remove("waiting");
      out.ariaBusy = "false";
    }
  }

  function refuse(error) {
    const field = fields.find(({ column }) => error.where === `instances.0.${column}`);
    if (field) {
      mark(field, error.said);
      field.focus.focus();
    }
    show(problem(error));
  }

  const form = el("form", { className: "card", onsubmit: submit }, el("h2", {}, "Input"), fields.map(({ whole }) => whole),
    el("div", { className: "row" }, send, el("small", { className: "hint" }, "Ctrl + Enter asks, too")));
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  return el("div", { className: "panes" }, form, out);
}

function mark({ wrong, focus }, message) {
  wrong.textContent = message;
  wrong.hidden = !message;
  if (message) focus.setAttribute("aria-invalid", "true");
  else focus.removeAttribute("aria-invalid");
}

function meta(model, time, version) {
  const items = [el("span", {}, el("b", {}, `${Math.round(time)} ms`)), el("span", {}, model), version ? el("span", { className: "mono" }, version) : null];
  return el("div", { className: "meta" }, items);
}

/** What went wrong, for people. */
function problem(error) {
  if (!(error instanceof Refused)) throw error;
  const again = error.after ? ` Try again in ${error.after} s.` : "";
  const key = error.status === 401 ? " Forget it, above, and enter another." : "";
  return el("p", { className: "alert", role: "alert" }, error.said + again + key);
}

/** How a text goes on, shown as it comes. */
async function complete(name, prompt, show, start) {
  const said = el("p", { className: "said" });
  let shown = false;
  const version = await stream("/v1/completions", { model: name, prompt }, (choice) => {
    if (!shown) show(said);
    shown = true;
    said.append(choice.text);
  });
  show(said, meta(name, performance.now() - start, version));
}

/** Calls `take` with each choice that an OpenAI route streams; the version of the model that answers. */
async function stream(path, body, take, signal) {
  const response = await ask(path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const read = () => reader.read().catch(failed(BROKE_OFF));
  let rest = "";
  let version;
  for (let part = await read(); !part.done; part = await read()) {
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return version;
      const content = JSON.parse(data);
      if (content.error) throw new Refused(500, content.error.message);
      version = content.system_fingerprint;
      content.choices.forEach(take);
    }
  }
  throw new Refused(0, BROKE_OFF);
}

function chat(name) {
  const messages = [];
  let running = null;
  const talk = el("div", { className: "talk", role: "log", ariaLabel: "Conversation", tabIndex: 0 });
  const input = el("textarea", { id: "message", rows: 2, placeholder: "Say something", ariaLabel: "Message" });
  const send = el("button", { className: "main" }, "Send");
  const time = el("small", { role: "status" });
  const restart = () => {
    running?.abort();
    messages.length = 0;
    talk.replaceChildren();
    time.textContent = "";
    input.focus();
  };

  const add = (role, text) => {
    const said = el("p", { className: role }, text);
    talk.append(said);
    said.scrollIntoView({ block: "nearest" });
    return said;
  };

  async function submit(event) {
    event.preventDefault();
    if (running) return running.abort();
    const text = input.value.trim();
    if (!text) return;
    input.value = "";
    messages.push({ role: "user", content: text });
    add("user", text);
    const said = add("assistant", "");
    const own = (running = new AbortController());
    send.textContent = "Stop";
    const start = performance.now();
    try {
      let first = 0;
      const version = await stream("/v1/chat/completions", { model: name, messages }, ({ delta }) => {
        if (!delta.content) return;
        first ||= performance.now() - start;
        said.append(delta.content);
        talk.scrollTop = talk.scrollHeight;
      }, own.signal);
      const all = Math.round(performance.now() - start);
      time.replaceChildren(`${name} · `, el("span", { className: "mono" }, version), ` · first words after ${Math.round(first)} ms, all after ${all} ms`);
    } catch (error) {
      if (error.name !== "AbortError") said.replaceWith(problem(error));
    } finally {
      if (running === own) running = null;
      send.textContent = "Send";
      if (said.isConnected) {
        messages.push({ role: "assistant", content: said.textContent });
        said.textContent ||= "(nothing)";
      } else input.value ||= messages.pop()?.content ?? "";
    }
  }

  const form = el("form", { className: "chat", onsubmit: submit },
    el("div", { className: "card" }, talk), input,
    el("div", { className: "row" }, send, el("button", { type: "button", className: "plain", onclick: restart }, "New conversation"), time));
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!running) form.requestSubmit();
  });
  return form;
}
