// Draws one latent: what its block of arrays (latent_details.py) says of it.

const INTERVAL_EXAMPLES = 5, BEFORE = { far: "before", near: "before_near" };

// One latent of a block, as the drawing wants it.
function featureOf(block, at, app) {
  const { head, table } = app;
  const row = (name) => {
    const array = block[name], width = block.widths[name];
    return array === undefined ? [] : Array.from(array.subarray(at * width, (at + 1) * width));
  };
  const pairs = (ids, scores, unit = 1) => {
    const values = row(scores);
    return row(ids).map((id, i) => [id, values[i] * unit]).filter(([id]) => id !== -1 && id !== app.none);
  };
  const id = block.latents[at];
  const fired = table.fired[id];
  const histogram = row("histogram");
  const first = Math.max(0, histogram.findIndex((n) => n > 0));
  const positions = row("positions");
  const sampled = block.sampled[at];
  const feature = {
    id, fired, max: table.max[id], first: block.first[at], last: block.last[at], interval: rateInterval(fired, head.tokens),
    bins: [first, fired ? histogram.slice(first, histogram.findLastIndex((n) => n > 0) + 1) : []],
    positions: positions.slice(0, positions.findLastIndex((n) => n > 0) + 1), quantiles: fired ? row("quantiles") : undefined,
    tokens: [sampled, pairs("common", "common_n")],
    cosine: pairs("cosine_ids", "cosine", 0.001), jaccard: pairs("jaccard_ids", "jaccard", 0.001), pmi: pairs("pmi_ids", "pmi", 0.001),
  };
  if (block.promoted_ids) {
    feature.top = pairs("promoted_ids", "promoted_logits");
    feature.bottom = pairs("demoted_ids", "demoted_logits");
  }
  feature.examples = examplesOf(block, at, "far", app).filter((one) => one.value > 0);
  const near = examplesOf(block, at, "near", app);
  const [low, high, within] = ["low", "high", "within"].map(row);
  const whole = within.reduce((sum, n) => sum + n, 0) === fired;
  feature.intervals = fired ? low.map((from, i) => ({
    low: from, high: high[i], fired: whole ? within[i] : null,
    examples: near.slice(i * INTERVAL_EXAMPLES, (i + 1) * INTERVAL_EXAMPLES).filter((one) => one.row >= 0),
  })) : [];
  feature.contrast = near.slice(low.length * INTERVAL_EXAMPLES).filter((one) => one.row >= 0);
  return feature;
}

// The examples of one latent: value, row, document, position, ids and pieces of the window, the place of its own token, and the
// activations in it by place, null on a token without a row.
function examplesOf(block, at, kind, app) {
  const n = block.widths[`${kind}_row`], width = block.widths[`${kind}_tokens`];
  const starts = firingStarts(block, kind);
  const before = app.head[BEFORE[kind]];
  return Array.from({ length: n }, (_, i) => {
    const one = at * n + i;
    const all = block[`${kind}_tokens`].subarray(one * width, (one + 1) * width);
    const from = all.findIndex((id) => id !== app.none), to = all.findLastIndex((id) => id !== app.none) + 1;
    const ids = from < 0 ? [] : Array.from(all.subarray(from, to));
    const pieces = app.texts.pieces(ids), acts = new Map();
    for (let f = starts[one]; f < starts[one + 1]; f++) {
      const act = block[`${kind}_act`][f];
      acts.set(block[`${kind}_place`][f] - from, Number.isNaN(act) ? null : act);
    }
    for (const [place, act] of acts) if ((act > 0 || place === before - from) && pieces[place] === "") pieces[place] = app.texts.of(ids[place]);
    const [value, row, document, position] = ["value", "row", "document", "position"].map((name) => block[`${kind}_${name}`][one]);
    if (ids.length) pieces[before - from] ||= app.texts.of(ids[before - from]);
    return { value, row, document, position, ids, pieces, here: before - from, acts };
  });
}

// Where the firings of each window begin in the block's list of them.
function firingStarts(block, kind) {
  const key = `${kind}_starts`;
  if (!block[key]) {
    const sizes = block[`${kind}_firings`];
    block[key] = new Uint32Array(sizes.length + 1);
    for (let i = 0; i < sizes.length; i++) block[key][i + 1] = block[key][i] + sizes[i];
  }
  return block[key];
}

// The 95 % interval of a rate, with tokens taken as independent; Wilson 1927.
function rateInterval(fired, tokens) {
  if (!tokens) return [0, 1];
  const z2 = 1.959964 ** 2 / tokens, share = fired / tokens;
  const middle = (share + z2 / 2) / (1 + z2), half = Math.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2);
  return [fired ? Math.max(0, middle - half) : 0, fired < tokens ? Math.min(1, middle + half) : 1];
}

function section(title, note, ...content) {
  const made = element("section", "", element("h3", "", title));
  if (note) made.append(element("p", "note", note));
  made.append(...content);
  return made;
}

// Counts of positive activations in bins of a quarter octave, both axes logarithmic, with two quantiles and the largest.
function histogram(feature, edges) {
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
    const [low, high] = [edges[first + i], edges[first + i + 1]];
    if (n) {
      const bar = drawing("rect", { class: "bar", x: x + 0.5, y: y(n), width: Math.max(1, step - 1), height: height - bottom - y(n) });
      bar.append(drawing("title", {}, `${number(low)} to ${number(high)}: ${count(n)} tokens`));
      svg.append(bar);
    }
    if (i % every === 0) svg.append(drawing("text", { x, y: height - 21, "text-anchor": i ? "middle" : "start" }, number(low, 2)));
  });
  const place = (value) => {
    let bin = 0;
    while (bin < counts.length - 1 && value >= edges[first + bin + 1]) bin++;
    const [low, high] = [edges[first + bin], edges[first + bin + 1]];
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

// The panels of one latent at a time, in #feature.
function featureView(app) {
  const { root, head, table, texts } = app;
  const main = root.getElementById("feature");
  const token = (id) => tokenElement(texts.of(id), id);

  // The rate of firing by place in the context, in doubling bins.
  function positions(feature) {
    const last = head.positions.findLastIndex((rows) => rows > 0);
    const rates = head.positions.slice(0, last + 1).map((rows, i) => [rows, feature.positions[i] || 0]);
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
    for (const [id, logit] of pairs) list.append(element("li", "", token(id), element("span", "figure", signed(logit))));
    return element("div", "", element("h4", "", name), list);
  }

  function neighbours(name, pairs, digits) {
    const list = element("ol", "pairs");
    for (const [latent, score] of pairs) {
      const what = element("span", "neighbour", element("span", "figure", String(latent)), " ", ...app.gist(latent, 2));
      list.append(element("li", "", button("", () => app.select(latent), what), element("span", "figure", score.toFixed(digits))));
    }
    return element("div", "", element("h4", "", name), pairs.length ? list : element("p", "note", "none"));
  }

  function example(one, largest) {
    const context = element("div", "context");
    context.dir = "auto";
    one.pieces.forEach((text, i) => {
      const act = one.acts.get(i) ?? 0;
      const part = element("span", i === one.here ? (one.value > 0 ? "peak" : "here") : "", text);
      heat(part, act / largest);
      part.title = `${act > 0 ? `${number(act)} · ` : one.acts.has(i) ? "not in the store · " : ""}token ${one.ids[i]}`;
      context.append(part);
    });
    if (!one.ids.length) context.append(`row ${one.row}`);
    const where = one.document >= 0 ? `doc ${one.document}${one.position >= 0 ? ` · ${one.position}` : ""}` : `row ${one.row}`;
    return element("div", "example", element("div", "value", one.value > 0 ? strength(one.value) : "0"), context, element("div", "where", where));
  }

  // The fields in which a reader says what a latent is.
  function markings(latent) {
    const mark = app.marks.get(latent) ?? { label: "", notes: "", starred: false };
    const star = button("star", () => app.setMark(latent, { starred: !(app.marks.get(latent)?.starred ?? false) }), mark.starred ? "★" : "☆");
    star.id = "star";
    star.title = "star (s)";
    star.setAttribute("aria-pressed", mark.starred);
    const fields = ["label", "notes"].map((name) => {
      const field = element("input");
      field.id = name;
      field.type = "text";
      field.value = mark[name];
      field.placeholder = name === "label" ? "what it stands for" : "notes";
      field.setAttribute("aria-label", field.placeholder);
      field.autocomplete = "off";
      field.addEventListener("input", () => app.setMark(latent, { [name]: field.value }));
      return field;
    });
    const hidden = [mark.label, mark.notes].filter((text) => app.visible(text) !== text).map((text) => element("p", "note", app.visible(text)));
    return element("div", "markings", element("h2", "", `Latent ${latent}`), star, ...fields, ...hidden);
  }

  // feature: of the table alone where it has no panels
  function facts(latent, feature) {
    const fired = table.fired[latent], of = (name) => table[name]?.[latent];
    const [low, high] = rateInterval(fired, head.tokens);
    const found = [
      ["fires on", `${count(fired)} of ${count(head.tokens)} tokens, ${percent(fired / head.tokens)}`, ""],
      ["95% interval", `${percent(low, 2)} to ${percent(high, 2)}`, "Of the rate of firing, as if tokens were independent; neighbours in a text are not, so it is wider."],
      ["largest", strength(table.max[latent]), ""],
    ];
    if (feature?.quantiles) found.push(["median, q95", feature.quantiles.map(strength).join(", "), "Of its firings, the strongest half and twentieth lie above."]);
    if (feature?.first >= 0) found.push(["first, last firing", `${count(feature.first)}, ${count(feature.last)}`, "Rows of the store, in its order."]);
    if (of("entropy") >= 0) {
      const most = Math.log(Math.min(head.top, fired)).toFixed(2);
      found.push(["token entropy", `${of("entropy").toFixed(2)} of ${most} nats`, `Of the tokens of its ${head.top} strongest firings: 0 where all are one token.`]);
    }
    if (of("share") >= 0) {
      const what = "Share of its commonest token, over a sample of all its firings; unigram where that and its share of the strongest reach 90%.";
      found.push(["on one token", percent(of("share"), 2) + (of("unigram") ? ", unigram" : ""), what]);
    }
    if (Number.isFinite(of("score"))) found.push(["output score", number(of("score"), 3), "How much firing hard makes the model say what the logit lens promises; Arad et al. 2025."]);
    if (Number.isFinite(of("norm"))) found.push(["decoder norm", number(of("norm")), ""]);
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
      for (const [id, n] of common) list.append(element("li", "", token(id), element("span", "figure", percent(n / sampled, 2))));
      content.push(element("div", "", element("h4", "", `tokens of ${sampled} of its firings`), list));
    }
    if (feature.positions.length) {
      const share = (feature.positions[0] || 0) / feature.fired;
      const first = head.positions[0] ? `${percent(share, 2)} of its firings are on the first token${head.bos ? ", the BOS" : ""}` : `position 0${head.bos ? ", the BOS," : ""} is not in the store`;
      content.push(element("div", "", element("h4", "", "rate by position"), positions(feature), element("p", "note", first)));
    }
    return content;
  }

  function intervals(feature) {
    const n = feature.intervals.length;
    return feature.intervals.map(({ low, high, fired, examples }, i) => {
      const share = fired === null ? `${percent(1 / n)} of its firings` : `${count(fired)} of ${count(feature.fired)} firings, ${percent(fired / feature.fired)}`;
      const bounds = `${low > 0 ? strength(low) : "above 0"} to ${strength(high)}`;
      const title = element("h4", "", element("b", "", `q${(100 * (n - 1 - i)) / n}–q${(100 * (n - i)) / n}`), `  ${bounds}  ·  ${share}`);
      const shown = examples.map((one) => example(one, feature.max));
      return element("div", "interval", title, ...(shown.length ? shown : [element("p", "note", "no firing of the sample lies here")]));
    });
  }

  function panels(feature) {
    const found = element("div", "panels");
    const columns = (...content) => element("div", "columns", ...content);
    if (feature.bins[1].length) found.append(section("Positive activations", "Tokens by strength of firing.", histogram(feature, head.edges)));
    if (feature.top) {
      const note = "Tokens that the direction alone argues for and against: logits for a unit of activation.";
      found.append(section("Logit lens", note, columns(lens("raises", feature.top), lens("lowers", feature.bottom))));
    }
    const places = where(feature);
    if (places.length) found.append(section("Where it fires", "", columns(...places)));
    const near = [neighbours("decoder cosine", feature.cosine, 2), neighbours("Jaccard", feature.jaccard, 2), neighbours("PMI, nats", feature.pmi, 1)];
    const sample = `Jaccard and PMI: firing on the same tokens, over a sample of ${count(head.sampled)} tokens.`;
    found.append(section("Neighbours", sample, columns(...near)));
    return found;
  }

  function contexts(feature) {
    const found = [], shaded = head.exact ? "" : "Shaded where the index knows that it fires: on its kept firings and on sampled tokens.";
    if (feature.examples.length) {
      found.push(section(`Strongest ${feature.examples.length} firings`, shaded, ...feature.examples.map((one) => example(one, feature.max))));
      const drawn = feature.intervals.some(({ fired }) => fired === null) ? `drawn from a random sample of ${feature.tokens[0] || "its firings"}; bounds are good to a bin of the histogram` : "all of its firings are known";
      found.push(section("Firings by quantile", `Each interval holds an equal share of its firings; examples ${drawn}.`, ...intervals(feature)));
    }
    if (feature.contrast.length) found.push(section("Where it is silent", "Random tokens on which it does not fire.", ...feature.contrast.map((one) => example(one, feature.max || 1))));
    return found;
  }

  let asked = 0;
  // Draw a latent, or say why there is none.
  async function show(latent) {
    const mine = ++asked;
    if (latent === null) {
      main.replaceChildren(element("p", "empty", table.fired.length ? "No feature matches the search." : "There is no feature to show."));
      return;
    }
    let feature;
    if (app.hasPanels(latent)) {
      try {
        feature = await app.feature(latent);
      } catch (error) {
        if (mine === asked) main.replaceChildren(markings(latent), facts(latent), element("p", "empty", `Its panels cannot be read: ${error.message}`));
        return;
      }
    }
    if (mine !== asked) return; // another was asked for meanwhile
    main.replaceChildren(markings(latent), facts(latent, feature));
    if (!table.fired[latent]) main.append(element("p", "empty", "It never fired on these tokens."));
    if (!feature) main.append(element("p", "empty", "Its firings are not on this page. `saelens-lite browse INDEX` shows those of every latent."));
    else main.append(panels(feature), ...contexts(feature));
    main.scrollTop = 0;
    app.shown = latent;
  }

  return { show };
}
