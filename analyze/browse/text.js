// A reader's own text: the latents of each token, and the tokens of each latent.

const MOST_LISTED = 60;

function textView(app) {
  const box = app.root.getElementById("text");
  let made = null, read = null, busy = null;

  function build() {
    const field = element("textarea");
    field.rows = 4;
    field.placeholder = "Type or paste a text";
    field.setAttribute("aria-label", "text");
    field.id = "own-text";
    const go = button("do", run, "Read");
    go.id = "read";
    const said = element("output", "note");
    const tokens = element("div", "context own"), of = element("h3"), list = element("ol", "pairs latents");
    tokens.dir = "auto";
    box.replaceChildren(field, element("div", "line", go, said), tokens, of, list);
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
    });
    made = { field, said, tokens, of, list };
  }

  async function run() {
    busy?.abort();
    const mine = busy = new AbortController();
    made.said.textContent = "…";
    try {
      const began = performance.now();
      const found = await app.ask("text", { text: made.field.value }, { signal: mine.signal });
      if (mine !== busy) return;
      draw(found);
      made.said.textContent = `${count(found.json.pieces.length - found.json.n_special)} tokens, ${Math.round(performance.now() - began)} ms`;
    } catch (error) {
      if (mine === busy) made.said.textContent = error.message;
    }
  }

  function draw({ at, latent, act, json }) {
    const byToken = json.pieces.map(() => []), byLatent = new Map();
    for (let i = 0; i < at.length; i++) {
      byToken[at[i]].push([latent[i], act[i]]);
      if (!byLatent.has(latent[i])) byLatent.set(latent[i], new Map());
      byLatent.get(latent[i]).set(at[i], act[i]);
    }
    for (const one of byToken) one.sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    read = { byToken, byLatent, special: json.n_special, pieces: json.pieces };
    made.tokens.replaceChildren(...json.pieces.flatMap((text, i) => {
      const one = button("piece", () => ofToken(i), text);
      one.dataset.at = i;
      if (i < json.n_special) one.classList.add("special");
      const strongest = byToken[i][0];
      if (strongest) one.title = `strongest: latent ${strongest[0]}, ${number(strongest[1])}`;
      return text.includes("↵") ? [one, element("br")] : [one];
    }));
    whole();
  }

  const most = (acts) => Math.max(...[...acts].map(([i, act]) => (i < read.special ? 0 : act)));

  // The latents of the text, by their largest activation as a share of their largest anywhere.
  function whole() {
    shade(new Map());
    const ranked = [...read.byLatent].map(([latent, acts]) => [latent, most(acts), acts.size]).filter(([, act]) => act > 0);
    const share = ([latent, act]) => (app.table.max[latent] ? act / app.table.max[latent] : 0);
    ranked.sort((a, b) => share(b) - share(a));
    made.of.textContent = "Latents of this text, by activation as a share of their largest";
    list(ranked.slice(0, MOST_LISTED).map(([latent, act, n]) => [latent, act, `${percent(share([latent, act]), 2)} of max · ${n} token${n > 1 ? "s" : ""}`]));
  }

  function ofToken(i) {
    made.of.replaceChildren("Latents on ", tokenElement(read.pieces[i], -1), " ", button("do", whole, "whole text"));
    for (const one of made.tokens.children) one.classList.toggle("chosen", Number(one.dataset.at) === i);
    list(read.byToken[i].map(([latent, act]) => [latent, act, number(act)]));
  }

  function list(rows) {
    made.list.replaceChildren(...rows.map(([latent, , text]) => {
      const what = element("span", "neighbour", element("span", "figure", String(latent)), " ", ...app.gist(latent, 4));
      const open = button("", () => app.select(latent), what);
      open.title = "open this latent";
      const line = element("li", "", open, element("span", "figure", text), button("do heat", () => shade(read.byLatent.get(latent), latent), "heat"));
      line.dataset.latent = latent;
      line.addEventListener("pointerenter", () => shade(read.byLatent.get(latent), latent));
      return line;
    }));
    if (!rows.length) made.list.append(element("li", "note", "no latent fires here"));
  }

  function shade(acts, latent) {
    const largest = latent === undefined ? 1 : app.table.max[latent] || 1;
    for (const one of made.tokens.children) {
      const act = acts.get(Number(one.dataset.at)) ?? 0;
      one.style.backgroundColor = "";
      heat(one, act / largest);
      if (latent !== undefined) one.title = act ? `latent ${latent}: ${number(act)}` : "";
    }
    for (const line of made.list.children) line.classList.toggle("chosen", Number(line.dataset.latent) === latent);
  }

  return { open: () => { if (!made) build(); made.field.focus(); } };
}
