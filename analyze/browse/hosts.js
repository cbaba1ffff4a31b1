// The three hosts of the browser: a static page, a live page of `saelens-lite browse`, and a widget in a notebook.

// The latent that the address ends with; selecting one writes it there.
const address = {
  place: () => (/^#\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : null),
  selected: (latent) => { if (latent !== null) history.replaceState(null, "", `#${latent}`); },
  listens({ select }) {
    addEventListener("hashchange", () => { if (address.place() !== null) select(address.place()); });
  },
};

// Its head is JSON in #data; arrays are base64 of gzip, in scripts of the page, or in files beside it that call saelens_lite_part.
function staticHost() {
  const head = JSON.parse(document.getElementById("data").textContent);
  const waiting = new Map();
  globalThis.saelens_lite_part = (name, text) => waiting.get(name)?.resolve(text);
  function part(name) {
    const inside = document.getElementById(`part-${name}`);
    if (inside) return Promise.resolve(inside.textContent);
    return new Promise((resolve, reject) => {
      waiting.set(name, { resolve });
      const script = document.createElement("script");
      script.src = `${head.files}/${name}.js`;
      script.addEventListener("error", () => reject(new Error(`${head.files}/${name}.js, which belongs beside this page, is missing`)));
      script.addEventListener("load", () => { script.remove(); waiting.delete(name); });
      document.head.append(script);
    });
  }
  return {
    ...address,
    async ask(name, { chunk }) {
      const found = unpack(await inflated(await part(name === "start" ? "table" : String(chunk))));
      if (name === "start") found.json = head;
      return found;
    },
  };
}

// Requests to the server that gave the page, with the token that its address held once.
function serverHost() {
  const token = new URLSearchParams(location.search).get("token") ?? sessionStorage.getItem("token") ?? "";
  sessionStorage.setItem("token", token);
  history.replaceState(null, "", location.pathname + location.hash);
  return {
    ...address,
    async ask(name, params, { signal, heard } = {}) {
      const headers = { "Content-Type": "application/json", "X-Saelens-Lite-Token": token };
      let answer;
      try {
        answer = await fetch(`ask/${name}`, { method: "POST", headers, body: JSON.stringify(params), signal });
      } catch (error) {
        throw error.name === "AbortError" ? error : new Error("the server does not answer: is `saelens-lite browse` still running?");
      }
      if (!answer.ok) throw new Error((await answer.text()) || answer.statusText);
      const kind = answer.headers.get("Content-Type");
      if (kind === "application/octet-stream") return unpack(await answer.arrayBuffer());
      if (kind === "application/json") return { json: await answer.json() };
      let rest = "";
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let { value, done } = await reader.read(); !done; { value, done } = await reader.read()) {
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) heardLine(JSON.parse(line), heard);
      }
      return { json: {} };
    },
  };
}

function heardLine(said, heard) {
  if (said.error) throw new Error(said.error);
  heard(said);
}

// Messages to the kernel: { ask, name, params }, { heard: ask } for each line that is drawn, and { stop: ask }; back come { ask, json | line | error } with a buffer of arrays.
function widgetHost(model) {
  const waiting = new Map();
  let asked = 0, commands = null;
  const early = [];
  const obey = (message) => { if (commands) commands[message.command](message.value); else early.push(message); };
  model.on("msg:custom", (message, buffers) => {
    if (message.command) return obey(message);
    const one = waiting.get(message.ask);
    if (!one) return;
    if (message.line) {
      one.heard(message.line);
      model.send({ heard: message.ask });
      return;
    }
    waiting.delete(message.ask);
    if (message.error) one.reject(new Error(message.error));
    else if (buffers?.length) {
      const { buffer, byteOffset, byteLength } = buffers[0];
      one.resolve(unpack(byteOffset === undefined ? buffers[0] : buffer.slice(byteOffset, byteOffset + byteLength)));
    } else one.resolve({ json: message.json ?? {} });
  });
  return {
    ask: (name, params, { signal, heard } = {}) => new Promise((resolve, reject) => {
      const ask = `${++asked}-${Math.random()}`; // several views share the model
      waiting.set(ask, { resolve, reject, heard });
      signal?.addEventListener("abort", () => {
        waiting.delete(ask);
        model.send({ stop: ask });
        reject(new DOMException("stopped", "AbortError"));
      });
      model.send({ ask, name, params });
    }),
    place: () => null,
    selected: (latent) => model.send({ selected: latent }),
    listens(to) {
      commands = to;
      early.splice(0).forEach(obey);
    },
  };
}

const pageHost = globalThis.document?.getElementById("browser")?.dataset.host;
if (pageHost) {
  start(document, pageHost === "server" ? serverHost() : staticHost()).catch((error) => {
    document.getElementById("feature").replaceChildren(element("p", "empty", `This page cannot be read: ${error.message}`));
    throw error;
  });
}

export default {
  render({ model, el }) {
    const root = el.attachShadow({ mode: "open" });
    const style = document.createElement("style");
    style.textContent = WIDGET.style;
    const shell = new DOMParser().parseFromString(WIDGET.shell, "text/html").body;
    root.append(style, ...shell.childNodes);
    el.dataset.lmSuppressShortcuts = "true";
    start(root, widgetHost(model)).catch((error) => {
      root.getElementById("feature").replaceChildren(element("p", "empty", error.message));
    });
  },
};
