// Two indexes of one store: which latents are one, and what of either has no partner; two latents side by side.

function compareView(app) {
  const box = app.root.getElementById("compare");
  const KINDS_OF = { pairs: "matched", only_a: "only here", only_b: "only in the other" };
  let found = null, made = null, order = { by: "cosine", descending: false }, kind = "pairs", rows = [], drawn = "";
  const asked = new Map();

  async function build() {
    box.replaceChildren(element("p", "note", "…"));
    found = await app.ask("compare", {});
    found.labels = new Map(found.json.labels);
    const heads = element("div", "line kinds"), list = element("div", "matches"), inner = element("ol"), beside = element("div", "beside");
    for (const [name, text] of Object.entries(KINDS_OF)) {
      const n = (name === "pairs" ? found.a : found[name]).length;
      const one = button("do", () => { kind = name; refresh(); }, `${count(n)} ${text}`);
      one.dataset.kind = name;
      heads.append(one);
    }
    const by = element("select");
    for (const name of ["cosine", "correlation", "density"]) by.append(element("option", "", name));
    by.value = order.by;
    by.setAttribute("aria-label", "order");
    by.addEventListener("change", () => { order.by = by.value; refresh(); });
    const turn = button("do", () => { order.descending = !order.descending; refresh(); }, "↓↑");
    turn.setAttribute("aria-label", "turn the order round");
    heads.append(element("label", "", "by ", by), turn);
    list.append(inner);
    list.addEventListener("scroll", draw);
    const note = element("p", "note");
    note.append("Here: ", found.json.own, ". The other: ", found.json.name, ". Matched one to one by decoder cosine and by correlation of their activations. ", found.json.found);
    box.replaceChildren(note, heads, list, beside);
    made = { heads, list, inner, beside, by };
    refresh();
  }

  const NONE = NaN;
  function value(row) {
    const [a, b, i] = row;
    if (order.by === "density" || kind !== "pairs") return a === null ? found.fired[b] : app.table.fired[a];
    return found[order.by][i] ?? NONE;
  }

  function refresh() {
    rows = kind === "pairs" ? Array.from(found.a, (a, i) => [a, found.b[i], i]) : Array.from(found[kind], (one) => (kind === "only_a" ? [one, null] : [null, one]));
    const sign = order.descending || kind !== "pairs" ? -1 : 1;
    rows.sort((x, y) => { const [p, q] = [value(x), value(y)]; return (Number.isNaN(p) - Number.isNaN(q)) || sign * (p - q) || 0; });
    for (const one of made.heads.querySelectorAll("[data-kind]")) one.setAttribute("aria-pressed", one.dataset.kind === kind);
    made.inner.style.height = `${rows.length * ROW_PX}px`;
    made.list.scrollTop = 0;
    drawn = "";
    draw();
  }

  function otherGist(latent, n) {
    const label = found.labels.get(latent);
    if (label) return [element("span", "label", app.visible(label))];
    const width = found.widths.gist;
    return Array.from(found.gist.subarray(latent * width, latent * width + n)).filter((id) => id !== app.none).flatMap((id, i) => (i ? ["  ", tokenElement(app.texts.of(id), id)] : [tokenElement(app.texts.of(id), id)]));
  }

  const figure = (x) => (x === undefined || Number.isNaN(x) ? "–" : x.toFixed(2));

  function draw() {
    const first = Math.max(0, Math.floor(made.list.scrollTop / ROW_PX) - SPARE_ROWS), last = Math.min(rows.length, first + Math.ceil(made.list.clientHeight / ROW_PX) + 2 * SPARE_ROWS);
    if (drawn === `${first} ${last}`) return;
    drawn = `${first} ${last}`;
    made.inner.replaceChildren(...rows.slice(first, last).map(([a, b, i], at) => {
      const half = (latent, gist) => element("span", "half", ...(latent === null ? ["–"] : [element("span", "figure", String(latent)), " ", ...gist(latent, 4)]));
      const one = button("match", () => beside(a, b), half(a, app.gist), half(b, otherGist), element("span", "figure", figure(found.cosine[i])), element("span", "figure", figure(found.correlation[i])));
      one.dataset.pair = `${a} ${b}`;
      const item = element("li", "", one);
      item.style.top = `${(first + at) * ROW_PX}px`;
      return item;
    }));
  }

  async function beside(a, b) {
    const parts = await Promise.all([a === null ? null : examples("latents", a), b === null ? null : examples("other", b)]);
    made.beside.replaceChildren(...parts.map((part, i) => {
      const latent = [a, b][i], title = `${[found.json.own, found.json.name][i]}${latent === null ? ": none" : `, latent ${latent}`}`;
      const one = element("section", "", element("h3", "", title), ...(part ?? []));
      if (latent !== null && i === 0) one.append(button("do", () => app.select(latent), "open"));
      return one;
    }));
    made.beside.scrollIntoView({ block: "nearest" });
  }

  async function examples(name, latent) {
    const key = `${name} ${latent}`;
    if (!asked.has(key)) asked.set(key, await app.ask(name, { latents: [latent] }));
    const block = asked.get(key), table = name === "latents" ? app.table : found;
    const largest = table.max[latent] || 1;
    const lines = examplesOf(block, 0, "far", app).filter((one) => one.value > 0).slice(0, 8).map((one) => {
      const text = element("div", "context");
      text.dir = "auto";
      one.pieces.forEach((piece, i) => {
        const part = element("span", i === one.here ? "peak" : "", piece);
        heat(part, (one.acts.get(i) ?? 0) / largest);
        text.append(part);
      });
      return element("div", "example", element("div", "value", strength(one.value)), text);
    });
    return [element("p", "note", `fires on ${count(table.fired[latent])} tokens, largest ${strength(table.max[latent])}`), ...lines];
  }

  return {
    open() {
      if (!made) build().catch((error) => box.replaceChildren(element("p", "empty", error.message)));
    },
  };
}
