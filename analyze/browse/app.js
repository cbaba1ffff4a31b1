// The browser over a host. A host answers `ask(name, params, { signal, heard })` with { json, ...arrays }: a static page from its
// own scripts, a live one from the process that made it. Root is the document or a shadow root that holds shell.html.

const VIEWS = { feature: "f", table: "t", scatter: "c", text: "m", steer: "g", compare: "p" };

async function start(root, host) {
  const { json: head, widths, ...table } = await host.ask("start", {});
  const find = (id) => root.getElementById(id);
  const frame = find("browser");
  const gistWidth = widths.gist;
  const invisible = new RegExp(head.invisible, "gu");
  const signs = { "\n": "↵", "\r": "⇤", "\t": "⇥" };
  const here = head.panels;
  const app = {
    root, host, head, table, texts: new Texts(), marks: new Map(), current: null, shown: null, view: "feature",
    none: head.wide ? -1 : 0xffff,
    can: (name) => head.can.includes(name),
    all: Array.from(table.fired, (_, i) => i),
    // Text of people on one line with nothing hidden, as `visible` of text_windows.py shows it.
    visible: (text) => text.replace(invisible, (one) => signs[one] ?? `⟨U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`),
    gistIds: (latent, n) => Array.from(table.gist?.subarray(latent * gistWidth, latent * gistWidth + Math.min(n, gistWidth)) ?? []).filter((id) => id !== app.none),
  };
  app.here = here ?? app.all;
  const has = here && new Set(here);
  app.hasPanels = (latent) => !has || has.has(latent);
  app.texts.add(head.texts);
  for (const [latent, label, notes, starred] of head.marks) app.marks.set(latent, { label, notes, starred });
  app.numbers = numbersOf(app);

  app.ask = async (name, params, options = {}) => {
    const found = await host.ask(name, params, options);
    app.texts.add(found.json?.texts);
    return found;
  };

  // A latent in a few words: what somebody called it, or the distinct tokens of its strongest firings.
  app.gist = (latent, n) => {
    const label = app.marks.get(latent)?.label;
    if (label) return [element("span", "label", app.visible(label))];
    return app.gistIds(latent, n).flatMap((id, i) => {
      const made = tokenElement(app.texts.of(id), id);
      return i ? ["  ", made] : [made];
    });
  };

  // Blocks of details, the last few of them kept; where all are on the page, none is dropped.
  const blocks = new Map(), KEPT_BLOCKS = 12;
  app.feature = async (latent) => {
    const key = head.chunk ? Math.floor((here ? here.indexOf(latent) : latent) / head.chunk) : latent;
    if (!blocks.has(key)) {
      const asked = app.ask("latents", { latents: [latent], chunk: key });
      blocks.set(key, asked);
      asked.catch(() => blocks.delete(key));
      if (blocks.size > KEPT_BLOCKS && !head.embedded) blocks.delete(blocks.keys().next().value);
    }
    const block = await blocks.get(key);
    return featureOf(block, block.latents.indexOf(latent), app);
  };
  const whole = new Map();
  app.loaded = (latent) => whole.get(latent);

  app.say = (text) => { find("said").textContent = text; };
  app.show = (view) => {
    app.view = view;
    frame.className = `browser ${view}`;
    for (const one of find("views").children) one.setAttribute("aria-pressed", one.dataset.view === view);
    views[view]?.open?.();
    list.redraw();
  };
  const list = listView(app), feature = featureView(app);
  const views = { scatter: scatterView(app, list) };
  if (app.can("text")) views.text = textView(app);
  if (app.can("steer")) views.steer = steerView(app);
  if (app.can("compare")) views.compare = compareView(app);
  app.selected = (latent) => {
    feature.show(latent);
    host.selected?.(latent);
    views[app.view]?.select?.(latent);
  };
  app.select = (latent, focus) => {
    list.select(latent, focus);
    if (["text", "steer", "compare"].includes(app.view)) app.show("feature");
  };
  app.setMark = list.setMark;

  find("title").textContent = head.title;
  if (root === document) document.title = head.title;
  find("rule").textContent = head.rule;
  for (const [name, value] of head.facts) find("facts").append(element("div", "", element("dt", "", name), element("dd", "", value)));
  for (const one of [...find("views").children]) {
    const view = one.dataset.view;
    if (view in views || view === "feature" || view === "table") one.addEventListener("click", () => app.show(view));
    else one.remove();
  }
  find("kept").textContent = app.can("mark") ? "Labels are saved in the index." : "";

  if (head.embedded) for (const latent of app.here) whole.set(latent, await app.feature(latent));
  list.start();

  const typing = () => ["INPUT", "SELECT", "TEXTAREA"].includes(root.activeElement?.tagName);
  const keyboard = root === document ? document : frame;
  keyboard.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (root !== document) event.stopPropagation(); // the notebook has keys of its own
    const view = Object.keys(VIEWS).find((name) => VIEWS[name] === event.key);
    if (event.key === "Escape") {
      if (typing()) root.activeElement.blur();
      else app.show("feature");
    } else if (typing()) {
      if (event.key === "Enter" && root.activeElement.tagName === "INPUT") root.activeElement.blur();
    } else if (event.key === "j") list.step(1);
    else if (event.key === "k") list.step(-1);
    else if (event.key === "s" && app.current !== null) app.setMark(app.current, { starred: !(app.marks.get(app.current)?.starred ?? false) });
    else if (view && find("views").querySelector(`[data-view="${view}"]`)) {
      event.preventDefault();
      app.show(app.view === view ? "feature" : view);
    } else if (event.key === "/") {
      event.preventDefault();
      find("search").focus();
    }
  });

  const place = host.place?.() ?? null;
  app.current = place !== null && place < app.all.length ? place : null;
  if (app.current !== null && !app.hasPanels(app.current)) find("scope").value = "all";
  app.show("feature");
  list.refresh();
  if (app.current !== null) list.select(app.current);
  host.listens?.({ select: (latent) => app.select(latent), search: (text) => { app.show("feature"); list.search(text); } });
  frame.dataset.ready = "yes";
  return app;
}
