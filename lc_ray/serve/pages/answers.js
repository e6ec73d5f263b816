/** Answers as people read them. What a task's answers are is told by their schema, so that a new task needs nothing here. */
const MOST = 10; // bars

/** Elements of one answer.
 * @param given the request's values by column, for a picture on which boxes are drawn, or the words that were tagged. */
function told(answer, schema, given) {
  const { probabilities, ...rest } = answer;
  const parts = Object.entries(rest).flatMap(([name, value]) => one(name, value, schema.properties?.[name] ?? {}, given, answer));
  return probabilities ? [...parts, bars(Object.entries(probabilities))] : parts;
}

function one(name, value, schema, given, answer) {
  if (schema.contentMediaType?.startsWith("image/")) return [el("img", { className: "drawn", src: value, alt: "The answer, a picture" })];
  if (schema.contentMediaType?.startsWith("audio/")) return [el("audio", { controls: true, src: value })];
  if (name === "labels") return [el("p", { className: "gist" }, value.join(", ") || "none")];
  if (name === "text") return [el("p", { className: "said" }, value || "(nothing)")];
  if (name === "objects") return boxes(value, given);
  if (name === "entities") return words(value, given);
  if (["words", "tags"].includes(name) && answer.entities) return [];
  if (name === "masks") return value.map((mask) => bars(mask.candidates.map(({ token, probability }) => [token, probability])));
  if (typeof value === "number") return [el("p", { className: "gist" }, value.toLocaleString("en", { maximumSignificantDigits: 6 }))];
  if (typeof value === "string") return [el("p", { className: "gist" }, value)];
  return [el("pre", {}, JSON.stringify(value, null, 2))];
}

/** Probabilities, the likeliest first. */
function bars(pairs) {
  const sorted = pairs.toSorted ? pairs.toSorted((a, b) => b[1] - a[1]) : [...pairs].sort((a, b) => b[1] - a[1]);
  const rows = sorted.slice(0, MOST).flatMap(([label, share], i) => {
    const filled = el("i");
    filled.style.width = `${100 * share}%`;
    const best = i === 0 ? "best" : "";
    return [el("dt", { className: best }, label), el("dd", { className: `track ${best}`, ariaHidden: "true" }, filled), el("dd", { className: "share" }, percent(share))];
  });
  const more = sorted.length > MOST ? el("small", {}, `and ${sorted.length - MOST} less likely`) : null;
  return el("div", { className: "field" }, el("dl", { className: "bars" }, rows), more);
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

/** Objects as boxes on the picture that was sent, and as a list. */
function boxes(objects, given) {
  const labels = [...new Set(objects.map(({ label }) => label))];
  const colour = (label) => `c${labels.indexOf(label) % 8}`;
  const list = el("ul", { className: "found" }, objects.map(({ label, score }) => el("li", {}, el("i", { className: colour(label) }), label, el("small", {}, percent(score)))));
  const shown = [objects.length ? list : el("p", { className: "gist" }, "nothing found")];
  const picture = Object.values(given).find((value) => typeof value === "string" && value.startsWith("data:image/"));
  if (!picture) return shown;
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const image = el("img", { src: picture, alt: "The picture, with a box around each object", onload: () => {
    drawing.setAttribute("viewBox", `0 0 ${image.naturalWidth} ${image.naturalHeight}`);
    for (const { label, box: [left, top, right, bottom] } of objects) {
      const rectangle = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const sizes = { class: colour(label), x: left, y: top, width: right - left, height: bottom - top, rx: 2 };
      for (const [name, value] of Object.entries(sizes)) rectangle.setAttribute(name, value);
      drawing.append(rectangle);
    }
  } });
  return [el("div", { className: "boxed" }, image, drawing), ...shown];
}

/** A text with its entities marked, or the entities alone where it is not the one that was tagged. */
function words(entities, given) {
  const text = [...(Object.values(given).find((value) => typeof value === "string") ?? "")]; // characters, of which some are two of JavaScript's
  const part = (start, end) => text.slice(start, end).join("");
  const kinds = [...new Set(entities.map(({ type }) => type))];
  const mark = ({ type, text: said }) => el("span", { className: `word c${kinds.indexOf(type) % 8}` }, said, el("small", {}, type));
  if (!entities.every(({ start, end, text: said }) => part(start, end) === said)) {
    return [el("p", { className: "words" }, entities.flatMap((entity) => [mark(entity), " "]))];
  }
  const parts = [];
  let at = 0;
  for (const entity of entities) {
    parts.push(part(at, entity.start), mark(entity));
    at = entity.end;
  }
  return [el("p", { className: "words" }, parts, part(at))];
}

/** An answer as JSON, in which pictures and sounds are cut short. */
function raw(content) {
  const short = (_, value) => (typeof value === "string" && value.startsWith("data:") && value.length > 80 ? `${value.slice(0, 60)}…` : value);
  return el("details", { className: "raw" }, el("summary", {}, "JSON"), el("pre", {}, JSON.stringify(content, short, 2)));
}
