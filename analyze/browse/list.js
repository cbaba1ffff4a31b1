// The list and table of all latents: their numbers, search and order; what a reader writes about them.

const ROW_PX = 34, SPARE_ROWS = 12;
const NAMES = { latent: "number", density: "density", max: "max", entropy: "token entropy", share: "commonest token", score: "output score", cosine: "nearest decoder cosine", first: "firings on position 0", norm: "decoder norm" };
const shownNumber = {
  latent: String, density: (x) => percent(x, 2), max: strength, entropy: (x) => x.toFixed(2), share: (x) => percent(x, 2), score: (x) => x.toFixed(2),
  cosine: (x) => x.toFixed(2), first: (x) => percent(x, 2), norm: (x) => number(x, 3),
};
const IN_TABLE = ["latent", "density", "max", "entropy", "share", "score", "cosine"];
const CONDITION = /(?:^|\s)(?:(latent|density|max|entropy|share|score|cosine|first|norm)\s*([<>]=?|=)\s*(-?\d[\d.e+-]*)|is:(starred|labelled|unigram|dead|here))(?=\s|$)/gi;

// Numbers by column, for any latent; NaN for none.
function numbersOf({ head, table }) {
  const found = { latent: (i) => i, density: (i) => table.fired[i] / head.tokens };
  for (const name of Object.keys(NAMES)) if (table[name]) found[name] = (i) => table[name][i];
  return found;
}

function listView(app) {
  const { root, head, table, texts, marks } = app;
  const find = (id) => root.getElementById(id);
  const frame = find("browser");
  const numbers = app.numbers;
  const columns = IN_TABLE.filter((name) => numbers[name]);
  const order = { by: "max", descending: true };
  const edited = new Set();
  let listed = [], places = new Map(), drawn = "", waiting = false, elsewhere = null;

  // What is searched: number, labels, the tokens of the strongest firings, their text and the logit lens where they are here.
  const cached = new Map();
  function haystack(latent) {
    if (!cached.has(latent)) {
      const words = [latent, ...app.gistIds(latent, Infinity).map((id) => texts.of(id))];
      const feature = app.loaded(latent);
      for (const one of feature?.examples ?? []) words.push(one.pieces.join(""));
      for (const [id] of feature?.top ?? []) words.push(texts.of(id));
      cached.set(latent, words.join("\n").toLowerCase());
    }
    const mark = marks.get(latent);
    return mark ? `${mark.label}\n${mark.notes}\n`.toLowerCase() + cached.get(latent) : cached.get(latent);
  }

  const is = {
    starred: (i) => Boolean(marks.get(i)?.starred), labelled: (i) => Boolean(marks.get(i)?.label), unigram: (i) => Boolean(table.unigram[i]),
    dead: (i) => table.fired[i] === 0, here: app.hasPanels,
  };
  const compare = { ">": (a, b) => a > b, "<": (a, b) => a < b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b, "=": (a, b) => a === b };

  // "max>5 is:starred king" → a test of each condition, and the text that is left.
  function filter(query) {
    const tests = [];
    const rest = query.replace(CONDITION, (_, name, sign, value, word) => {
      if (word) tests.push(is[word.toLowerCase()]);
      else {
        const of = numbers[name.toLowerCase()] ?? (() => NaN), bound = Number(value);
        tests.push((i) => compare[sign](of(i), bound));
      }
      return "";
    });
    const text = (tests.length ? rest.trim() : rest).toLowerCase();
    // A middle dot stands for a space, as tokens show it, or for itself.
    const spaced = text.replaceAll("·", " ");
    if (text) tests.push((i) => { const found = haystack(i); return found.includes(spaced) || found.includes(text); });
    return { test: (latent) => tests.every((test) => test(latent)), text: spaced };
  }

  function refresh() {
    const value = numbers[order.by];
    const sign = order.descending ? -1 : 1;
    const { test } = filter(find("search").value);
    const scope = find("scope").value === "here" ? app.here : app.all;
    listed = scope.filter((latent) => test(latent) || elsewhere?.has(latent));
    const keys = new Float64Array(table.fired.length);
    for (const i of listed) { const known = value(i); keys[i] = Number.isNaN(known) ? Infinity : sign * known; }
    listed.sort((a, b) => keys[a] - keys[b] || a - b);
    places = null;
    find("shown").textContent = `${count(listed.length)} of ${count(scope.length)}`;
    for (const one of find("heads").children) {
      const sorted = one.dataset.by === order.by;
      one.setAttribute("aria-pressed", sorted);
      one.lastChild.textContent = sorted ? (order.descending ? " ↓" : " ↑") : "";
    }
    find("sort").value = order.by;
    find("turn").textContent = order.descending ? "↓" : "↑";
    find("list").dataset.by = order.by;
    find("rows").style.height = `${listed.length * ROW_PX}px`;
    find("list").scrollTop = 0;
    drawn = "";
    if (app.current !== null && placeOf(app.current) >= 0) drawRows();
    else choose(listed[0] ?? null);
    app.onListed?.(listed);
  }

  function placeOf(latent) {
    places ??= new Map(listed.map((one, i) => [one, i]));
    return places.get(latent) ?? -1;
  }

  // Only the rows in view are in the page.
  function drawRows() {
    const list = find("list");
    const first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - SPARE_ROWS);
    const last = Math.min(listed.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PX) + SPARE_ROWS);
    const wanted = `${first} ${last} ${app.current}`;
    if (wanted === drawn) return;
    drawn = wanted;
    const focused = root.activeElement?.closest?.("#rows") ? root.activeElement.dataset.latent : null;
    find("rows").replaceChildren(...listed.slice(first, last).map((latent, i) => row(latent, first + i)));
    if (focused !== null) find("rows").querySelector(`[data-latent="${focused}"]`)?.focus({ preventScroll: true });
  }

  function row(latent, at) {
    const made = button("", () => {
      select(latent, true);
      app.show("feature");
    });
    made.tabIndex = latent === app.current ? 0 : -1;
    made.dataset.latent = latent;
    made.setAttribute("aria-current", latent === app.current);
    made.append(element("span", "mark", marks.get(latent)?.starred ? "★" : ""));
    for (const name of columns) {
      const value = numbers[name](latent);
      const cell = element("span", "cell", Number.isNaN(value) ? "–" : shownNumber[name](value));
      cell.dataset.column = name;
      made.append(cell);
      if (name === "latent") made.append(element("span", "gist", ...app.gist(latent, frame.classList.contains("table") ? 8 : 4)));
    }
    const item = element("li", "", made);
    item.style.top = `${at * ROW_PX}px`;
    item.setAttribute("aria-setsize", listed.length);
    item.setAttribute("aria-posinset", at + 1);
    return item;
  }

  // Scroll the list so that the current latent's row can be seen.
  function reveal() {
    const list = find("list");
    const top = (app.current === null ? -1 : placeOf(app.current)) * ROW_PX;
    if (top >= 0 && top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_PX - list.clientHeight;
    drawRows();
  }

  function choose(latent) {
    app.current = latent;
    app.selected(latent);
    reveal();
  }

  // A latent that the search or the scope hides is listed again.
  function select(latent, focus = false) {
    if (placeOf(latent) < 0) {
      find("search").value = "";
      elsewhere = null;
      if (!app.hasPanels(latent)) find("scope").value = "all";
      app.current = latent;
      refresh();
    }
    choose(latent);
    if (focus) find("rows").querySelector('[aria-current="true"]')?.focus({ preventScroll: true });
  }

  function step(by) {
    if (!listed.length) return;
    choose(listed[Math.min(listed.length - 1, Math.max(0, placeOf(app.current) + by))]);
  }

  // Show what a query finds; what stands in texts that are not here, the host looks up.
  async function search(query) {
    find("search").value = query;
    elsewhere = null;
    refresh();
    const { text } = filter(query);
    if (!app.can("search") || text.trim().length < 2) return;
    const { json } = await app.ask("search", { text });
    if (find("search").value !== query || !json.latents.length) return;
    elsewhere = new Set(json.latents);
    refresh();
  }

  function setMark(latent, change) {
    const mark = { label: "", notes: "", starred: false, ...marks.get(latent), ...change };
    marks.set(latent, mark);
    if (app.can("mark")) save(latent);
    else {
      edited.add(latent);
      find("export").hidden = false;
      find("export").textContent = `Download ${edited.size} change${edited.size > 1 ? "s" : ""}`;
    }
    redrawn(latent);
  }

  function redrawn(latent) {
    if (app.current === latent && find("star")) {
      find("star").textContent = marks.get(latent)?.starred ? "★" : "☆";
      find("star").setAttribute("aria-pressed", marks.get(latent)?.starred ?? false);
    }
    drawn = "";
    drawRows();
  }

  // The host keeps marks one after the other, the latest of each latent.
  const unsaved = new Set();
  let saving = null;
  function save(latent) {
    unsaved.add(latent);
    edited.add(latent);
    saving ??= (async () => {
      for (const one of unsaved) {
        unsaved.delete(one);
        try {
          await app.ask("mark", { latent: one, ...marks.get(one) });
          if (!unsaved.has(one)) edited.delete(one);
          app.say("");
        } catch (error) {
          app.say(`latent ${one} is not saved: ${error.message}`);
        }
      }
      saving = null;
    })();
  }

  // A file for `saelens-lite search INDEX --import-labels FILE`.
  function exportMarks() {
    const labels = [...edited].sort((a, b) => a - b).map((latent) => ({ latent, ...marks.get(latent) }));
    const text = JSON.stringify({ ...head.labels, labels }, null, 1);
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

  function start() {
    find("list").parentElement.style.setProperty("--numbers", columns.length - 1);
    for (const name of columns.toSpliced(1, 0, "gist")) {
      const made = button("", () => {
        order.descending = order.by === name ? !order.descending : name !== "latent" && name !== "entropy";
        order.by = name;
        refresh();
      }, name === "gist" ? "tokens" : name, element("span"));
      made.dataset.by = name;
      made.disabled = name === "gist";
      made.title = NAMES[name] ?? "";
      find("heads").append(made);
    }
    for (const name of Object.keys(numbers)) {
      const option = element("option", "", NAMES[name]);
      option.value = name;
      find("sort").append(option);
    }
    find("scope").parentElement.hidden = app.here.length === app.all.length;
    find("scope").firstElementChild.textContent = `${count(app.here.length)} shown here`;
    find("scope").lastElementChild.textContent = `all ${count(app.all.length)}`;
    find("scope").addEventListener("change", refresh);
    let typed = 0;
    find("search").addEventListener("input", () => {
      elsewhere = null;
      refresh();
      clearTimeout(typed);
      if (app.can("search")) typed = setTimeout(() => search(find("search").value), 250);
    });
    find("sort").addEventListener("change", () => {
      order.by = find("sort").value;
      order.descending = order.by !== "latent" && order.by !== "entropy";
      refresh();
    });
    find("turn").addEventListener("click", () => {
      order.descending = !order.descending;
      refresh();
    });
    find("export").addEventListener("click", exportMarks);
    find("list").addEventListener("scroll", () => {
      if (!waiting) requestAnimationFrame(() => { waiting = false; drawRows(); });
      waiting = true;
    });
    addEventListener("resize", drawRows);
    addEventListener("beforeunload", (event) => { if (edited.size) event.preventDefault(); });
  }

  const redraw = () => { drawn = ""; reveal(); };
  return { start, refresh, redraw, select, step, search, setMark, redrawn, hidden: (latent) => placeOf(latent) < 0 };
}
