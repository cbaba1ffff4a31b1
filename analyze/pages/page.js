// The list of all latents of the page, its search and order, the keys, and what a reader writes. Follows feature.js.

const ROW_PX = 34, SPARE_ROWS = 12;
const NUMBERS = { latent: (f) => f.id, density, max: (f) => f.max, entropy: (f) => f.entropy, share: (f) => f.share, score: (f) => f.score };
const shownNumber = { latent: String, density: (x) => percent(x, 2), max: strength, entropy: (x) => x.toFixed(2), share: (x) => percent(x, 2), score: (x) => x.toFixed(2) };
const columns = Object.keys(NUMBERS).filter((name) => data.features.some((feature) => NUMBERS[name](feature) !== undefined));

const marks = new Map();
for (const { id, label } of data.features) if (label) marks.set(id, { label: label[0], notes: label[1], starred: label[2] });
const edited = new Set();

const order = { by: "max", descending: true };
let listed = [];
let current = null;
let drawn = "";

// What is searched: number, labels, the text of the strongest firings, the logit lens.
const texts = new Map();
function haystack(feature) {
  if (!texts.has(feature)) {
    const words = feature.examples.map((one) => one[5].map((place) => data.vocabulary[place]).join(""));
    for (const [place] of feature.top ?? []) words.push(data.vocabulary[place]);
    texts.set(feature, `${feature.id}\n${words.join("\n")}`.toLowerCase());
  }
  const mark = marks.get(feature.id);
  return mark ? `${mark.label}\n${mark.notes}\n`.toLowerCase() + texts.get(feature) : texts.get(feature);
}

// "max>5 is:starred king" → a test of each condition, and the text that is left.
function filter(query) {
  const tests = [];
  const rest = query.replace(/(?:^|\s)(?:(density|max|entropy|share|score)\s*([<>])\s*(\d[\d.e-]*)|is:(starred|labelled|unigram))(?=\s|$)/gi, (_, name, sign, value, is) => {
    if (is?.toLowerCase() === "unigram") tests.push((f) => Boolean(f.unigram));
    else if (is) tests.push((f) => Boolean(marks.get(f.id)?.[is.toLowerCase() === "starred" ? "starred" : "label"]));
    else tests.push((f) => (sign === ">" ? NUMBERS[name.toLowerCase()](f) > Number(value) : NUMBERS[name.toLowerCase()](f) < Number(value)));
    return "";
  });
  const wanted = (tests.length ? rest.trim() : rest).toLowerCase().replaceAll("·", " ");
  if (wanted) tests.push((f) => haystack(f).includes(wanted));
  return (feature) => tests.every((test) => test(feature));
}

function refresh() {
  const value = NUMBERS[order.by];
  const known = (feature) => value(feature) ?? (order.descending ? -Infinity : Infinity);
  const sign = order.descending ? -1 : 1;
  listed = data.features.filter(filter(find("search").value)).sort((a, b) => sign * (known(a) - known(b)) || a.id - b.id);
  find("shown").textContent = `${count(listed.length)} of ${count(data.features.length)}`;
  for (const button of find("heads").children) {
    const sorted = button.dataset.by === order.by;
    button.setAttribute("aria-pressed", sorted);
    button.lastChild.textContent = sorted ? (order.descending ? " ↓" : " ↑") : "";
  }
  find("sort").value = order.by;
  find("turn").textContent = order.descending ? "↓" : "↑";
  find("list").dataset.by = order.by;
  find("rows").style.height = `${listed.length * ROW_PX}px`;
  find("list").scrollTop = 0;
  drawn = "";
  if (listed.includes(current)) drawRows();
  else select(listed[0] ?? null);
}

// Only the rows in view are in the page.
function drawRows() {
  const list = find("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - SPARE_ROWS);
  const last = Math.min(listed.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PX) + SPARE_ROWS);
  const wanted = `${first} ${last} ${current?.id}`;
  if (wanted === drawn) return;
  drawn = wanted;
  const focused = document.activeElement?.closest?.("#rows") ? document.activeElement.dataset.latent : null;
  find("rows").replaceChildren(...listed.slice(first, last).map((feature, i) => row(feature, first + i)));
  if (focused !== null) find("rows").querySelector(`[data-latent="${focused}"]`)?.focus({ preventScroll: true });
}

function row(feature, at) {
  const button = element("button");
  button.type = "button";
  button.tabIndex = feature === current ? 0 : -1;
  button.dataset.latent = feature.id;
  button.setAttribute("aria-current", feature === current);
  button.append(element("span", "mark", marks.get(feature.id)?.starred ? "★" : ""));
  for (const name of columns) {
    const value = NUMBERS[name](feature);
    const cell = element("span", "cell", value === undefined ? "–" : shownNumber[name](value));
    cell.dataset.column = name;
    button.append(cell);
    if (name === "latent") button.append(element("span", "gist", ...gist(feature, document.body.classList.contains("table") ? 12 : 4)));
  }
  button.addEventListener("click", () => {
    select(feature, true);
    asTable(false);
  });
  const item = element("li", "", button);
  item.style.top = `${at * ROW_PX}px`;
  item.setAttribute("aria-setsize", listed.length);
  item.setAttribute("aria-posinset", at + 1);
  return item;
}

// Scroll the list so that the current latent's row can be seen.
function reveal() {
  const list = find("list");
  const top = listed.indexOf(current) * ROW_PX;
  if (top >= 0 && top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_PX - list.clientHeight;
  drawRows();
}

function select(feature, focus = false) {
  if (feature && !listed.includes(feature)) {
    find("search").value = "";
    current = feature;
    refresh();
  }
  current = feature;
  show(feature);
  reveal();
  if (feature) history.replaceState(null, "", `#${feature.id}`);
  if (feature && focus) find("rows").querySelector('[aria-current="true"]')?.focus({ preventScroll: true });
}

function step(by) {
  if (!listed.length) return;
  select(listed[Math.min(listed.length - 1, Math.max(0, listed.indexOf(current) + by))]);
}

function asTable(wanted) {
  document.body.classList.toggle("table", wanted);
  find("table").setAttribute("aria-pressed", wanted);
  drawn = "";
  reveal();
}

function setMark(latent, change) {
  marks.set(latent, { label: "", notes: "", starred: false, ...marks.get(latent), ...change });
  edited.add(latent);
  find("export").hidden = false;
  find("export").textContent = `Download ${edited.size} change${edited.size > 1 ? "s" : ""}`;
  if (current?.id === latent) {
    find("star").textContent = marks.get(latent).starred ? "★" : "☆";
    find("star").setAttribute("aria-pressed", marks.get(latent).starred);
  }
  drawn = "";
  drawRows();
}

// A file for `saelens-lite search INDEX --import-labels FILE`.
function exportMarks() {
  const labels = [...edited].sort((a, b) => a - b).map((latent) => ({ latent, ...marks.get(latent) }));
  const text = JSON.stringify({ ...data.labels, labels }, null, 1);
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = element("a");
  link.href = url;
  link.download = "labels.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  // A page cannot see whether the file arrived (Jupyter's sandbox drops it), so the changes stay on offer, as text too.
  find("exported").value = text;
  find("exported").parentElement.hidden = false;
}

// The latent that the address ends with.
function asked() {
  return /^#\d+$/.test(location.hash) ? byLatent.get(Number(location.hash.slice(1))) ?? null : null;
}

function typing() {
  return ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement?.tagName);
}

find("title").textContent = data.title;
find("rule").textContent = data.rule;
for (const [name, value] of data.facts) find("facts").append(element("div", "", element("dt", "", name), element("dd", "", value)));
find("list").parentElement.style.setProperty("--numbers", columns.length - 1);
for (const name of columns.toSpliced(1, 0, "gist")) {
  const head = element("button", "", name === "gist" ? "tokens" : name, element("span"));
  head.type = "button";
  head.dataset.by = name;
  if (name === "gist") head.disabled = true;
  head.addEventListener("click", () => {
    order.descending = order.by === name ? !order.descending : name !== "latent" && name !== "entropy";
    order.by = name;
    refresh();
  });
  find("heads").append(head);
  if (name !== "gist") {
    const option = element("option", "", { latent: "number", max: "max", score: "output score", entropy: "token entropy", share: "commonest token" }[name] ?? name);
    option.value = name;
    find("sort").append(option);
  }
}
find("search").addEventListener("input", refresh);
find("sort").addEventListener("change", () => {
  order.by = find("sort").value;
  order.descending = order.by !== "latent" && order.by !== "entropy";
  refresh();
});
find("turn").addEventListener("click", () => {
  order.descending = !order.descending;
  refresh();
});
find("table").addEventListener("click", () => asTable(!document.body.classList.contains("table")));
find("export").addEventListener("click", exportMarks);
let waiting = false;
find("list").addEventListener("scroll", () => {
  if (!waiting) requestAnimationFrame(() => { waiting = false; drawRows(); });
  waiting = true;
});
addEventListener("resize", drawRows);
addEventListener("beforeunload", (event) => { if (edited.size) event.preventDefault(); });
addEventListener("hashchange", () => {
  if (asked() && asked() !== current) select(asked());
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (typing()) document.activeElement.blur();
    else asTable(false);
  } else if (typing()) {
    if (event.key === "Enter") document.activeElement.blur();
  } else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "s" && current) setMark(current.id, { starred: !(marks.get(current.id)?.starred ?? false) });
  else if (event.key === "t") asTable(!document.body.classList.contains("table"));
  else if (event.key === "/") {
    event.preventDefault();
    find("search").focus();
  }
});
current = asked();
refresh();
if (asked()) select(current);
