"use strict";
// Draws one latent of #data; what stands where is in feature_page_data.py. Text from the model's vocabulary, the corpus or people
// enters the page as textContent, as the value of a field or as the title property, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const byLatent = new Map(data.features.map((feature) => [feature.id, feature]));
const find = (id) => document.getElementById(id);

function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
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
const count = (value) => value.toLocaleString("en");
const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
function percent(share, digits = 3) {
  if (share === 0) return "0%";
  return share >= 0.0001 ? `${Number((100 * share).toPrecision(digits))}%` : `${(100 * share).toExponential(1)}%`;
}
const density = (feature) => feature.fired / data.tokens;

// A token by itself: the spaces at its ends shown as dots, its id as a tooltip.
function token(place) {
  const text = data.vocabulary[place];
  const made = element("span", "token");
  made.dir = "auto";
  if (data.ids[place] >= 0) made.title = `token ${data.ids[place]}`;
  const [, before, middle, after] = text.match(/^( *)([^]*?)( *)$/);
  if (before) made.append(element("span", "space", "·".repeat(before.length)));
  made.append(middle);
  if (after) made.append(element("span", "space", "·".repeat(after.length)));
  return made;
}

// Text of people on one line with nothing hidden, as `visible` of textwindows shows it.
const invisible = new RegExp(data.invisible, "gu");
const signs = { "\n": "↵", "\r": "⇤", "\t": "⇥" };
const visible = (text) => text.replace(invisible, (one) => signs[one] ?? `⟨U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

function section(title, note, ...content) {
  const made = element("section", "", element("h3", "", title));
  if (note) made.append(element("p", "note", note));
  made.append(...content);
  return made;
}

// Counts of positive activations in bins of a quarter octave, both axes logarithmic, with two quantiles and the largest.
function histogram(feature) {
  const [first, counts] = feature.bins;
  const width = 460, height = 220, left = 38, right = 8, bottom = 36, top = 22;
  const most = Math.max(...counts);
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.setAttribute("aria-label", `Histogram of positive activations, ${counts.length} bins, most in one bin: ${most}`);
  const decades = Math.max(1, Math.log10(most));
  // A bin with one firing must show, so the axis starts half a decade below 1.
  const y = (n) => height - bottom - ((Math.log10(n) + 0.5) / (decades + 0.5)) * (height - bottom - top);
  for (let power = 0; power <= Math.floor(decades); power++) {
    const at = y(10 ** power);
    svg.append(drawing("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }));
    svg.append(drawing("text", { x: left - 5, y: at + 3, "text-anchor": "end" }, number(10 ** power)));
  }
  const step = (width - left - right) / counts.length;
  const every = Math.ceil(counts.length / 8);
  counts.forEach((n, i) => {
    const x = left + i * step;
    const [low, high] = [data.edges[first + i], data.edges[first + i + 1]];
    if (n) {
      const bar = drawing("rect", { class: "bar", x: x + 0.5, y: y(n), width: Math.max(1, step - 1), height: height - bottom - y(n) });
      bar.append(drawing("title", {}, `${number(low)} to ${number(high)}: ${count(n)} tokens`));
      svg.append(bar);
    }
    if (i % every === 0) svg.append(drawing("text", { x, y: height - 21, "text-anchor": i ? "middle" : "start" }, number(low, 2)));
  });
  const place = (value) => {
    let bin = 0;
    while (bin < counts.length - 1 && value >= data.edges[first + bin + 1]) bin++;
    const [low, high] = [data.edges[first + bin], data.edges[first + bin + 1]];
    return left + (bin + Math.min(1, Math.max(0, (value - low) / (high - low)))) * step;
  };
  let free = width;
  for (const [name, value] of [["max", feature.max], ["q95", feature.quantiles[1]], ["q50", feature.quantiles[0]]]) {
    const x = place(value);
    const line = drawing("line", { class: "quantile", x1: x, x2: x, y1: top - 4, y2: height - bottom });
    line.append(drawing("title", {}, `${name} ${strength(value)}`));
    svg.append(line);
    const at = Math.min(x, free - 12);
    svg.append(drawing("text", { class: "mark", x: at, y: top - 9, "text-anchor": "middle" }, name));
    free = at - 14;
  }
  svg.append(drawing("text", { x: width - right, y: height - 5, "text-anchor": "end" }, "activation; both axes logarithmic"));
  return svg;
}

// The rate of firing by place in the context, in doubling bins.
function positions(feature) {
  const last = data.positions.findLastIndex((rows) => rows > 0);
  const rates = data.positions.slice(0, last + 1).map((rows, i) => [rows, feature.positions[i] || 0]);
  const names = rates.map((_, i) => (i < 2 ? String(i) : `${2 ** (i - 1)}–${2 ** i - 1}`));
  const largest = Math.max(...rates.map(([rows, fired]) => (rows ? fired / rows : 0)));
  const list = element("ol", "bars");
  rates.forEach(([rows, fired], i) => {
    if (!rows) return;
    const bar = element("span", "measure", element("span"));
    bar.firstChild.style.width = `${largest ? (100 * fired) / rows / largest : 0}%`;
    const line = element("li", "", element("span", "", names[i]), bar, element("span", "figure", percent(fired / rows, 2)));
    line.title = `position ${names[i]}: fires on ${count(fired)} of ${count(rows)} tokens`;
    list.append(line);
  });
  return list;
}

function lens(name, pairs) {
  const list = element("ol", "pairs");
  for (const [place, logit] of pairs) list.append(element("li", "", token(place), element("span", "figure", signed(logit))));
  return element("div", "", element("h4", "", name), list);
}

function neighbours(name, pairs, digits) {
  const list = element("ol", "pairs");
  for (const [latent, score] of pairs) {
    const there = byLatent.get(latent);
    const line = element("li", there ? "" : "absent");
    const what = element("span", "neighbour", element("span", "figure", String(latent)), " ", ...(there ? gist(there, 2) : []));
    if (there) {
      const button = element("button", "", what);
      button.type = "button";
      button.addEventListener("click", () => select(there));
      line.append(button);
    } else {
      what.title = "not on this page";
      line.append(what);
    }
    line.append(element("span", "figure", score.toFixed(digits)));
    list.append(line);
  }
  return element("div", "", element("h4", "", name), pairs.length ? list : element("p", "note", "none"));
}

// A latent in a few words: what somebody called it, or the distinct tokens of its strongest firings.
function gist(feature, n) {
  const label = marks.get(feature.id)?.label;
  if (label) return [element("span", "label", visible(label))];
  const seen = [...new Set(feature.examples.filter((one) => one[5].length).map((one) => one[5][one[4]]))].slice(0, n);
  return seen.flatMap((place, i) => (i ? ["  ", token(place)] : [token(place)]));
}

function example([value, row, inDocument, position, at, tokens, acts], largest) {
  const context = element("div", "context");
  context.dir = "auto";
  const found = new Map();
  for (let i = 0; i < acts.length; i += 2) found.set(acts[i], acts[i + 1]);
  tokens.forEach((place, i) => {
    const act = found.get(i) ?? 0;
    const part = element("span", i === at ? (value > 0 ? "peak" : "here") : "", data.vocabulary[place]);
    if (act > 0) {
      part.style.backgroundColor = `rgb(var(--mark) / calc(var(--strength) * ${Math.min(1, act / largest)}))`;
      part.title = `${number(act)} · token ${data.ids[place]}`;
    } else part.title = (found.has(i) ? "not in the store · " : "") + `token ${data.ids[place]}`;
    context.append(part);
  });
  if (!tokens.length) context.append(`row ${row}`);
  const where = inDocument >= 0 ? `doc ${inDocument}${position >= 0 ? ` · ${position}` : ""}` : `row ${row}`;
  return element("div", "example", element("div", "value", value > 0 ? strength(value) : "0"), context, element("div", "where", where));
}

// The fields in which a reader says what a latent is. Nothing is kept but in what the page exports.
function markings(feature) {
  const mark = marks.get(feature.id) ?? { label: "", notes: "", starred: false };
  const star = element("button", "star", mark.starred ? "★" : "☆");
  star.type = "button";
  star.id = "star";
  star.title = "star (s)";
  star.setAttribute("aria-pressed", mark.starred);
  star.addEventListener("click", () => setMark(feature.id, { starred: !(marks.get(feature.id)?.starred ?? false) }));
  const fields = ["label", "notes"].map((name) => {
    const field = element("input");
    field.id = name;
    field.type = "text";
    field.value = mark[name];
    field.placeholder = name === "label" ? "what it stands for" : "notes";
    field.setAttribute("aria-label", field.placeholder);
    field.autocomplete = "off";
    field.addEventListener("input", () => setMark(feature.id, { [name]: field.value }));
    return field;
  });
  const hidden = [mark.label, mark.notes].filter((text) => visible(text) !== text).map((text) => element("p", "note", visible(text)));
  return element("div", "markings", element("h2", "", `Latent ${feature.id}`), star, ...fields, ...hidden);
}

function facts(feature) {
  const [low, high] = feature.interval;
  const found = [
    ["fires on", `${count(feature.fired)} of ${count(data.tokens)} tokens, ${percent(density(feature))}`, ""],
    ["95% interval", `${percent(low, 2)} to ${percent(high, 2)}`, "Of the rate of firing, as if tokens were independent; neighbours in a text are not, so it is wider."],
    ["largest", strength(feature.max), ""],
  ];
  if (feature.quantiles) found.push(["median, q95", feature.quantiles.map(strength).join(", "), "Of its firings, the strongest half and twentieth lie above."]);
  if (feature.first >= 0) found.push(["first, last firing", `${count(feature.first)}, ${count(feature.last)}`, "Rows of the store, in its order."]);
  if (feature.entropy !== undefined) {
    const most = Math.log(Math.min(data.top, feature.fired)).toFixed(2);
    found.push(["token entropy", `${feature.entropy.toFixed(2)} of ${most} nats`, `Of the tokens of its ${data.top} strongest firings: 0 where all are one token.`]);
  }
  if (feature.share !== undefined) {
    const what = "Share of its commonest token, over a sample of all its firings; unigram where that and its share of the strongest reach 90%.";
    found.push(["on one token", percent(feature.share, 2) + (feature.unigram ? ", unigram" : ""), what]);
  }
  if (feature.score !== undefined) found.push(["output score", number(feature.score, 3), "How much firing hard makes the model say what the logit lens promises; Arad et al. 2025."]);
  found.push(["decoder norm", number(feature.norm), ""]);
  const list = element("dl", "numbers");
  for (const [name, value, title] of found) {
    const pair = element("div", "", element("dt", "", name), element("dd", "", value));
    pair.title = title;
    list.append(pair);
  }
  return list;
}

function where(feature) {
  const content = [];
  const [sampled, common] = feature.tokens;
  if (sampled) {
    const list = element("ol", "pairs");
    for (const [place, n] of common) list.append(element("li", "", token(place), element("span", "figure", percent(n / sampled, 2))));
    content.push(element("div", "", element("h4", "", `tokens of ${sampled} of its firings`), list));
  }
  if (feature.positions.length) {
    const share = (feature.positions[0] || 0) / feature.fired;
    const first = data.positions[0] ? `${percent(share, 2)} of its firings are on the first token${data.bos ? ", the BOS" : ""}` : `position 0${data.bos ? ", the BOS," : ""} is not in the store`;
    content.push(element("div", "", element("h4", "", "rate by position"), positions(feature), element("p", "note", first)));
  }
  return content;
}

function intervals(feature) {
  const n = feature.intervals.length;
  return feature.intervals.map(([low, high, fired, examples], i) => {
    const share = fired === null ? `${percent(1 / n)} of its firings` : `${count(fired)} of ${count(feature.fired)} firings, ${percent(fired / feature.fired)}`;
    const bounds = `${low > 0 ? strength(low) : "above 0"} to ${strength(high)}`;
    const head = element("h4", "", element("b", "", `q${(100 * (n - 1 - i)) / n}–q${(100 * (n - i)) / n}`), `  ${bounds}  ·  ${share}`);
    const shown = examples.map((one) => example(one, feature.max));
    return element("div", "interval", head, ...(shown.length ? shown : [element("p", "note", "no firing of the sample lies here")]));
  });
}

function show(feature) {
  const main = find("feature");
  main.replaceChildren();
  if (!feature) {
    main.append(element("p", "empty", data.features.length ? "No feature matches the search." : "There is no feature to show."));
    return;
  }
  main.append(markings(feature), facts(feature));
  if (!feature.fired) main.append(element("p", "empty", "It never fired on these tokens."));
  const panels = element("div", "panels");
  const columns = (...content) => element("div", "columns", ...content);
  if (feature.fired) panels.append(section("Positive activations", "Tokens by strength of firing.", histogram(feature)));
  if (feature.top) {
    const note = "Tokens that the direction alone argues for and against: logits for a unit of activation.";
    panels.append(section("Logit lens", note, columns(lens("raises", feature.top), lens("lowers", feature.bottom))));
  }
  const places = where(feature);
  if (places.length) panels.append(section("Where it fires", "", columns(...places)));
  const near = [neighbours("decoder cosine", feature.cosine, 2), neighbours("Jaccard", feature.jaccard, 2), neighbours("PMI, nats", feature.pmi, 1)];
  const sample = `Jaccard and PMI: firing on the same tokens, over a sample of ${count(data.sampled)} tokens.`;
  panels.append(section("Neighbours", sample, columns(...near)));
  main.append(panels);
  if (feature.examples.length) {
    main.append(section(`Strongest ${feature.examples.length} firings`, "", ...feature.examples.map((one) => example(one, feature.max))));
    const drawn = feature.intervals.some(([, , fired]) => fired === null) ? `drawn from a random sample of ${feature.tokens[0] || "its firings"}; bounds are good to a bin of the histogram` : "all of its firings are known";
    main.append(section("Firings by quantile", `Each interval holds an equal share of its firings; examples ${drawn}.`, ...intervals(feature)));
  }
  if (feature.contrast.length) main.append(section("Where it is silent", "Random tokens on which it does not fire.", ...feature.contrast.map((one) => example(one, feature.max || 1))));
  main.scrollTop = 0;
}
