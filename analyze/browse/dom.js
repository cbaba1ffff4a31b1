// Elements, numbers and tokens, and arrays as they arrive. Text from the model's vocabulary, the corpus or people enters a page as
// textContent, as the value of a field or as the title property, never as markup.

function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

function button(className, does, ...content) {
  const made = element("button", className, ...content);
  made.type = "button";
  made.addEventListener("click", does);
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

// The named arrays of a safetensors file, and `json`, what its metadata says.
const KINDS = { U8: Uint8Array, I16: Int16Array, U16: Uint16Array, I32: Int32Array, U32: Uint32Array, F32: Float32Array, F64: Float64Array };
function unpack(buffer) {
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const { __metadata__: said, ...header } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const found = { json: JSON.parse(said?.json ?? "{}"), widths: {} };
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
    const Kind = KINDS[dtype];
    if (said?.planes) rejoin(new Uint8Array(buffer, 8 + size + begin, end - begin), Kind.BYTES_PER_ELEMENT);
    found[name] = new Kind(buffer, 8 + size + begin, (end - begin) / Kind.BYTES_PER_ELEMENT);
    found.widths[name] = shape.at(-1);
  }
  return found;
}

// The first bytes of all numbers, then their second ones, … → each number's bytes together.
function rejoin(bytes, size) {
  if (size === 1) return;
  const planes = bytes.slice(), n = bytes.length / size;
  for (let plane = 0; plane < size; plane++) for (let i = 0; i < n; i++) bytes[i * size + plane] = planes[plane * n + i];
}

// Base64 of gzip → the bytes.
async function inflated(text) {
  const packed = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

const LONGEST_TOKEN = 1000; // characters shown

// The texts of tokens by id: whole characters as text, parts of characters as bytes.
class Texts {
  constructor() {
    this.known = new Map();
  }

  add(texts) {
    for (const [id, text] of Object.entries(texts ?? {})) {
      this.known.set(Number(id), text.length > LONGEST_TOKEN ? `${text.slice(0, LONGEST_TOKEN)}… (${count(text.length)} characters)` : text);
    }
  }

  // A token by itself.
  of(id) {
    const text = this.known.get(id);
    if (text === undefined) return `⟨token ${id}⟩`;
    return typeof text === "string" ? text : this.spelled(text);
  }

  spelled(bytes) {
    return bytes.map((byte) => `⟨0x${byte.toString(16).toUpperCase().padStart(2, "0")}⟩`).join("");
  }

  // The text of each token of a window. The bytes of tokens that follow each other are joined: a character is the piece of the token
  // with its first byte, the others are "", and bytes that make no character are spelled.
  pieces(ids) {
    const found = ids.map((id) => this.known.get(id) ?? `⟨token ${id}⟩`);
    for (let i = 0; i < found.length; i++) {
      if (typeof found[i] === "string") continue;
      let end = i;
      while (end < found.length && typeof found[end] !== "string") end++;
      const bytes = [];
      for (let at = i; at < end; at++) for (const byte of found[at]) bytes.push([byte, at]);
      for (let at = i; at < end; at++) found[at] = "";
      let at = 0;
      while (at < bytes.length && i === 0 && bytes[at][0] >> 6 === 2) at++; // of a character before the window
      while (at < bytes.length) {
        const first = bytes[at][0];
        const length = first < 0x80 ? 1 : first >> 5 === 6 ? 2 : first >> 4 === 14 ? 3 : first >> 3 === 30 ? 4 : 1;
        const part = bytes.slice(at, at + length).map(([byte]) => byte);
        let text = this.spelled([first]);
        let used = 1;
        try {
          text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(part));
          used = length;
        } catch {} // bytes that make no character
        found[bytes[at][1]] += text;
        at += used;
      }
      i = end - 1;
    }
    return found;
  }
}

// A token by itself: the spaces at its ends shown as dots, its id as a tooltip.
function tokenElement(text, id) {
  const made = element("span", "token");
  made.dir = "auto";
  if (id >= 0) made.title = `token ${id}`;
  const [, before, middle, after] = text.match(/^( *)([^]*?)( *)$/);
  if (before) made.append(element("span", "space", "·".repeat(before.length)));
  made.append(middle);
  if (after) made.append(element("span", "space", "·".repeat(after.length)));
  return made;
}

// Colour of a token by activation, of one hue.
function heat(part, share) {
  if (share > 0) part.style.backgroundColor = `rgb(var(--mark) / calc(var(--strength) * ${Math.min(1, share)}))`;
}
