"use strict";
// Draws the features in #data. Text from the model's vocabulary or corpus enters the page as textContent or as the title
// property, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawing(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const number = (value, digits = 4) => value.toLocaleString("en", { maximumSignificantDigits: digits });
const strength = (value) => value.toLocaleString("en", { minimumSignificantDigits: 4, maximumSignificantDigits: 4 });
const percent = (value) => (value >= 0.0001 ? `${Number((100 * value).toPrecision(3))}%` : `${(100 * value).toExponential(1)}%`);

// A token by itself: the spaces at its ends shown as dots.
function token(text) {
  const made = element("span", "token");
  made.dir = "auto";
  const [, before, middle, after] = text.match(/^( *)([^]*?)( *)$/);
  if (before) made.append(element("span", "space", "·".repeat(before.length)));
  made.append(middle);
  if (after) made.append(element("span", "space", "·".repeat(after.length)));
  return made;
}

function section(title, ...content) {
  const made = element("section");
  made.append(element("h3", "", title), ...content);
  return made;
}

// Counts of positive activations in bins of a quarter octave, both axes logarithmic.
function histogram(bins) {
  const width = 460, height = 225, left = 38, bottom = 36, top = 8;
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  const most = Math.max(...bins.map(([, , count]) => count));
  svg.setAttribute("aria-label", `Histogram of positive activations, ${bins.length} bins, most in one bin: ${most}`);
  const decades = Math.max(1, Math.log10(most));
  // A bin with one firing must show, so the axis starts half a decade below 1.
  const y = (count) => height - bottom - ((Math.log10(count) + 0.5) / (decades + 0.5)) * (height - bottom - top);
  for (let power = 0; power <= Math.floor(decades); power++) {
    const at = y(10 ** power);
    svg.append(drawing("line", { class: "grid", x1: left, x2: width, y1: at, y2: at }));
    svg.append(drawing("text", { x: left - 5, y: at + 3, "text-anchor": "end" }, number(10 ** power)));
  }
  const step = (width - left) / bins.length;
  const every = Math.ceil(bins.length / 8);
  bins.forEach(([low, high, count], i) => {
    const x = left + i * step;
    if (count) {
      const bar = drawing("rect", { class: "bar", x: x + 0.5, y: y(count), width: Math.max(1, step - 1), height: height - bottom - y(count) });
      bar.append(drawing("title", {}, `${number(low)} to ${number(high)}: ${count.toLocaleString("en")} tokens`));
      svg.append(bar);
    }
    if (i % every === 0) svg.append(drawing("text", { x, y: height - 21, "text-anchor": i ? "middle" : "start" }, number(low, 2)));
  });
  svg.append(drawing("text", { x: width, y: height - 5, "text-anchor": "end" }, "activation; both axes logarithmic"));
  return svg;
}

function lens(feature) {
  const box = element("div", "lens");
  for (const [name, pairs] of [["raises", feature.top], ["lowers", feature.bottom]]) {
    const list = element("ol");
    for (const [text, logit] of pairs) {
      const line = element("li");
      line.append(token(text), element("span", "", (logit >= 0 ? "+" : "−") + Math.abs(logit).toFixed(2)));
      list.append(line);
    }
    const half = element("div");
    half.append(element("h3", "", name), list);
    box.append(half);
  }
  return box;
}

function example(one, strongest) {
  const row = element("div", "example");
  const context = element("div", "context");
  context.dir = "auto";
  one.tokens.forEach((text, i) => {
    const value = one.acts[i];
    const part = element("span", i === one.at ? "peak" : "", text);
    if (value > 0) {
      part.style.backgroundColor = `rgb(var(--mark) / calc(var(--strength) * ${Math.min(1, value / strongest)}))`;
      part.title = number(value);
    } else if (value === null) part.title = "not in the store";
    context.append(part);
  });
  if (!one.tokens.length) context.append(`row ${one.row}`);
  const where = one.document >= 0 ? `doc ${one.document} · ${one.position}` : `row ${one.row}`;
  row.append(element("div", "value", strength(one.value)), context, element("div", "where", where));
  return row;
}

function show(feature) {
  const main = find("feature");
  main.replaceChildren();
  if (!feature) {
    main.append(element("p", "empty", data.features.length ? "No feature matches the search." : "There is no feature to show."));
    return;
  }
  const facts =
    `fires on ${feature.fired.toLocaleString("en")} of ${data.tokens.toLocaleString("en")} tokens (${percent(feature.density)})` +
    ` · max activation ${number(feature.max)} · decoder norm ${number(feature.norm)}`;
  main.append(element("h2", "", `Latent ${feature.id}`), element("p", "facts", facts));
  const panels = element("div", "panels");
  if (feature.bins.length) panels.append(section("Positive activations (tokens, by strength)", histogram(feature.bins)));
  if (feature.top) panels.append(section("Logit lens: the direction alone", lens(feature)));
  main.append(panels);
  const examples = feature.examples.map((one) => example(one, feature.max));
  main.append(section(`Strongest ${examples.length} firings`, ...examples));
  main.scrollTop = 0;
}

const haystack = new Map(
  data.features.map((feature) => {
    const words = feature.examples.map((one) => one.tokens.join("")).concat((feature.top || []).map(([text]) => text));
    return [feature, `${feature.id}\n${words.join("\n")}`.toLowerCase()];
  }),
);
const ORDERS = {
  max: (a, b) => b.max - a.max,
  frequent: (a, b) => b.density - a.density,
  rare: (a, b) => a.density - b.density,
  id: (a, b) => a.id - b.id,
};
let listed = [];
let current = null;

function select(feature, focus) {
  current = feature;
  show(feature);
  for (const button of find("list").querySelectorAll("button")) {
    const chosen = feature !== null && button.dataset.id === String(feature.id);
    button.setAttribute("aria-current", chosen);
    if (chosen) button.scrollIntoView({ block: "nearest" });
    if (chosen && focus) button.focus({ preventScroll: true });
  }
  if (feature) history.replaceState(null, "", `#${feature.id}`);
}

function refresh() {
  const wanted = find("search").value.toLowerCase().replaceAll("·", " ");
  listed = data.features.filter((feature) => haystack.get(feature).includes(wanted)).sort(ORDERS[find("sort").value]);
  find("list").replaceChildren(
    ...listed.map((feature) => {
      const button = element("button");
      button.type = "button";
      button.dataset.id = feature.id;
      const tokens = element("span", "tokens");
      const seen = [...new Set(feature.examples.filter((one) => one.tokens.length).map((one) => one.tokens[one.at]))].slice(0, 4);
      seen.forEach((text, i) => tokens.append(i ? "  " : "", token(text)));
      button.append(element("span", "number", feature.id), tokens, element("span", "max", strength(feature.max)));
      button.addEventListener("click", () => select(feature, true));
      const item = element("li");
      item.append(button);
      return item;
    }),
  );
  find("shown").textContent = `${listed.length} of ${data.features.length} features`;
  select(listed.includes(current) ? current : listed[0] || null, false);
}

function step(by) {
  if (!listed.length) return;
  const at = listed.indexOf(current) + by;
  select(listed[Math.min(listed.length - 1, Math.max(0, at))], true);
}

find("title").textContent = data.title;
find("rule").textContent = data.rule;
for (const [name, value] of data.facts) {
  const pair = element("div");
  pair.append(element("dt", "", name), element("dd", "", value));
  find("facts").append(pair);
}
find("search").addEventListener("input", refresh);
find("sort").addEventListener("change", refresh);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = document.activeElement === find("search") || document.activeElement === find("sort");
  if (event.key === "Escape") document.activeElement.blur();
  else if (typing) return;
  else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "/") {
    event.preventDefault();
    find("search").focus();
  }
});
const asked = data.features.find((feature) => `#${feature.id}` === location.hash);
if (asked) current = asked;
refresh();
