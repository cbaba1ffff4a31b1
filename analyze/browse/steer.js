// Latents edited in the model: continuations beside each other, and what one token's probability does.

const MODE_WORDS = { add: "add (× its largest)", clamp: "clamp at (× its largest)", scale: "scale by", ablate: "ablate" };
const ROW_WORDS = { clean: "Clean", steered: "Steered", control: "Random latent" };

function steerView(app) {
  const box = app.root.getElementById("steer");
  let made = null, busy = null;

  function field(name, label, value, type = "text") {
    const input = element(type === "textarea" ? "textarea" : "input");
    if (type !== "textarea") input.type = type;
    if (type === "number") input.step = "any";
    input.id = `steer-${name}`;
    input.value = value;
    input.autocomplete = "off";
    return [input, element("label", `field ${name}`, `${label} `, input)];
  }

  function choice(name, label, options) {
    const select = element("select");
    for (const [value, text] of Object.entries(options)) {
      const option = element("option", "", text);
      option.value = value;
      select.append(option);
    }
    select.id = `steer-${name}`;
    return [select, element("label", `field ${name}`, `${label} `, select)];
  }

  function build() {
    const fields = {}, labels = {};
    const add = (name, [input, label]) => { fields[name] = input; labels[name] = label; };
    add("latents", field("latents", "latents", ""));
    add("mode", choice("mode", "mode", MODE_WORDS));
    add("dose", field("dose", "dose", "1", "number"));
    add("where", choice("where", "where", { all: "all tokens", prompt: "prompt", generated: "generated" }));
    add("prompt", field("prompt", "prompt", "", "textarea"));
    add("tokens", field("tokens", "tokens", "60", "number"));
    add("temperature", field("temperature", "temperature", "0.8", "number"));
    add("seed", field("seed", "seed", "0", "number"));
    add("token", field("token", "token", ""));
    fields.prompt.rows = 3;
    fields.token.placeholder = "such as ·self";
    labels.token.title = "A token, its space as · or as a space, whose probability at the end of the prompt is compared";
    const go = button("do", run, "Continue"), stop = button("do", () => busy?.abort(), "Stop"), effect = button("do", measure, "Compare its probability");
    [go.id, stop.id, effect.id] = ["continue", "stop", "effect"];
    stop.disabled = true;
    const said = element("output", "note"), rows = element("div", "rows"), measured = element("div", "measured");
    rows.setAttribute("aria-live", "off");
    box.replaceChildren(
      element("div", "line", labels.latents, labels.mode, labels.dose, labels.where), labels.prompt,
      element("div", "line", labels.tokens, labels.temperature, labels.seed, go, stop, said), rows,
      element("h3", "", "One token's probability"),
      element("p", "note", "The same edit along 99 other latents of about equal rate and decoder norm, in one forward pass: how many change it as much?"),
      element("div", "line", labels.token, effect), measured,
    );
    fields.mode.addEventListener("change", () => { fields.dose.disabled = fields.mode.value === "ablate"; });
    made = { ...fields, go, stop, effect, said, rows, measured };
  }

  function asked() {
    const latents = made.latents.value.split(/[\s,]+/).filter(Boolean).map(Number);
    if (!latents.length || latents.some((one) => !Number.isInteger(one) || one < 0)) throw new Error("latents expected numbers, such as 12 or 12, 40");
    const dose = made.mode.value === "ablate" ? 0 : Number(made.dose.value);
    return {
      latents, mode: made.mode.value, dose, where: made.where.value, prompt: made.prompt.value, seed: Math.max(0, Math.trunc(Number(made.seed.value) || 0)),
      max_new_tokens: Math.max(1, Math.trunc(Number(made.tokens.value) || 1)), temperature: Math.max(0, Number(made.temperature.value) || 0),
    };
  }

  function column(name, prompt, control) {
    const text = element("div", "context", element("span", "prompt", prompt));
    text.dir = "auto";
    text.dataset.row = name;
    let title = ROW_WORDS[name];
    if (name === "control") title += `${control.length > 1 ? "s" : ""} ${control.join(", ")}, one draw`;
    const one = element("section", "", element("h3", "", title), text);
    if (name === "control") one.title = "The same dose along a random latent of about equal firing rate and decoder norm. One draw: another may do more or less.";
    return [one, text];
  }

  async function run() {
    let params;
    try {
      params = asked();
    } catch (error) {
      made.said.textContent = error.message;
      return;
    }
    busy?.abort();
    const mine = busy = new AbortController();
    let columns = [], n = 0;
    const began = performance.now();
    made.stop.disabled = false;
    made.said.textContent = "…";
    made.rows.replaceChildren();
    function heard(said) {
      if (mine !== busy) return;
      if (said.rows) {
        const pairs = said.rows.map((name) => column(name, params.prompt, said.control));
        columns = pairs.map(([, text]) => text);
        made.rows.replaceChildren(...pairs.map(([one]) => one));
        return;
      }
      n++;
      if (n === 1) made.rows.dataset.first = Math.round(performance.now() - began);
      said.pieces.forEach((piece, i) => {
        if (piece === null) columns[i].dataset.ended = "yes";
        else if (piece) columns[i].append(element("span", "", piece));
      });
      made.rows.dataset.tokens = n;
      made.said.textContent = `${n} tokens`;
    }
    try {
      await app.ask("steer", params, { signal: mine.signal, heard });
      if (mine === busy) made.said.textContent = `${n} tokens, ${((performance.now() - began) / 1000).toFixed(1)} s`;
    } catch (error) {
      if (mine === busy) made.said.textContent = error.name === "AbortError" ? `stopped after ${n} tokens` : error.message;
    }
    if (mine === busy) {
      busy = null;
      made.stop.disabled = true;
    }
  }

  async function measure() {
    try {
      const params = { ...asked(), token: made.token.value.replaceAll("·", " ") };
      made.measured.replaceChildren("…");
      const { json } = await app.ask("effect", params);
      draw(json, params.token);
    } catch (error) {
      made.measured.replaceChildren(element("p", "note", error.message));
    }
  }

  // Change of the probability under this edit and under each control, sorted, on one line.
  function draw({ clean, steered, controls, rank, of }, token) {
    const change = steered - clean, others = controls.map((one) => one - clean);
    const most = Math.max(Math.abs(change), ...others.map(Math.abs)) || 1;
    const width = 600, at = (x) => width / 2 + (x / most) * (width / 2 - 10);
    const svg = drawing("svg", { viewBox: `0 0 ${width} 46`, role: "img", "aria-label": `Change ${signed(100 * change)} points; 99 others from ${signed(100 * Math.min(...others))} to ${signed(100 * Math.max(...others))}` });
    svg.append(drawing("line", { class: "grid", x1: at(0), x2: at(0), y1: 2, y2: 34 }));
    for (const one of others) svg.append(drawing("line", { class: "other", x1: at(one), x2: at(one), y1: 10, y2: 26 }));
    svg.append(drawing("line", { class: "own", x1: at(change), x2: at(change), y1: 4, y2: 32 }));
    svg.append(drawing("text", { x: at(0), y: 44, "text-anchor": "middle" }, "no change"));
    made.measured.replaceChildren(
      element("p", "", tokenElement(token, -1), ` ${percent(clean)} → ${percent(steered)}: rank ${rank} of ${of} by size of the change`), svg,
      element("p", "note", "Thick: this edit. Thin: the same along 99 matched latents."),
    );
  }

  return {
    open() {
      if (!made) build();
      if (!made.latents.value && app.current !== null) made.latents.value = app.current;
    },
    select(latent) {
      if (made && latent !== null) made.latents.value = latent;
    },
  };
}
