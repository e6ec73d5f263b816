/** The endpoint's description, as a page. */
begin((description) => {
  const tagged = Map.groupBy
    ? Map.groupBy(operations(description), (operation) => operation.tags[0])
    : operations(description).reduce((found, one) => found.set(one.tags[0], [...(found.get(one.tags[0]) ?? []), one]), new Map());
  main.replaceChildren(
    el("header", {},
      el("h1", {}, "Reference"),
      el("p", { className: "soft" }, description.info.description, " Requests carry a key, ", el("code", {}, "Authorization: Bearer KEY"),
        ", unless it says that none is needed. "),
      el("p", {}, download(description))),
    ...description.tags.map((tag) =>
      el("section", {}, el("h2", {}, tag.description), ...tagged.get(tag.name).map((operation) => shown(operation, description)))));
});

function operations(description) {
  return Object.entries(description.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, ...operation })));
}

/** A link to the description, which a plain one could not fetch, as it carries no key. */
function download(description) {
  const file = new Blob([JSON.stringify(description, null, 2)], { type: "application/json" });
  return el("a", { href: URL.createObjectURL(file), download: "openapi.json" }, "Download openapi.json");
}

function shown(operation, description) {
  const { method, path, summary, parameters = [], requestBody, responses, security } = operation;
  const [good, ...others] = Object.entries(responses);
  const schemas = (content) => Object.entries(content).map(([kind, { schema }]) => [el("small", {}, kind), el("pre", {}, outline(schema, description))]);
  const part = (title, ...inside) => el("div", {}, el("h2", {}, title), ...inside.flat(2));
  return el("details", { className: "operation card" },
    el("summary", {}, el("span", { className: `method mono ${method}` }, method.toUpperCase()), el("code", { className: "path" }, path),
      el("span", { className: "soft" }, summary)),
    el("div", { className: "inside" },
      security?.length === 0 ? el("p", { className: "soft" }, "No key is needed.") : null,
      part("Try it", copied(curl(operation, description))),
      parameters.length ? part("Parameters", el("dl", {}, parameters.map((p) => [el("dt", { className: "mono" }, p.name),
        el("dd", {}, `${p.in}: ${outline(p.schema, description)}`, p.description ? el("span", { className: "note" }, ` · ${p.description}`) : null)]))) : null,
      requestBody ? part("Body", schemas(requestBody.content)) : null,
      part("Answer", schemas(good[1].content)),
      part("Errors", el("dl", {}, others.map(([status, told]) => [el("dt", { className: "mono" }, status),
        el("dd", {}, told.description, told.headers ? el("span", { className: "note" }, ` · ${Object.keys(told.headers).join(", ")}`) : null)])),
        others.length ? el("pre", {}, outline(others[0][1].content["application/json"].schema, description)) : [])));
}

function copied(text) {
  const button = el("button", { className: "plain", onclick: async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } }, "Copy");
  return el("div", { className: "copy" }, el("pre", {}, text), navigator.clipboard ? button : null);
}

function curl({ method, path, parameters = [], requestBody, security }, description) {
  const filled = path.replace(/\{(\w+)\}/g, (_, name) => example(parameters.find((p) => p.name === name).schema, description));
  const lines = [`curl ${new URL(filled.slice(1), location.href.replace(/docs\/?$/, ""))}`];
  if (security?.length !== 0) lines.push('-H "Authorization: Bearer $KEY"');
  const json = requestBody?.content["application/json"];
  if (json) lines.push('-H "Content-Type: application/json"', `-d '${JSON.stringify(example(json.schema, description)).replaceAll("'", "'\\''")}'`);
  return lines.join(" \\\n  ");
}

/** A value that a schema allows; what may be left out is left out. */
function example(schema, description, depth = 0) {
  const found = resolved(schema, description);
  if (found.anyOf) return example(found.anyOf[0], description, depth);
  if ("const" in found) return found.const;
  if (found.enum) return found.enum[0] ?? "";
  const type = [found.type].flat()[0];
  if (type === "object") {
    const needed = found.required?.length ? found.required : Object.keys(found.properties ?? {});
    return Object.fromEntries(needed.map((name) => [name, example(found.properties[name], description, depth + 1)]));
  }
  if (type === "array") return depth > 8 ? [] : [example(found.items, description, depth + 1)];
  if (type === "boolean") return false;
  if (type === "number" || type === "integer") return found.minimum ?? 1;
  return found.contentEncoding ? "BASE64" : "...";
}

/** A schema in the way a programmer would write it down. */
function outline(schema, description, indent = "", seen = []) {
  if (schema?.$ref && seen.includes(schema.$ref)) return schema.$ref.split("/").pop();
  const inside = schema?.$ref ? [...seen, schema.$ref] : seen;
  const found = resolved(schema, description);
  if (typeof found !== "object") return "any";
  const deeper = (one, by = "  ") => outline(one, description, indent + by, inside);
  if ("const" in found) return JSON.stringify(found.const);
  if (found.enum) return found.enum.length > 12 ? `one of ${found.enum.length} texts` : found.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (found.anyOf) return found.anyOf.map((one) => deeper(one, "")).join(" | ");
  const type = [found.type ?? (found.contentMediaType || !Object.keys(found).length ? "bytes" : "any")].flat();
  if (type[0] === "object") {
    const rows = Object.entries(found.properties ?? {}).map(([name, one]) => `${indent}  ${name}${found.required?.includes(name) ? "" : "?"}: ${deeper(one)}`);
    if (rows.length) return `{\n${rows.join("\n")}\n${indent}}`;
    return found.additionalProperties ? `{ [name]: ${deeper(found.additionalProperties)} }` : "object";
  }
  if (type[0] === "array") return `[${deeper(found.items ?? {}, "")}, ...]`;
  const bounds = [found.minimum ?? found.exclusiveMinimum, found.maximum ?? found.exclusiveMaximum];
  const limited = bounds.every((bound) => bound !== undefined) && bounds[1] < 1e9 ? ` ${bounds[0]} to ${bounds[1]}` : "";
  return type.join(" | ") + limited + (found.contentMediaType ? ` (${found.contentEncoding ? `${found.contentEncoding} of ` : ""}${found.contentMediaType})` : "");
}
