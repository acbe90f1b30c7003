"use strict";
// Reads /events and draws. Everything that comes from there is put into the page as text, never as markup.
const WINDOW = 120, SMOOTH = 3, SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const seconds = new Map();
let state = null, key = "";

function make(parent, name, attributes, text) {
  const made = parent.namespaceURI === SVG ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [each, value] of Object.entries(attributes || {})) made.setAttribute(each, value);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
}

const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(1)}%` : "–");
const duration = (s) => (s < 10 ? `${Math.round(1000 * s)} ms` : `${s.toFixed(1)} s`);
const answers = (second) => Object.values(second.answered).reduce((sum, count) => sum + count, 0);

// Sums over the seconds from one to another, both counted.
function sums(from, to) {
  const total = { answered: {}, ended: 0, in_time: 0, quality: 0, failed: 0, late: 0 };
  for (let at = from; at <= to; at++) {
    const second = seconds.get(at);
    if (!second) continue;
    const count = answers(second);
    for (const [model, n] of Object.entries(second.answered)) total.answered[model] = (total.answered[model] || 0) + n;
    total.ended += count + second.failed;
    total.in_time += second.in_time;
    total.quality += second.quality;
    total.failed += second.failed;
    total.late += count - second.in_time;
  }
  return total;
}

// An empty picture with its axes; x and y turn seconds before now and values into places.
function frame(id, top, label) {
  const svg = byId(id), width = svg.clientWidth, height = svg.clientHeight;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const left = 38, below = 18;
  const x = (ago) => left + (width - left) * (1 - ago / WINDOW);
  const y = (value) => (height - below) * (1 - value / top) + 4;
  for (const part of [0, 0.5, 1]) {
    make(svg, "line", { class: "grid", x1: left, x2: width, y1: y(part * top), y2: y(part * top) });
    make(svg, "text", { x: left - 6, y: y(part * top) + 4, "text-anchor": "end" }, label(part * top));
  }
  for (const ago of [120, 90, 60, 30, 0]) {
    const anchor = ago === 0 ? "end" : ago === WINDOW ? "start" : "middle";
    make(svg, "text", { x: x(ago), y: height, "text-anchor": anchor }, ago ? `−${ago} s` : "now");
  }
  return { svg, x, y };
}

// Runs of neighbouring points, so that nothing is drawn where nothing ended.
function runs(points) {
  const found = [];
  for (const point of points) {
    const last = found[found.length - 1];
    if (last && last[last.length - 1].ago - point.ago <= 1) last.push(point);
    else found.push([point]);
  }
  return found;
}

function drawShares(points, models) {
  const { svg, x, y } = frame("shares", 1, (value) => `${Math.round(100 * value)}%`);
  for (const run of runs(points)) {
    const low = run.map(() => 0);
    models.forEach((model, index) => {
      const high = run.map((point, i) => {
        const all = Object.values(point.answered).reduce((sum, n) => sum + n, 0);
        return low[i] + (point.answered[model] || 0) / all;
      });
      const there = run.map((point, i) => `${x(point.ago)},${y(high[i])}`);
      const back = run.map((point, i) => `${x(point.ago)},${y(low[i])}`).reverse();
      if (run.length === 1) { there.push(`${x(run[0].ago) + 2},${y(high[0])}`); back.unshift(`${x(run[0].ago) + 2},${y(low[0])}`); }
      make(svg, "polygon", { class: `area c-m${index % 6}`, points: [...there, ...back].join(" ") });
      high.forEach((value, i) => { low[i] = value; });
    });
  }
}

function drawLines(points) {
  const { svg, x, y } = frame("lines", 1, (value) => `${Math.round(100 * value)}%`);
  for (const [kind, share] of [["in-time", (p) => p.in_time / p.ended], ["quality", (p) => p.quality / p.ended]]) {
    for (const run of runs(points)) {
      const line = run.map((point) => `${x(point.ago)},${y(share(point))}`);
      if (line.length === 1) line.push(`${x(run[0].ago) + 2},${y(share(run[0]))}`);
      make(svg, "polyline", { class: `line c-${kind}`, points: line.join(" ") });
    }
  }
}

function drawRates(now) {
  const each = [];
  for (let ago = WINDOW - 1; ago >= 1; ago--) each.push({ ago, ...sums(now - ago, now - ago) });
  const most = Math.max(...each.map((point) => point.ended), 4);
  const top = Math.ceil(most / 4) * 4;
  const { svg, x, y } = frame("rates", top, (value) => `${value}`);
  const wide = Math.max(x(0) - x(1) - 0.5, 0.5);
  for (const point of each) {
    let from = 0;
    for (const [kind, count] of [["answered", point.in_time], ["late", point.late], ["failed", point.failed]]) {
      if (count) make(svg, "rect", { class: `bar c-${kind}`, x: x(point.ago), width: wide, y: y(from + count), height: y(from) - y(from + count) });
      from += count;
    }
  }
}

function drawTables() {
  const pools = byId("pools").tBodies[0];
  pools.replaceChildren();
  for (const pool of state.pools) {
    const flying = pool.replicas.reduce((sum, r) => sum + r.in_flight, 0), limit = pool.replicas.reduce((sum, r) => sum + r.limit, 0);
    const out = pool.replicas.filter((r) => r.state !== "in use");
    const row = make(pools, "tr");
    make(row, "td", {}, pool.name);
    make(row, "td", {}, pool.model);
    make(row, "td", {}, `${flying} of ${limit}`);
    const meter = make(make(row, "td"), "div", { class: `meter c-m${state.models.indexOf(pool.model) % 6}` });
    make(meter, "i").style.width = `${(100 * flying) / limit}%`;
    make(row, "td", { class: out.length ? "bad" : "good" }, out.length ? `${out.length} of ${pool.replicas.length} ${out[0].state}` : `${pool.replicas.length} in use`);
  }
  const latest = byId("latest").tBodies[0];
  latest.replaceChildren();
  for (const each of state.latest.slice(0, 10)) {
    const row = make(latest, "tr");
    const kind = each.outcome === "in time" ? "good" : each.outcome === "late" ? "late" : "bad";
    make(row, "td", {}, each.task);
    make(row, "td", {}, each.model || "–");
    make(row, "td", { class: kind }, each.outcome);
    make(row, "td", {}, duration(each.latency_s));
    make(row, "td", {}, duration(each.deadline_s));
    make(row, "td", {}, each.attempts);
  }
}

function draw() {
  if (!state) return;
  const now = Math.floor(state.at), recent = sums(now - 30, now - 1), all = sums(now - 300, now);
  byId("quality").textContent = percent(recent.quality / recent.ended);
  byId("in-time").textContent = percent(recent.in_time / recent.ended);
  byId("rate").textContent = state.rate.toFixed(1);
  byId("load").textContent = `per second, ${percent(state.load)} of what the largest model can do`;
  byId("failed").textContent = all.failed;
  byId("retries").textContent = `in the last 5 minutes; ${state.retries} sent again in all`;
  const points = [];
  for (let ago = WINDOW; ago >= 1; ago--) {
    const found = sums(now - ago - SMOOTH + 1, now - ago);
    if (found.ended) points.push({ ago, ...found });
  }
  drawShares(points.filter((point) => Object.keys(point.answered).length), state.models);
  drawLines(points);
  drawRates(now);
  const legend = byId("legend");
  if (legend.dataset.models !== state.models.join()) {
    legend.dataset.models = state.models.join();
    legend.replaceChildren();
    state.models.forEach((model, index) => make(legend, "li", { class: `m${index % 6}` }, model));
  }
  drawTables();
  const age = Math.max(state.at - state.since, 0), method = state.policy === "none" ? "without training" : state.policy;
  byId("policy").textContent = `Policy: ${method}, in use for ${age < 120 ? `${Math.round(age)} s` : `${Math.round(age / 60)} min`}; replaced ${state.snapshot} times. Requests in work: ${state.open}.`;
  say(state.draining ? "shutting down" : `live, ${new Date(1000 * state.at).toLocaleTimeString()}`, state.draining);
}

function say(text, bad) {
  byId("status").textContent = text;
  byId("status").className = bad ? "bad" : "";
}

function take(text) {
  const message = JSON.parse(text);
  for (const second of message.seconds) seconds.set(second.at, second);
  state = message.state;
  for (const at of seconds.keys()) if (at < state.at - 301) seconds.delete(at);
  draw();
}

async function read() {
  const response = await fetch("/events", { headers: key ? { authorization: `Bearer ${key}` } : {}, cache: "no-store" });
  byId("login").hidden = response.status !== 401;
  if (!response.ok) throw new Error(response.status === 401 ? "an API key is needed" : `status ${response.status}`);
  const reader = response.body.getReader(), decoder = new TextDecoder();
  for (let held = "";;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("connection lost");
    held += decoder.decode(value, { stream: true });
    for (let end; (end = held.indexOf("\n\n")) >= 0; held = held.slice(end + 2)) {
      if (held.startsWith("data: ")) take(held.slice(6, end));
    }
  }
}

async function follow() {
  for (;;) {
    try { await read(); } catch (error) { say(error instanceof TypeError ? "connection lost" : error.message, true); }
    if (!byId("login").hidden) return;
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value;
  byId("key").value = "";
  follow();
});
window.addEventListener("resize", draw);
follow();
