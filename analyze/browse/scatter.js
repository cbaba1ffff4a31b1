// All latents by two of their numbers, and how many there are by density. What is dragged over becomes conditions of the search.

const LOGARITHMIC = new Set(["density", "max", "norm"]);
const STRIP = 26; // px of an axis for those without a number, or with 0 on a logarithmic one

function scatterView(app, list) {
  const { root, numbers, head } = app;
  const box = root.getElementById("scatter");
  const names = Object.keys(numbers);
  let made = null, listed = app.here, points = null;

  function axisOf(name, size) {
    const of = numbers[name], logarithmic = LOGARITHMIC.has(name);
    const scale = logarithmic ? Math.log10 : (x) => x;
    let low = Infinity, high = -Infinity;
    for (const i of app.all) {
      const value = scale(of(i));
      if (Number.isFinite(value)) { if (value < low) low = value; if (value > high) high = value; }
    }
    if (!(low < high)) [low, high] = Number.isFinite(low) ? [low - 0.5, low + 0.5] : [0, 1];
    const margin = (high - low) * 0.02;
    [low, high] = [low - margin, high + margin];
    return {
      name, logarithmic, low, high,
      // px from the axis' origin; inside the strip where there is no place
      at: (i) => {
        const value = scale(of(i));
        return Number.isFinite(value) ? STRIP + ((value - low) / (high - low)) * (size - STRIP) : STRIP / 2;
      },
      value: (px) => { const x = low + ((px - STRIP) / (size - STRIP)) * (high - low); return logarithmic ? 10 ** x : x; },
      ticks: () => {
        const ticks = [];
        if (logarithmic && high - low > 1) for (let power = Math.ceil(low); power <= high; power++) ticks.push([power, number(10 ** power, 1)]);
        else {
          const rough = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(rough)), step = unit * [1, 2, 5, 10].find((m) => m * unit >= rough);
          for (let x = Math.ceil(low / step) * step; x <= high; x += step) ticks.push([x, number(logarithmic ? 10 ** x : x, 3)]);
        }
        return ticks.map(([x, text]) => [STRIP + ((x - low) / (high - low)) * (size - STRIP), text]);
      },
    };
  }

  function choice(label, name) {
    const select = element("select");
    for (const one of names) {
      const option = element("option", "", NAMES[one]);
      option.value = one;
      select.append(option);
    }
    select.value = name;
    select.id = `scatter-${label}`;
    select.addEventListener("change", draw);
    return [select, element("label", "", `${label === "x" ? "across" : "up"} `, select)];
  }

  function build() {
    const [x, acrossLabel] = choice("x", "density");
    const [y, upLabel] = choice("y", "max");
    const canvas = element("canvas"), over = element("div", "over"), brush = element("div", "brush"), tip = element("output", "tip");
    brush.hidden = true;
    canvas.setAttribute("role", "img");
    over.append(brush);
    const plot = element("div", "plot", canvas, over);
    const note = element("p", "note", "Drag over points to list them; click one to open it. The same in words: conditions in the search box, such as density<=0.001 max>5. In the strips along the axes: latents without a number, such as those that never fired.");
    const hist = element("div", "densities");
    box.replaceChildren(element("div", "line", acrossLabel, upLabel, tip), plot, note, element("h3", "", "Density"), hist);
    made = { x, y, canvas, over, brush, tip, plot, hist };
    drag();
    addEventListener("resize", () => { if (app.view === "scatter") draw(); });
  }

  function draw() {
    const { canvas, plot, x, y } = made;
    const left = 56, bottom = 34, ratio = globalThis.devicePixelRatio || 1;
    const width = plot.clientWidth, height = plot.clientHeight;
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    const axes = [axisOf(x.value, width - left - 10), axisOf(y.value, height - bottom - 10)];
    const draw = canvas.getContext("2d");
    draw.scale(ratio, ratio);
    const style = getComputedStyle(plot);
    const [ink, soft, line, mark] = ["--ink", "--soft", "--line", "--mark"].map((name) => style.getPropertyValue(name).trim());
    const [px, py] = [(v) => left + v, (v) => height - bottom - v];
    draw.font = "11px system-ui, sans-serif";
    draw.fillStyle = soft;
    draw.strokeStyle = line;
    for (const [at, text] of axes[0].ticks()) {
      draw.fillRect(px(at), py(0), 1, 4);
      draw.textAlign = "center";
      draw.fillText(text, px(at), py(0) + 15);
    }
    for (const [at, text] of axes[1].ticks()) {
      draw.textAlign = "right";
      draw.fillText(text, left - 6, py(at) + 4);
      draw.globalAlpha = 0.5;
      draw.beginPath(); draw.moveTo(left, py(at)); draw.lineTo(width - 10, py(at)); draw.stroke();
      draw.globalAlpha = 1;
    }
    draw.textAlign = "right";
    draw.fillText(NAMES[x.value], width - 10, height - 4);
    draw.textAlign = "left";
    draw.fillText(NAMES[y.value], 4, 11);
    draw.strokeRect(left, 10, width - left - 10, height - bottom - 10);
    draw.beginPath(); draw.setLineDash([2, 3]);
    draw.moveTo(px(STRIP), 10); draw.lineTo(px(STRIP), py(0)); draw.moveTo(left, py(STRIP)); draw.lineTo(width - 10, py(STRIP)); draw.stroke();
    draw.setLineDash([]);
    const n = app.all.length, found = new Float32Array(2 * n), bright = new Uint8Array(n);
    for (const i of listed) bright[i] = 1;
    const size = n > 20000 ? 1.6 : n > 3000 ? 2.4 : 3.6;
    for (let pass = 0; pass < 2; pass++) {
      draw.fillStyle = pass ? `rgb(${mark} / ${n > 20000 ? 0.45 : 0.7})` : soft;
      draw.globalAlpha = pass ? 1 : 0.35;
      for (let i = 0; i < n; i++) {
        if (bright[i] !== pass) continue;
        let across = axes[0].at(i), up = axes[1].at(i);
        if (across === STRIP / 2) across += ((i * 0.618034) % 1 - 0.5) * (STRIP - 8); // spread, or they would be one dot
        if (up === STRIP / 2) up += ((i * 0.754878) % 1 - 0.5) * (STRIP - 8);
        found[2 * i] = px(across);
        found[2 * i + 1] = py(up);
        draw.fillRect(found[2 * i] - size / 2, found[2 * i + 1] - size / 2, size, size);
      }
    }
    draw.globalAlpha = 1;
    if (app.current !== null) {
      draw.strokeStyle = ink;
      draw.lineWidth = 2;
      draw.beginPath();
      draw.arc(found[2 * app.current], found[2 * app.current + 1], 7, 0, 2 * Math.PI);
      draw.stroke();
    }
    points = { found, axes, left, bottom, height };
    canvas.setAttribute("aria-label", `${count(n)} latents, ${NAMES[x.value]} across and ${NAMES[y.value]} up; ${count(listed.length)} listed ones in colour`);
    densities();
  }

  function nearest(x, y) {
    let best = null, least = 12 ** 2;
    for (const i of app.all) {
      const distance = (points.found[2 * i] - x) ** 2 + (points.found[2 * i + 1] - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  // Conditions of a range of an axis, px from its origin; none where all of it is inside. Bounds are rounded outwards.
  function conditions(axis, from, to, whole) {
    const name = axis.name, found = [];
    const outwards = (value, up) => {
      const unit = 10 ** (Math.floor(Math.log10(Math.abs(value) || 1)) - 3);
      return Number(((up ? Math.ceil : Math.floor)(value / unit) * unit).toPrecision(4));
    };
    if (to <= STRIP) return [axis.logarithmic ? `${name}=0` : "is:dead"];
    if (from > STRIP) found.push(`${name}>=${outwards(axis.value(from), false)}`);
    if (to < whole) found.push(`${name}<=${outwards(axis.value(to), true)}`);
    return found;
  }

  function drag() {
    const { over, brush, tip } = made;
    let began = null;
    const at = (event) => { const box = over.getBoundingClientRect(); return [event.clientX - box.x, event.clientY - box.y]; };
    over.addEventListener("pointerdown", (event) => {
      began = at(event);
      try { over.setPointerCapture(event.pointerId); } catch {} // of a pointer that has gone
    });
    over.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      if (!began) {
        const near = points && nearest(x, y);
        tip.replaceChildren(...(near === null ? [] : [`${near}  `, ...app.gist(near, 4)]));
        return;
      }
      const [from, to] = [[Math.min(x, began[0]), Math.min(y, began[1])], [Math.max(x, began[0]), Math.max(y, began[1])]];
      brush.hidden = false;
      Object.assign(brush.style, { left: `${from[0]}px`, top: `${from[1]}px`, width: `${to[0] - from[0]}px`, height: `${to[1] - from[1]}px` });
    });
    over.addEventListener("pointerup", (event) => {
      if (!began) return;
      const [x, y] = at(event), [x0, y0] = began;
      began = null;
      brush.hidden = true;
      if (Math.hypot(x - x0, y - y0) < 5) {
        const near = nearest(x, y);
        if (near !== null) app.select(near);
        return;
      }
      const { axes, left, bottom, height } = points, [wide, high] = [over.clientWidth - left - 10, height - bottom - 10];
      const query = [
        ...conditions(axes[0], Math.min(x, x0) - left, Math.max(x, x0) - left, wide),
        ...conditions(axes[1], height - bottom - Math.max(y, y0), height - bottom - Math.min(y, y0), high),
      ];
      root.getElementById("scope").value = "all";
      list.search(query.join(" "));
    });
  }

  // Latents by density, four bins a decade; those that never fired apart. A bar lists its latents.
  function densities() {
    const bins = new Map(), low = Math.floor(Math.log10(1 / head.tokens)) * 4;
    let dead = 0;
    for (const i of app.all) {
      const density = numbers.density(i);
      if (density === 0) dead++;
      else bins.set(Math.floor(Math.log10(density) * 4), (bins.get(Math.floor(Math.log10(density) * 4)) ?? 0) + 1);
    }
    const rows = [["never fired", dead, "is:dead"]];
    for (let bin = low; bin < 0; bin++) {
      const [from, to] = [10 ** (bin / 4), 10 ** ((bin + 1) / 4)];
      if (bins.get(bin) || rows.length > 1) rows.push([`${number(from, 2)}`, bins.get(bin) ?? 0, `density>=${number(from, 4).replaceAll(",", "")} density<=${number(to, 4)}`]);
    }
    while (rows.at(-1)[1] === 0 && rows.length > 1) rows.pop();
    const most = Math.max(...rows.map(([, n]) => n));
    made.hist.replaceChildren(...rows.map(([name, n, query]) => {
      const bar = element("span", "column");
      bar.style.height = `${(100 * n) / most}%`;
      const one = button("", () => { root.getElementById("scope").value = "all"; list.search(query); }, element("span", "space", bar), element("span", "name", name));
      one.title = one.ariaLabel = `density from ${name}: ${count(n)} latents`;
      return one;
    }));
  }

  app.onListed = (found) => {
    listed = found;
    if (app.view === "scatter") draw();
  };
  return {
    open() {
      if (!made) build();
      draw();
    },
    select: () => draw(),
  };
}
