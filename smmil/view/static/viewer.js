// The viewer. Data come as JSON from the server, or as scripts in an exported folder (smmil/view/site.py, records.py).
"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const IS_STATIC = document.documentElement.dataset.mode === "static";
const EXTREMES = 8;
const LISTED = 300;
const KEPT_SLICES = 120;
const POSITIVE = "#e03c14";
const KINDS = { score: "raw score", signed: "sign-aware score", signed_sm: "smoothed sign-aware score" };
const WINDOWS = { Brain: [40, 80], Subdural: [80, 200], Bone: [600, 2800], "Soft tissue": [40, 380] };
const MAPS = {
  viridis: "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
  magma: "000004 180f3d 440f76 721f81 9e2f7f cd4071 f1605d fd9668 feca8d fcfdbf",
  cividis: "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838",
  "blue to red": "2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b",
};

const state = {
  catalogue: null, cohort: null, list: null, summary: [], bag: null, opening: 0,
  panes: [], active: 0, leader: null, n: 1, choices: [], tile: null, shown: LISTED, scan: null,
  colours: "viridis", values: "score", opacity: 0.55, lesion: true, tissue: false, artefacts: false, borders: false, hide: false,
  slice: 0, level: 40, width: 80,
};

// ---------------------------------------------------------------- data
const waiting = new Map();
const loaded = new Map();
window.smmilData = (address, value) => waiting.get(address)?.(value);

function request(address) {
  if (!IS_STATIC) {
    return fetch(address).then(async (reply) => {
      const value = await reply.json();
      if (!reply.ok) throw new Error(value.error || reply.statusText);
      return value;
    });
  }
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    waiting.set(address, resolve);
    script.src = `${address}.js`;
    script.onload = () => script.remove();
    script.onerror = () => reject(new Error(`${address} is not in this export`));
    document.head.append(script);
  });
}

function load(address) {
  if (!loaded.has(address)) {
    // a scan of many slices must not fill the memory
    const slices = [...loaded.keys()].filter((key) => key.includes("/slice-"));
    if (slices.length > KEPT_SLICES) loaded.delete(slices[0]);
    const answer = request(address).then(unpack);
    loaded.set(address, answer);
    answer.catch(() => loaded.delete(address));
  }
  return loaded.get(address);
}

// arrays come as { kind, data } anywhere in an answer
async function unpack(value) {
  if (value === null || typeof value !== "object") return value;
  if (typeof value.data !== "string") {
    const parts = await Promise.all(Object.values(value).map(unpack));
    return Array.isArray(value) ? parts : Object.fromEntries(Object.keys(value).map((key, i) => [key, parts[i]]));
  }
  const bytes = Uint8Array.from(atob(value.data), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  return new { f4: Float32Array, f8: Float64Array, i4: Int32Array, i2: Int16Array }[value.kind](buffer);
}

// ---------------------------------------------------------------- small helpers
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name in node && typeof value !== "string") node[name] = value;
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function say(text) {
  const line = el("div", {}, text);
  $("messages").append(line);
  setTimeout(() => line.remove(), 9000);
}

const labelName = (label) => (label === null ? "unlabelled" : label ? "positive" : "negative");
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const exact = (x) => (Number.isFinite(x) ? String(Number(x.toPrecision(9))) : "unknown");
const short = (x) => (Math.abs(x) >= 1e4 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential(1) : x.toPrecision(3));
const range = (n) => Array.from({ length: n }, (_, i) => i);
const empty = (text) => el("div", { class: "empty" }, text);
const pressed = (isPressed) => ({ "aria-pressed": String(isPressed) });

// lowest and highest finite value; a spread of twenty thousand values would overflow the stack
function limits(values) {
  const finite = Array.from(values).filter(Number.isFinite);
  return finite.length ? [finite.reduce((a, b) => Math.min(a, b)), finite.reduce((a, b) => Math.max(a, b))] : [0, 1];
}

function table(name) {
  const stops = MAPS[name].split(" ").map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return range(256).map((i) => {
    const place = (i / 255) * (stops.length - 1), k = Math.min(Math.floor(place), stops.length - 2);
    return stops[k].map((value, c) => Math.round(value + (stops[k + 1][c] - value) * (place - k)));
  });
}
const tables = Object.fromEntries(Object.keys(MAPS).map((name) => [name, table(name)]));
const colourIndex = (value, low, high) =>
  high > low ? Math.max(0, Math.min(255, Math.round((255 * (value - low)) / (high - low)))) : 128;

function ranked(values) {
  // order: highest first, equal values as stored; percentile: share of the others below, equal ones count one half
  const finite = range(values.length).filter((i) => Number.isFinite(values[i]));
  const order = [...finite].sort((a, b) => values[b] - values[a] || a - b);
  const percentile = new Float64Array(values.length).fill(NaN), place = new Int32Array(values.length);
  for (let i = 0, n = order.length; i < n; ) {
    let end = i;
    while (end < n && values[order[end]] === values[order[i]]) end++;
    for (let k = i; k < end; k++) {
      percentile[order[k]] = n > 1 ? (n - end + (end - i - 1) / 2) / (n - 1) : 0.5;
      place[order[k]] = i + 1;
    }
    i = end;
  }
  return { order, percentile, place };
}

function select(options, value, onchange, label) {
  const node = el("select", { onchange: () => onchange(node.value), "aria-label": label });
  const groups = new Map();
  for (const [key, text, group] of options) {
    const option = el("option", { value: key }, text);
    option.selected = key === value;
    if (!group) node.append(option);
    else {
      if (!groups.has(group)) node.append(groups.set(group, el("optgroup", { label: group })).get(group));
      groups.get(group).append(option);
    }
  }
  return node;
}

// ---------------------------------------------------------------- methods and runs
const methodKey = (run) => `${run.encoder}|${run.method}`;

function methodsOf(runs) {
  const methods = new Map();
  for (const run of runs) {
    const key = methodKey(run);
    if (!methods.has(key)) methods.set(key, { key, name: run.name, encoder: run.encoder, colour: run.colour, runs: [] });
    methods.get(key).runs.push(run);
  }
  return [...methods.values()];
}

function methodOptions(methods) {
  const several = new Set(methods.map((method) => method.encoder)).size > 1;
  return methods.map((method) => [method.key, method.name, several ? method.encoder : ""]);
}

const runsOfBag = () => (state.bag ? state.list.runs.filter((run) => run.bags.includes(state.bag.position)) : []);

function prediction(run) {
  const k = run.bags.indexOf(state.bag.position);
  return { probability: sigmoid(run.logits[k]), isValidation: run.parts[k] === "v" };
}

// ---------------------------------------------------------------- list of bags
function summarise() {
  // mean over the splits that test a bag; without a test, over those that validate it
  const sums = state.list.bags.map(() => ({ test: [], val: [] }));
  for (const run of state.list.runs) {
    if (methodKey(run) !== $("ranking").value) continue;
    run.bags.forEach((bag, k) => sums[bag][run.parts[k] === "v" ? "val" : "test"].push(sigmoid(run.logits[k])));
  }
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  state.summary = state.list.bags.map((bag, i) => {
    const part = sums[i].test.length ? "test" : sums[i].val.length ? "val" : "";
    const probability = part ? mean(sums[i][part]) : null;
    const error = part && bag.label !== null ? Math.abs(probability - bag.label) : null;
    return { bag, part, probability, error, isWrong: error !== null && Number(probability > 0.5) !== bag.label };
  });
}

function drawList() {
  const filter = $("filter").value.trim().toLowerCase(), order = $("order").value;
  const first = (value) => (value === null ? -1 : value);
  // validation bags took part in choosing the runs, so they come after the test bags
  const group = (entry) => (entry.part === "test" ? 0 : entry.part === "val" ? 1 : 2);
  const rows = state.summary.filter((entry) => entry.bag.id.toLowerCase().includes(filter));
  const byName = (a, b) => a.bag.id.localeCompare(b.bag.id, "en", { numeric: true });
  if (order === "name") rows.sort(byName);
  else if (order === "score") rows.sort((a, b) => first(b.probability) - first(a.probability) || byName(a, b));
  else rows.sort((a, b) => group(a) - group(b) || first(b.error) - first(a.error) || byName(a, b));
  state.rows = rows;
  const tested = rows.filter((entry) => entry.part === "test" && entry.error !== null), wrong = tested.filter((entry) => entry.isWrong);
  $("count").textContent = `${rows.length} of ${state.list.bags.length}` + (tested.length ? `; ${wrong.length} of ${tested.length} test bags wrong` : "");
  $("bags").replaceChildren(...rows.slice(0, state.shown).map(row));
  if (rows.length > state.shown) {
    const more = el("button", { class: "more", onclick: () => { state.shown += LISTED; drawList(); } }, `${rows.length - state.shown} more`);
    $("bags").append(el("li", {}, more));
  }
}

function rank(method) {
  // the first view follows the list
  summarise();
  drawList();
  const pane = state.panes[0];
  if (!pane || !runsOfBag().some((run) => methodKey(run) === method)) return;
  pane.choice.method = method;
  pane.refresh().then(drawPanel);
}

function row(entry) {
  const { bag } = entry, kind = labelName(bag.label), label = bag.label === null ? "" : kind;
  const picture = bag.thumbnail
    ? el("img", { src: `images/${state.cohort.key}/${bag.id}/thumbnail.jpg`, loading: "lazy", alt: "" })
    : el("span", { class: "none" });
  const where = entry.part === "test" ? "" : entry.part === "val" ? "val" : bag.split || "";
  const score = entry.probability === null
    ? el("span", {}, bag.state === "ok" ? "no score" : bag.state)
    : el("span", { class: entry.isWrong ? "wrong" : "" }, `${entry.isWrong ? "✗ " : ""}${entry.probability.toFixed(3)}`);
  const open = () => {
    location.hash = `${state.cohort.key}/${bag.id}`;
    $("list").classList.remove("open");
  };
  const button = el("button", { class: `bag ${state.cohort.modality === "ct" ? "dark" : ""}`, onclick: open },
    picture, el("span", { class: "name", title: bag.id }, bag.id),
    el("span", { class: "what" }, el("span", {}, el("b", { class: label }, kind), where ? ` · ${where}` : ""), score));
  if (entry.probability !== null) {
    const fill = el("i", { class: label });
    fill.style.width = `${100 * entry.probability}%`;
    button.append(el("span", { class: "meter" }, fill));
  }
  button.dataset.bag = bag.id;
  if (state.bag && state.bag.id === bag.id) button.setAttribute("aria-current", "true");
  return el("li", {}, button);
}

function step(by) {
  const at = state.rows.findIndex((entry) => entry.bag.id === state.bag?.id), next = state.rows[at + by];
  if (next) location.hash = `${state.cohort.key}/${next.bag.id}`;
}

// ---------------------------------------------------------------- one bag
async function openCohort(key, ticket) {
  const cohort = state.catalogue.cohorts.find((entry) => entry.key === key) || state.catalogue.cohorts[0];
  const list = await load(`data/${cohort.key}/bags`);
  if (ticket !== state.opening) return;
  closePanes();
  Object.assign(state, { cohort, list, bag: null, choices: [] });
  const methods = methodsOf(state.list.runs);
  $("cohort").value = state.cohort.key;
  const ranking = select(methodOptions(methods), methods[0]?.key, rank, "Method of the list");
  ranking.id = "ranking";
  $("ranking").replaceWith(ranking);
  ranking.closest("label").hidden = !methods.length;
  summarise();
  drawList();
}

async function openAddress() {
  const [key, ...rest] = decodeURIComponent(location.hash.slice(1)).split("/");
  const ticket = ++state.opening;
  try {
    if (!state.cohort || (key && key !== state.cohort.key)) await openCohort(key, ticket);
    if (ticket !== state.opening) return;
    const id = rest.join("/") || state.rows[0]?.bag.id;
    if (!id) return void $("stage").replaceChildren(empty("No bags."));
    const folder = `${state.cohort.key}/${id}`, view = await load(`data/${folder}/bag`);
    const position = state.list.bags.findIndex((bag) => bag.id === id), bag = { ...view, folder, position, scores: new Map() };
    if (bag.slide) {
      const { slide } = bag;
      bag.slide = { ...slide, lesion: path(slide.lesion), tissue: path(slide.tissue), artefacts: {} };
      for (const [kind, { share, rings }] of Object.entries(slide.artefacts)) bag.slide.artefacts[kind] = { share, ...path(rings) };
    }
    if (ticket === state.opening) await showBag(bag);
  } catch (error) {
    if (ticket !== state.opening) return;
    closePanes();
    state.bag = null;
    $("panel").replaceChildren();
    $("stage").replaceChildren(empty(error.message));
  }
}

function path({ points, lengths }) {
  const outline = new Path2D();
  let at = 0;
  for (const length of lengths) {
    for (let k = 0; k < length; k++, at++) outline[k ? "lineTo" : "moveTo"](points[2 * at], points[2 * at + 1]);
    outline.closePath();
  }
  return { outline, n: lengths.length };
}

async function showBag(bag) {
  state.bag = bag;
  state.tile = null;
  for (const address of [...loaded.keys()]) {
    if (/\/(scores|slice)-/.test(address) && !address.includes(`/${bag.id}/`)) loaded.delete(address);
  }
  document.title = `${bag.id} · smmil`;
  $("title").textContent = bag.id;
  $("badges").replaceChildren(el("span", { class: `badge ${labelName(bag.label)}` }, labelName(bag.label)));
  if (bag.split) $("badges").append(el("span", { class: "badge" }, bag.split));
  if (runsOfBag().some((run) => run.random_weights)) {
    $("badges").append(el("span", { class: "badge alert", title: "The features come from an untrained encoder: the scores only show that the pipeline runs." }, "random encoder weights"));
  }
  for (const button of document.querySelectorAll(".bag")) button.setAttribute("aria-current", String(button.dataset.bag === bag.id));
  closePanes();
  $("panel").replaceChildren();
  $("layout").hidden = !bag.slide;
  if (bag.slide) await showSlide();
  else if (bag.scan) await showScan();
  else $("stage").replaceChildren(empty(`${bag.id}: ${bag.state}.\n${bag.reason || "Nothing is stored for it."}`));
  drawPanel();
}

async function scoresOf(run) {
  const { bag } = state;
  if (!bag.scores.has(run.id)) {
    const { scores } = await load(`data/${bag.folder}/scores-${run.id}`);
    const layer = ([kind, score]) => [kind, { ...score, ...ranked(score.values), threshold: run.thresholds[kind] ?? null }];
    bag.scores.set(run.id, Object.fromEntries(Object.entries(scores).map(layer)));
  }
  return bag.scores.get(run.id);
}

// ---------------------------------------------------------------- slides
class Pane {
  constructor(index) {
    this.index = index;
    this.bag = state.bag;
    this.choice = state.choices[index];
    this.layer = null;
    this.deep = el("div", { class: "deep" });
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.head = el("div", { class: "head chip" });
    this.legend = el("div", { class: "legend chip" });
    this.scale = el("div", { class: "scale chip" });
    this.node = el("section", { class: "pane", "aria-label": `View ${index + 1}`, onpointerenter: () => { state.leader = this; }, onpointerdown: () => activate(index) },
      this.deep, this.canvas, this.head, this.legend, this.scale);
  }

  open(bounds) {
    const { slide } = this.bag;
    if (!slide.zoom || !window.OpenSeadragon) {
      // without a thumbnail the map stands alone
      const known = state.list.bags[this.bag.position].thumbnail;
      this.deep.append(el("img", { src: known ? `images/${this.bag.folder}/thumbnail.jpg` : "data:,", hidden: !known, alt: `Thumbnail of ${this.bag.id}`, onload: () => this.draw() }));
      this.deep.addEventListener("click", (event) => {
        const box = this.deep.getBoundingClientRect();
        this.pick({ x: event.clientX - box.left, y: event.clientY - box.top });
      });
      new ResizeObserver(() => this.draw()).observe(this.deep);
      return;
    }
    const { width, height, levels, tile, overlap } = slide.zoom;
    if (state.n === 1) this.node.append(el("div", { id: "overview" }));
    this.osd = OpenSeadragon({
      element: this.deep, drawer: "canvas", prefixUrl: "", showNavigationControl: false, animationTime: 0.5,
      showNavigator: state.n === 1, navigatorId: "overview", navigatorBackground: "#fff", maxZoomPixelRatio: 6, minZoomImageRatio: 0.7, visibilityRatio: 0.3,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, gestureSettingsTouch: { dblTapToZoom: true },
      tileSources: {
        width, height, tileSize: tile, tileOverlap: overlap, minLevel: 0, maxLevel: levels - 1,
        getTileUrl: (level, x, y) => `images/${this.bag.folder}/${level}/${x}_${y}.jpg`,
      },
    });
    const { osd } = this;
    osd.addHandler("open", () => {
      const [x, y, w, h] = slide.bounds;
      this.home = osd.viewport.imageToViewportRectangle(x - 0.03 * w, y - 0.03 * h, 1.06 * w, 1.06 * h);
      osd.viewport.fitBounds(bounds || this.home, true);
      this.ready = true;
      this.draw();
    });
    osd.addHandler("open-failed", (event) => say(`${this.bag.id}: ${event.message}`));
    osd.addHandler("tile-load-failed", () => {
      if (!this.complained) say(`${this.bag.id}: parts of the slide cannot be read`);
      this.complained = true;
    });
    osd.addHandler("update-viewport", () => this.draw());
    for (const event of ["animation", "animation-finish", "resize"]) {
      osd.addHandler(event, () => { if (state.leader === this) follow(this); });
    }
    osd.addHandler("canvas-click", (event) => { if (event.quick) this.pick(event.position); });
    const button = (text, label, act) => el("button", { "aria-label": label, title: label, onclick: () => {
      state.leader = this;
      act();
      osd.viewport.applyConstraints();
    } }, text);
    this.node.append(el("div", { class: "zoom" },
      button("+", "Zoom in", () => osd.viewport.zoomBy(1.6)),
      button("−", "Zoom out", () => osd.viewport.zoomBy(1 / 1.6)),
      button("⌂", "Whole slide", () => osd.viewport.fitBounds(this.home))));
  }

  transform() {
    const { slide } = this.bag;
    if (this.osd) {
      const item = this.osd.world.getItemAt(0);
      if (!item) return null;
      const a = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
      const b = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(slide.width, 0));
      return { s: (b.x - a.x) / slide.width, x: a.x, y: a.y };
    }
    const { clientWidth: w, clientHeight: h } = this.deep, s = Math.min(w / slide.width, h / slide.height);
    return s > 0 ? { s, x: (w - s * slide.width) / 2, y: (h - s * slide.height) / 2 } : null;
  }

  async refresh() {
    const { choice, node } = this, runs = runsOfBag();
    this.layer = null;
    if (choice.method === "truth") {
      this.layer = { name: "lesion share", values: this.bag.coverage, ...ranked(this.bag.coverage), low: 0, high: 1, threshold: null };
    } else if (choice.method !== "none") {
      const method = methodsOf(runs).find((entry) => entry.key === choice.method);
      this.run = method?.runs.find((run) => run.seed === choice.seed) || method?.runs[0];
      if (this.run) {
        try {
          const kinds = await scoresOf(this.run);
          this.layer = kinds[choice.kind] || kinds.score || null;
        } catch (error) { say(error.message); }
      }
    }
    if (!node.isConnected || this.bag !== state.bag) return;
    this.setRange(choice.range);
    this.drawHead();
    this.draw();
  }

  setRange(kind) {
    const { layer, choice } = this;
    choice.range = kind;
    if (!layer) return;
    if (choice.method === "truth") [this.low, this.high] = [0, 1];
    else if (kind === "all") [this.low, this.high] = [layer.low, layer.high];
    else if (kind === "custom") [this.low, this.high] = choice.limits;
    else [this.low, this.high] = limits(layer.values);
  }

  drawHead() {
    const { choice } = this;
    this.head.replaceChildren(this.methodMenu());
    if (this.run && this.layer && !["truth", "none"].includes(choice.method)) {
      const { probability, isValidation } = prediction(this.run);
      this.head.append(el("span", {}, `split ${this.run.seed}${isValidation ? " (validation)" : ""} · p ${probability.toFixed(3)} `));
    }
  }

  methodMenu() {
    const { choice } = this, methods = methodsOf(runsOfBag());
    const options = [...methodOptions(methods), ["truth", "Lesion share (truth)"], ["none", "Slide only"]];
    if (!options.some(([key]) => key === choice.method)) options.unshift([choice.method, "not predicted"]);
    return select(options, choice.method, (key) => { choice.method = key; this.refresh().then(drawPanel); }, "Method");
  }

  paint() {
    // values that the colours stand for, and their limits
    const isRank = state.values === "rank" && this.choice.method !== "truth";
    return isRank ? { values: this.layer.percentile, low: 0, high: 1, text: "rank in this slide" } : { values: this.layer.values, low: this.low, high: this.high, text: this.layer.name };
  }

  draw() {
    const { canvas, layer } = this, { slide } = this.bag, t = this.transform();
    if (!t || !slide) return;
    const ratio = window.devicePixelRatio || 1, w = this.deep.clientWidth, h = this.deep.clientHeight;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) [canvas.width, canvas.height] = [Math.round(w * ratio), Math.round(h * ratio)];
    const ctx = canvas.getContext("2d"), s = t.s * ratio, ox = t.x * ratio, oy = t.y * ratio;
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.clearRect(0, 0, canvas.width, canvas.height);
    const { coords } = slide, inset = (slide.footprint - slide.step) / 2, side = slide.step;
    const shown = [];
    for (let i = 0; i < coords.length / 2; i++) {
      const left = coords[2 * i] + inset, top = coords[2 * i + 1] + inset;
      const [x0, x1] = [left, left + side].map((x) => Math.round(x * s + ox)), [y0, y1] = [top, top + side].map((y) => Math.round(y * s + oy));
      if (x1 >= 0 && y1 >= 0 && x0 <= canvas.width && y0 <= canvas.height) shown.push([i, x0, y0, Math.max(1, x1 - x0), Math.max(1, y1 - y0)]);
    }
    if (layer) {
      const { values, low, high } = this.paint(), alpha = Math.round(255 * state.opacity) << 24;
      const colours = tables[state.colours].map(([r, g, b]) => (alpha | (b << 16) | (g << 8) | r) >>> 0);
      const least = state.hide ? this.cut() : -Infinity, { width, height } = canvas;
      // pixels are written directly: twenty thousand tiles must follow the mouse
      if (this.raster?.width !== width || this.raster?.height !== height) this.raster = ctx.createImageData(width, height);
      const pixels = new Uint32Array(this.raster.data.buffer);
      pixels.fill(0);
      for (const [i, x, y, dx, dy] of shown) {
        if (!Number.isFinite(values[i]) || layer.values[i] < least) continue;
        const colour = colours[colourIndex(values[i], low, high)], left = Math.max(0, x), right = Math.min(width, x + dx);
        for (let line = Math.max(0, y); line < Math.min(height, y + dy); line++) pixels.fill(colour, line * width + left, line * width + right);
      }
      ctx.putImageData(this.raster, 0, 0);
    }
    if (state.borders && side * s > 5) {
      ctx.strokeStyle = "rgb(30 40 60 / .55)";
      ctx.lineWidth = 1;
      for (const [, x, y, dx, dy] of shown) ctx.strokeRect(x + 0.5, y + 0.5, dx, dy);
    }
    ctx.setTransform(s, 0, 0, s, ox, oy);
    const stroke = (outline, ...lines) => {
      for (const [colour, width] of lines) {
        ctx.strokeStyle = colour;
        ctx.lineWidth = (width * ratio) / s;
        ctx.stroke(outline);
      }
    };
    const halo = ["rgb(255 255 255 / .8)", 3];
    if (state.artefacts) for (const { outline } of Object.values(slide.artefacts)) stroke(outline, halo, ["#7a2fd0", 1.6]);
    if (state.tissue) stroke(slide.tissue.outline, ["#00a86b", 1.5]);
    if (state.lesion) stroke(slide.lesion.outline, halo, [POSITIVE, 1.6]);
    if (state.tile !== null) {
      const box = new Path2D();
      box.rect(coords[2 * state.tile], coords[2 * state.tile + 1], slide.footprint, slide.footprint);
      stroke(box, ["#000", 5], ["#ffe14d", 2.5]);
    }
    this.drawScale(t.s);
    this.drawLegend();
  }

  cut() {
    // what "hide low scores" hides: below the threshold of validation, or without one below the middle of the range
    return this.layer.threshold ?? (this.low + this.high) / 2;
  }

  drawScale(s) {
    const { mpp } = this.bag.slide;
    this.scale.hidden = !mpp;
    if (!mpp) return;
    const most = (mpp / s) * 120, power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((k) => k * power).find((value) => value <= most);
    const text = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(2))} µm`;
    const bar = el("i");
    bar.style.width = `${(length * s) / mpp}px`;
    this.scale.replaceChildren(text, bar);
  }

  drawLegend() {
    this.legend.hidden = !this.layer;
    if (!this.layer) return;
    const { low, high, text, values } = this.paint(), { threshold } = this.layer, key = [low, high, text, threshold, state.colours].join();
    if (this.legendKey === key) return;
    this.legendKey = key;
    const canvas = el("canvas", { width: 256, height: 1 }), ctx = canvas.getContext("2d");
    tables[state.colours].forEach((colour, i) => { ctx.fillStyle = `rgb(${colour})`; ctx.fillRect(i, 0, 1, 1); });
    const bar = el("span", { class: "bar" }, canvas), head = el("div", {}, text);
    if (values === this.layer.values && threshold !== null && threshold >= low && threshold <= high) {
      const mark = el("i", { title: `threshold from validation ${short(threshold)}` });
      mark.style.left = `${(100 * (threshold - low)) / (high - low || 1)}%`;
      bar.append(mark);
      head.append(el("span", {}, "┆ threshold"));
    }
    this.legend.replaceChildren(head, bar, el("div", {}, el("span", {}, short(low)), el("span", {}, short(high))));
  }

  pick(position) {
    const { slide } = this.bag, t = this.transform(), { coords, footprint, step: side } = slide;
    if (!t) return;
    const x = (position.x - t.x) / t.s, y = (position.y - t.y) / t.s, half = footprint / 2;
    let best = null, least = Infinity;
    for (let i = 0; i < coords.length / 2; i++) {
      const distance = Math.max(Math.abs(coords[2 * i] + half - x), Math.abs(coords[2 * i + 1] + half - y));
      if (distance < least && distance <= Math.max(half, side / 2)) [best, least] = [i, distance];
    }
    choose(best, false);
  }
}

function follow(leader) {
  const bounds = leader.osd.viewport.getBounds(true);
  for (const pane of state.panes) if (pane !== leader && pane.ready) pane.osd.viewport.fitBounds(bounds, true);
}

function activate(index) {
  state.active = index;
  state.panes.forEach((pane, i) => pane.node.classList.toggle("active", i === index));
  drawPanel();
}

function closePanes() {
  for (const pane of state.panes) pane.osd?.destroy();
  state.panes = [];
  state.scan = null;
}

async function showSlide(bounds = null) {
  const methods = methodsOf(runsOfBag());
  for (const index of range(state.n)) {
    // a slide that the chosen method does not predict shows another one; a slide without any keeps the choice
    const used = state.choices.filter((choice, i) => choice && i < state.n).map((choice) => choice.method);
    const fresh = methods.find((method) => !used.includes(method.key)) || methods[0];
    const choice = (state.choices[index] ||= { method: "", kind: "score", range: "bag" });
    const fits = ["truth", "none"].includes(choice.method) || methods.some((method) => method.key === choice.method);
    if (!fits && fresh) choice.method = fresh.key;
  }
  state.active = Math.min(state.active, state.n - 1);
  state.panes = range(state.n).map((index) => new Pane(index));
  state.leader = state.panes[0];
  const grid = el("div", { class: "panes" }, ...state.panes.map((pane) => pane.node));
  grid.dataset.n = state.n;
  $("stage").replaceChildren(grid);
  for (const pane of state.panes) pane.open(bounds);
  await Promise.all(state.panes.map((pane) => pane.refresh()));
  activate(state.active);
}

function setLayout(n) {
  const bounds = state.panes[0]?.osd?.viewport.getBounds(true) || null;
  state.n = n;
  for (const button of $("layout").children) button.setAttribute("aria-pressed", String(Number(button.textContent) === n));
  if (!state.bag?.slide) return;
  closePanes();
  showSlide(bounds).then(drawPanel);
}

const redraw = () => state.panes.forEach((pane) => pane.draw());

function choose(index, move) {
  const { bag } = state;
  state.tile = index;
  if (bag.scan) return void goTo(index);
  if (move && index !== null) {
    const { coords, footprint: side } = bag.slide, pane = state.panes[state.active], view = pane.osd?.viewport;
    state.leader = pane;
    view?.fitBounds(view.imageToViewportRectangle(coords[2 * index] - 2 * side, coords[2 * index + 1] - 2 * side, 5 * side, 5 * side));
  }
  redraw();
  drawPanel();
}

// ---------------------------------------------------------------- scans
async function showScan() {
  const { bag } = state, { scan } = bag;
  if (state.tile === null) state.slice = Math.floor((bag.n - 1) / 2);
  const canvas = el("canvas"), readout = el("div", { class: "readout" }), truth = el("span", { class: "truth badge" });
  const sides = ["left", "right", "top", "bottom"].map((side) => el("span", { class: `side ${side}` }));
  const view = el("div", { class: "view" }, canvas, readout, truth, ...sides);
  const tracks = el("div", { class: "tracks" });
  $("stage").replaceChildren(el("div", { class: "scan" }, view, tracks));
  state.scan = { canvas, readout, truth, sides, view, tracks, rows: [], hu: null };
  view.addEventListener("wheel", (event) => { event.preventDefault(); goTo(state.slice + Math.sign(event.deltaY || event.deltaX)); }, { passive: false });
  view.addEventListener("pointerdown", startDrag);
  view.addEventListener("pointermove", readHu);
  view.addEventListener("contextmenu", (event) => event.preventDefault());
  new ResizeObserver(fitScan).observe(view);
  const methods = methodsOf(runsOfBag()), seed = state.choices[0]?.seed ?? methods[0]?.runs[0].seed;
  const rows = methods.map((method) => ({ method, run: method.runs.find((run) => run.seed === seed) || method.runs[0] }));
  await Promise.all(rows.map(async (entry) => {
    try { entry.kinds = await scoresOf(entry.run); } catch (error) { say(error.message); }
  }));
  if (state.bag !== bag) return;
  state.scan.rows = rows.filter((entry) => entry.kinds?.score);
  drawTracks();
  if (scan.readable) await goTo(state.slice);
  else view.append(empty(bag.warnings.at(-1)));
}

const layerOf = (entry) => entry.kinds[state.choices[0]?.kind] || entry.kinds.score;

function drawTracks() {
  const { tracks, rows } = state.scan, { bag } = state;
  const slider = el("input", { type: "range", min: "0", max: String(bag.n - 1), step: "1", "aria-label": "Slice", oninput: () => goTo(Number(slider.value)) });
  slider.value = state.slice;
  state.scan.slider = slider;
  state.scan.place = el("span", { class: "value" });
  const nodes = [el("span", { class: "label" }, "Slice"), slider, state.scan.place];
  const known = Array.from(bag.coverage).some(Number.isFinite);
  const strips = [...(known ? [{ name: "Truth", values: bag.coverage, truth: true }] : []),
    ...rows.map((entry) => ({ name: entry.method.name, colour: entry.method.colour, entry, values: layerOf(entry).values }))];
  state.scan.strips = strips;
  for (const strip of strips) {
    strip.canvas = el("canvas", { onpointerdown: (event) => scrub(event, strip.canvas) });
    strip.value = el("span", { class: "value" });
    const mark = el("i");
    mark.style.background = strip.truth ? POSITIVE : strip.colour;
    const split = strip.entry ? `, split ${strip.entry.run.seed}: probability ${prediction(strip.entry.run).probability.toFixed(3)}` : "";
    nodes.push(el("span", { class: "label", title: strip.name + split }, mark, strip.name), strip.canvas, strip.value);
  }
  tracks.replaceChildren(...nodes);
  paintTracks();
  new ResizeObserver(paintTracks).observe(tracks);
}

function paintTracks() {
  if (!state.scan?.strips) return;
  const { bag } = state, ratio = window.devicePixelRatio || 1, n = bag.n;
  for (const { canvas, values, truth, value, entry } of state.scan.strips) {
    const w = Math.round(canvas.clientWidth * ratio), h = Math.round(15 * ratio);
    [canvas.width, canvas.height] = [Math.max(w, 1), h];
    const ctx = canvas.getContext("2d"), [low, high] = limits(values), percentile = entry ? layerOf(entry).percentile : null;
    for (let i = 0; i < n; i++) {
      const x0 = Math.round((i * w) / n), x1 = Math.round(((i + 1) * w) / n);
      if (truth) ctx.fillStyle = !Number.isFinite(values[i]) ? "#9aa3ad" : values[i] > 0 ? POSITIVE : "rgb(150 160 170 / .25)";
      else {
        const place = state.values === "rank" ? colourIndex(percentile[i], 0, 1) : colourIndex(values[i], low, high);
        ctx.fillStyle = `rgb(${tables[state.colours][place]})`;
      }
      ctx.fillRect(x0, 0, Math.max(1, x1 - x0 - (w / n > 6 ? 1 : 0)), h);
    }
    const x = ((state.slice + 0.5) * w) / n, half = Math.max(w / n / 2, 2 * ratio);
    ctx.lineWidth = 2 * ratio;
    ctx.strokeStyle = "#fff";
    ctx.strokeRect(x - half, 0, 2 * half, h);
    ctx.strokeStyle = "#000";
    ctx.lineWidth = ratio;
    ctx.strokeRect(x - half - ratio, 0, 2 * half + 2 * ratio, h);
    const at = values[state.slice];
    value.textContent = truth ? (Number.isFinite(at) ? (at > 0 ? "positive" : "negative") : "unknown") : short(at);
    if (!truth) value.title = `${exact(at)}, rank ${layerOf(entry).place[state.slice]} of ${n}`;
  }
  state.scan.place.textContent = `${state.slice + 1} / ${n}`;
  state.scan.slider.value = state.slice;
}

// the node gets all moves of the pointer until it is released
function drag(node, event, move) {
  node.setPointerCapture(event.pointerId);
  node.onpointermove = move;
  node.onpointerup = node.onpointercancel = () => { node.onpointermove = null; };
}

function scrub(event, canvas) {
  const move = (e) => {
    const box = canvas.getBoundingClientRect();
    goTo(Math.floor(((e.clientX - box.left) / box.width) * state.bag.n));
  };
  move(event);
  drag(canvas, event, move);
}

async function goTo(index) {
  const { bag } = state;
  if (!bag?.scan || !state.scan) return;
  const at = (state.slice = state.tile = Math.max(0, Math.min(bag.n - 1, index)));
  paintTracks();
  const known = bag.coverage[at], badge = state.scan.truth;
  badge.textContent = !Number.isFinite(known) ? "truth unknown" : known > 0 ? "positive slice" : "negative slice";
  badge.className = `truth badge ${Number.isFinite(known) ? (known > 0 ? "positive" : "negative") : ""}`;
  drawTile();
  if (!bag.scan.readable) return;
  const slice = (i) => load(`data/${bag.folder}/slice-${i}`);
  try {
    const { hu, sides } = await slice(at);
    if (state.bag !== bag || state.slice !== at) return;
    state.scan.hu = hu;
    state.scan.sides.forEach((node, k) => { node.textContent = sides[k]; });
    drawSlice();
    for (const next of [at + 1, at - 1, at + 2]) if (next >= 0 && next < bag.n) slice(next).catch(() => {});
  } catch (error) {
    state.scan.hu = null;
    state.scan.canvas.width = 0;
    say(error.message);
  }
}

function drawSlice() {
  if (!state.scan?.hu) return;
  const { hu, canvas } = state.scan, { columns } = state.bag.scan;
  [canvas.width, canvas.height] = [columns, hu.length / columns];
  const ctx = canvas.getContext("2d"), picture = ctx.createImageData(columns, hu.length / columns), pixels = new Uint32Array(picture.data.buffer);
  const low = state.level - state.width / 2, scale = 255 / state.width;
  for (let i = 0; i < hu.length; i++) {
    const grey = Math.max(0, Math.min(255, Math.round((hu[i] - low) * scale)));
    pixels[i] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
  }
  ctx.putImageData(picture, 0, 0);
  fitScan();
}

function fitScan() {
  if (!state.scan || !state.bag?.scan) return;
  const { view, canvas } = state.scan, { rows, columns, aspect } = state.bag.scan;
  const s = Math.min(view.clientWidth / columns, view.clientHeight / (rows * aspect));
  canvas.style.width = `${s * columns}px`;
  canvas.style.height = `${s * rows * aspect}px`;
  showReadout("");
}

function showReadout(more) {
  const { bag } = state, mm = bag.scan.positions[state.slice];
  state.scan.readout.textContent = `slice ${state.slice + 1} of ${bag.n}, ${short(mm)} mm\nL ${Math.round(state.level)}  W ${Math.round(state.width)} HU${more ? `\n${more}` : ""}`;
}

function readHu(event) {
  if (!state.scan?.hu) return;
  const { canvas, hu } = state.scan, box = canvas.getBoundingClientRect(), { columns } = state.bag.scan;
  const x = Math.floor(((event.clientX - box.left) / box.width) * columns), y = Math.floor(((event.clientY - box.top) / box.height) * canvas.height);
  showReadout(x >= 0 && y >= 0 && x < columns && y < canvas.height ? `${hu[y * columns + x]} HU` : "");
}

function startDrag(event) {
  if (!state.scan) return;
  // a drag sets the window; on a touch screen it scrolls
  const { view } = state.scan, from = { x: event.clientX, y: event.clientY, level: state.level, width: state.width, slice: state.slice };
  drag(view, event, (e) => {
    if (event.pointerType === "touch") goTo(from.slice + Math.round((e.clientY - from.y) / 12));
    else setWindow(from.level + (e.clientY - from.y), from.width + 2 * (e.clientX - from.x));
  });
}

function setWindow(level, width) {
  state.level = Math.max(-1500, Math.min(3000, Math.round(level)));
  state.width = Math.max(1, Math.min(5000, Math.round(width)));
  for (const id of ["level", "width"]) if ($(id) && document.activeElement !== $(id)) $(id).value = state[id];
  for (const button of document.querySelectorAll("[data-window]")) button.setAttribute("aria-pressed", String(button.dataset.window === `${state.level}/${state.width}`));
  drawSlice();
}

// ---------------------------------------------------------------- panel
const section = (title, ...children) => el("section", {}, el("h2", {}, title), ...children);
const field = (name, node) => el(node.matches("input, select") ? "label" : "div", { class: "row" }, el("span", {}, name), node);
const choiceOf = (name, options, value, change) => field(name, select(options, value, change, name));
const list = (facts) => el("dl", {}, ...facts.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
const segments = (options, value, change) =>
  el("span", { class: "segments" }, ...options.map(([key, text]) => el("button", { ...pressed(key === value), onclick: () => change(key) }, text)));

// which scores of a run are shown, where it has several
function kindField(kinds, choice, change) {
  const value = kinds.includes(choice.kind) ? choice.kind : "score";
  return choiceOf("Score", kinds.map((kind) => [kind, KINDS[kind] || kind]), value, (kind) => {
    choice.kind = kind;
    change();
  });
}

function drawPanel() {
  const { bag } = state;
  if (!bag) return;
  const parts = [...state.catalogue.notes, ...state.list.notes].map((text) => el("p", { class: "warning" }, text));
  if (bag.slide) parts.push(layerSection(), displaySection());
  if (bag.scan) parts.push(windowSection(), scanSection());
  const tile = el("section", { id: "tile" });
  parts.push(tile, extremesSection(), factsSection());
  $("panel").replaceChildren(...parts.filter(Boolean));
  drawTile();
}

function layerSection() {
  const pane = state.panes[state.active];
  if (!pane) return null;
  const { choice } = pane, runs = runsOfBag(), methods = methodsOf(runs), method = methods.find((entry) => entry.key === choice.method);
  const title = state.n > 1 ? `Layer of view ${state.active + 1}` : "Layer";
  const again = () => pane.refresh().then(drawPanel);
  const rows = [field("Method", pane.methodMenu())];
  if (method) {
    const splits = method.runs.map((run) => [String(run.seed), `${run.seed}${prediction(run).isValidation ? " (validation)" : ""}`]);
    rows.push(choiceOf("Split", splits, String(pane.run?.seed), (seed) => { choice.seed = Number(seed); again(); }));
    const kinds = Object.keys(state.bag.scores.get(pane.run?.id) || {});
    if (kinds.length > 1) rows.push(kindField(kinds, choice, again));
  }
  if (pane.layer && choice.method !== "truth" && state.values === "score") {
    const ends = [[0, "Lowest colour"], [1, "Highest colour"]].map(([end, label]) => el("input", { type: "number", step: "any", value: short([pane.low, pane.high][end]), "aria-label": label, onchange: (event) => {
      choice.limits = [pane.low, pane.high].with(end, Number(event.target.value));
      pane.setRange("custom");
      pane.draw();
    } }));
    rows.push(field("Range", el("span", { class: "pair" }, ...ends)));
    rows.push(field("", segments([["bag", "this slide"], ["all", "all slides"]], choice.range, (kind) => {
      pane.setRange(kind);
      pane.draw();
      drawPanel();
    })));
  }
  if (!methods.length) rows.push(el("p", { class: "note" }, state.list.runs.length ? "No run predicts this slide: it is used for training." : "Nothing has been trained or predicted yet."));
  return section(title, ...rows);
}

function displaySection() {
  const { slide } = state.bag, found = Object.entries(slide.artefacts);
  const opacity = el("input", { type: "range", min: "0", max: "1", step: "0.05", id: "opacity", oninput: () => { state.opacity = Number(opacity.value); redraw(); } });
  opacity.value = state.opacity;
  const check = (key, text, disabled = false) => {
    const box = el("input", { type: "checkbox", id: key, onchange: () => { state[key] = box.checked; redraw(); } });
    box.checked = state[key];
    box.disabled = disabled;
    return el("label", { class: "check" }, box, text);
  };
  return section("Display", ...colourFields(() => { redraw(); drawPanel(); }), field("Opacity", opacity),
    check("lesion", slide.lesion.n ? "Lesion outlines" : "Lesion outlines (none known)", !slide.lesion.n), check("tissue", "Tissue outlines"),
    found.length ? check("artefacts", `Artefacts: ${found.map(([kind, { share }]) => `${kind} ${(100 * share).toPrecision(2)} %`).join(", ")}`) : null, check("borders", "Tile borders"),
    check("hide", state.panes.some((pane) => pane.layer?.threshold != null) ? "Hide scores below the validation threshold" : "Hide the lower half of the range"),
    slide.step < slide.footprint ? el("p", { class: "note" }, "Tiles overlap: each is painted on its middle.") : null);
}

function colourFields(change) {
  const set = (key) => (value) => {
    state[key] = value;
    change();
  };
  return [choiceOf("Colours", Object.keys(MAPS).map((name) => [name, name]), state.colours, set("colours")),
    field("Values", segments([["score", "stored"], ["rank", "rank"]], state.values, set("values")))];
}

function windowSection() {
  const buttons = Object.entries(WINDOWS).map(([name, [level, width]], i) => {
    const isChosen = state.level === level && state.width === width;
    return el("button", { title: `level ${level}, width ${width} HU, key ${i + 1}`, "data-window": `${level}/${width}`, ...pressed(isChosen), onclick: () => setWindow(level, width) }, name);
  });
  const number = (id, text, set) => {
    const input = el("input", { type: "number", id, "aria-label": text, onchange: () => set(Number(input.value)) });
    input.value = state[id];
    return input;
  };
  return section("Window, HU", el("div", { class: "buttons" }, ...buttons),
    field("Level", number("level", "Level", (value) => setWindow(value, state.width))), field("Width", number("width", "Width", (value) => setWindow(state.level, value))),
    el("p", { class: "note" }, "Wheel, ", el("kbd", {}, "↑"), " ", el("kbd", {}, "↓"), ": slices. Drag: level and width. ", el("kbd", {}, "1"), "–", el("kbd", {}, "4"), ": windows."));
}

function scanSection() {
  const seeds = [...new Set(runsOfBag().map((run) => run.seed))].sort((a, b) => a - b);
  const choice = (state.choices[0] ||= { method: "", seed: seeds[0], kind: "score", range: "bag" });
  const rows = [];
  if (seeds.length > 1) rows.push(choiceOf("Split", seeds.map((seed) => [String(seed), String(seed)]), String(choice.seed), (seed) => { choice.seed = Number(seed); showScan().then(drawPanel); }));
  const kinds = [...new Set(state.scan.rows.flatMap((entry) => Object.keys(entry.kinds)))];
  if (kinds.length > 1) rows.push(kindField(kinds, choice, () => { drawTracks(); drawPanel(); }));
  rows.push(...colourFields(() => { paintTracks(); drawPanel(); }));
  const table = el("table", {}, ...state.scan.rows.map((entry) => el("tr", {}, el("th", {}, entry.method.name), el("td", {}, `probability ${prediction(entry.run).probability.toFixed(3)}`))));
  return section("Scores", ...rows, table);
}

function chosenLayers() {
  if (state.bag.scan) return state.scan.rows.map((entry) => ({ name: entry.method.name, layer: layerOf(entry) }));
  return state.panes.filter((pane) => pane.layer && pane.choice.method !== "truth").map((pane) => ({ name: `${pane.run.name}, split ${pane.run.seed}`, layer: pane.layer }));
}

function drawTile() {
  const node = $("tile"), { bag } = state, index = bag.scan ? state.slice : state.tile;
  if (!node) return;
  if (index === null) {
    node.replaceChildren(el("h2", {}, "Tile"), el("p", { class: "note" }, "Click a tile for its score, rank and position."));
    return;
  }
  const share = bag.coverage[index], facts = [];
  if (bag.slide) {
    const { coords, grid, footprint, mpp } = bag.slide;
    facts.push(["x, y", `${coords[2 * index]}, ${coords[2 * index + 1]} px`], ["Side", `${footprint} px${mpp ? `, ${short(footprint * mpp)} µm` : ""}`], ["Row, column", `${grid[2 * index]}, ${grid[2 * index + 1]}`]);
    facts.push(["Lesion share", Number.isFinite(share) ? `${(100 * share).toFixed(1)} %` : "unknown"]);
  } else facts.push(["File", bag.scan.files[index]], ["Position", `${short(bag.scan.positions[index])} mm`]);
  const rows = chosenLayers().map(({ name, layer }) => {
    const cell = el("td", { class: "score" }, exact(layer.values[index]));
    return el("tr", {}, el("th", {}, name), cell, el("td", {}, `${layer.place[index]} of ${layer.order.length}`));
  });
  const head = rows.length ? [el("tr", {}, el("th", {}, ""), el("td", {}, "score"), el("td", {}, "rank"))] : [];
  const picture = bag.slide && bag.slide.zoom && !IS_STATIC ? el("img", { src: `images/${bag.folder}/instance-${index}.jpg`, alt: `Tile ${index}` }) : null;
  node.replaceChildren(el("h2", {}, bag.slide ? `Tile ${index}` : `Slice ${index + 1}`), picture ? el("div", { class: "tile" }, picture, list(facts)) : list(facts), el("table", {}, ...head, ...rows));
}

// as smmil.figures.top_tiles: no instance in both strips, and tiles of a strip do not overlap
function extremes(order) {
  const { slide } = state.bag;
  const apart = (indices, n) => {
    const kept = [];
    for (const i of indices) {
      if (kept.length === n) break;
      const gap = (k) => Math.max(Math.abs(slide.coords[2 * i] - slide.coords[2 * k]), Math.abs(slide.coords[2 * i + 1] - slide.coords[2 * k + 1]));
      if (!slide || kept.every((k) => gap(k) >= slide.footprint)) kept.push(i);
    }
    return kept;
  };
  const highest = apart(order, Math.min(EXTREMES, Math.ceil(order.length / 2)));
  const lowest = apart([...order].reverse().filter((i) => !highest.includes(i)), Math.min(EXTREMES, order.length - highest.length));
  return { highest, lowest };
}

function extremesSection() {
  const { bag } = state, layers = chosenLayers();
  const pane = state.panes[state.active], layer = bag.slide ? pane?.choice.method !== "truth" && pane?.layer : layers[0]?.layer;
  if (!layer || !bag.n || (bag.scan ? !bag.scan.readable : !bag.slide.zoom)) return null;
  const { highest, lowest } = extremes(layer.order);
  const strip = (indices) => el("div", { class: "strip" }, ...indices.map((index) => el("button", { title: exact(layer.values[index]), "aria-label": `${bag.slide ? "Tile" : "Slice"} ${index}`, onclick: () => choose(index, true) },
    el("img", { src: `images/${bag.folder}/instance-${index}.jpg`, loading: "lazy", alt: "" }), el("span", {}, short(layer.values[index])))));
  const what = bag.slide ? "tiles" : "slices", name = bag.scan ? ` of ${layers[0].name}` : "";
  return section(`Highest ${what}${name}`, strip(highest), el("h2", {}, `Lowest ${what}`), strip(lowest));
}

function factsSection() {
  const { bag } = state;
  return section("About", list([["Label", labelName(bag.label)], ["Split", bag.split || "–"], ...bag.facts]),
    ...bag.warnings.map((text) => el("p", { class: "warning" }, text)));
}

// ---------------------------------------------------------------- start
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input:not([type=range]), select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "[" || event.key === "]") return step(event.key === "]" ? 1 : -1);
  if (event.key === "Escape") for (const id of ["list", "panel"]) $(id).classList.remove("open");
  if (!state.bag?.scan) return;
  const moves = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: 5, PageUp: -5, Home: -1e6, End: 1e6 };
  if (event.key in moves) { event.preventDefault(); goTo(state.slice + moves[event.key]); }
  const preset = Object.values(WINDOWS)[Number(event.key) - 1];
  if (preset) setWindow(...preset);
});

async function start() {
  state.catalogue = await load("data/catalogue");
  const { cohorts } = state.catalogue;
  const menu = select(cohorts.map((cohort) => [cohort.key, `${cohort.title} (${cohort.bags})`]), "", (key) => { location.hash = key; }, "Dataset");
  menu.id = "cohort";
  $("cohort").replaceWith(menu);
  $("cohort-field").hidden = cohorts.length < 2;
  $("layout").append(...[1, 2, 4].map((n) => el("button", { "aria-pressed": String(n === state.n), title: `${n} view${n > 1 ? "s, synchronised" : ""}`, onclick: () => setLayout(n) }, String(n))));
  $("menu").onclick = () => { $("list").classList.toggle("open"); $("panel").classList.remove("open"); };
  $("settings").onclick = () => { $("panel").classList.toggle("open"); $("list").classList.remove("open"); };
  $("filter").oninput = () => { state.shown = LISTED; drawList(); };
  $("order").onchange = drawList;
  window.addEventListener("hashchange", openAddress);
  if (!location.hash && state.catalogue.start) history.replaceState(null, "", `#${state.catalogue.start}`);
  await openAddress();
}
start().catch((error) => say(error.message));
})();
