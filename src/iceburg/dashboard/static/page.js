// The page: hears what is new, has the panels show it, and asks for what is asked for.

import { Chart, clock, svg } from "/chart.js";
import {
  NOT_MEASURED, SIDES, byId, byOperation, count, figuresOf, h, lag, millis, seconds, showFigures, showGate, showKept, showKey,
  showLagTable, showMigration, showMismatches, showNow, showQuarantine, showState, showStores, bytes,
} from "/panels.js";

const KEPT_SECONDS = 1800;
const SHOWN_SECONDS = 900;
const SILENT_SECONDS = 4;
const LATENCY_EVERY = 10000;

const parts = {};
let latency = null;
let points = [];
let kind = null;
let minutes = 15;
let quarantinePage = 1;
let heard = 0;

// Themes

const THEMES = ["system", "light", "dark"];
function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  try { localStorage.setItem("theme", theme); } catch { /* a browser that keeps nothing forgets this, too */ }
}
function keptTheme() {
  try { return THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "system"; } catch { return "system"; }
}
setTheme(keptTheme());
byId("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % 3]));

// What is said at the top

function showLive() {
  const badge = byId("live");
  const now = parts.now;
  const silent = Date.now() / 1000 - heard > SILENT_SECONDS;
  const [mark, words] = !heard ? ["waiting", "Connecting"]
    : silent ? ["bad", "The dashboard does not answer; trying again"]
    : now?.reachable ? ["good", "Live"]
    : ["bad", "PostgreSQL is away"];
  badge.className = `badge ${mark}`;
  if (badge.textContent !== words) badge.textContent = words;
  const notices = [];
  if (heard && silent) notices.push(["bad", "The dashboard does not answer.", "What is shown is the last that was heard. Start `iceburg-db dashboard` again; the page goes on by itself."]);
  else if (now?.problem) {
    const away = !now.reachable;
    const before = away && parts.migration ? " What is shown below was found before; the page goes on by itself." : "";
    notices.push([away ? "bad" : "info", now.problem, `${now.hint}${before}`]);
  }
  for (const what of Object.values(parts.trouble ?? {})) notices.push(["warn", "Some figures could not be found.", what]);
  const key = JSON.stringify(notices);
  if (byId("notices").dataset.key !== key) {
    byId("notices").dataset.key = key;
    byId("notices").replaceChildren(...notices.map(([of, what, more]) => h("p", { class: `notice ${of}` }, h("strong", {}, what), h("span", {}, more.replaceAll("`", "")))));
  }
}

// Lag and pending changes

const lagChart = new Chart(byId("lag-chart"), {
  height: 185, least: 0.1, format: seconds, label: "Lag", keyboard: true,
  readout: (at) => readout("lag-readout", at, (p) => lag(p.lag_seconds, p.pending_changes + p.pending_bytes)),
});
const pendingChart = new Chart(byId("pending-chart"), {
  height: 185, least: 10, format: (n) => count(Math.round(n)), label: "Pending changes", keyboard: true,
  readout: (at) => readout("pending-readout", at, (p) => `${count(p.pending_changes)} changes${p.pending_bytes ? `, and ${bytes(p.pending_bytes)} of JSONL` : ""}`),
});

function readout(id, at, words) {
  const point = at === null ? points.at(-1) : points.find((p) => p.at === at);
  if (!point) return;
  const when = at === null ? "now" : clock(point.at, true);
  byId(id).textContent = `${when}: ${words(point).trim()}${point.reachable ? "" : ", PostgreSQL away"}`;
}

function drawLag() {
  if (!points.length) return;
  const to = points.at(-1).at;
  // Not more of an empty axis than two minutes.
  const from = Math.max(to - SHOWN_SECONDS, Math.min(points[0].at, to - 120));
  const shown = points.filter((p) => p.at >= from);
  const away = [];
  for (const point of shown) {
    if (point.reachable) continue;
    if (away.length && point.at - away.at(-1)[1] < 5) away.at(-1)[1] = point.at;
    else away.push([point.at - 1, point.at]);
  }
  const series = (name, value) => [{ name, side: "postgres", area: true, points: shown.map((p) => [p.at, value(p)]) }];
  lagChart.set({ from, to, away, series: series("lag", (p) => p.lag_seconds) });
  pendingChart.set({ from, to, away, series: series("pending", (p) => p.pending_changes) });
}

async function loadHistory() {
  const found = await ask("/api/history");
  if (found) { points = found; drawLag(); }
}

function take(now) {
  const at = new Date(now.at) / 1000;
  if (points.length && at <= points.at(-1).at) return;
  points.push({ at, lag_seconds: now.lag_seconds, pending_changes: now.pending_changes, pending_bytes: now.pending_bytes, reachable: now.reachable });
  points = points.filter((p) => p.at > at - KEPT_SECONDS);
  drawLag();
  if (byId("lag-table").closest("details").open) showLagTable(points);
}
byId("lag-table").closest("details").addEventListener("toggle", () => showLagTable(points));

// Latency

const multiples = new Map();

function legend() {
  const lines = [["embedded", false], ["postgres", false], ...(kind === "call" ? [["dual", false]] : [])];
  const sample = (side, thin) => svg("svg", { viewBox: "0 0 34 12", "aria-hidden": "true" }, svg("path", { class: `series ${side}${thin ? " p50" : ""}`, d: "M1,6L33,6" }));
  byId("latency-legend").replaceChildren(
    ...lines.map(([side]) => h("li", {}, sample(side, false), side === "dual" ? "a write to both" : SIDES[side])),
    h("li", {}, "thick: p95, thin: p50"));
}

function drawLatency() {
  if (!latency) return;
  if (kind === null) kind = byOperation(latency, "pair").length || !byOperation(latency, "call").length ? "pair" : "call";
  for (const button of document.querySelectorAll("[data-kind]")) button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
  showFigures(latency, kind);
  const operations = byOperation(latency, kind);
  byId("latency-legend").hidden = !operations.length;
  legend();
  const host = byId("latency");
  const names = operations.map(([name]) => name).join("\n");
  if (host.dataset.names !== `${kind}\n${names}`) {
    host.dataset.names = `${kind}\n${names}`;
    multiples.clear();
    host.replaceChildren(...operations.map(([name]) => {
      const numbers = h("div"), picture = h("div", { class: "chart" });
      multiples.set(name, { numbers, chart: new Chart(picture, { height: 96, least: 0.0001, format: millis, label: `${name}, p50 and p95` }) });
      return h("figure", { "data-operation": name }, h("figcaption", {}, name), numbers, picture);
    }));
    if (!operations.length) host.replaceChildren(h("p", { class: "empty" }, latency.sides.length ? `Nothing of that kind was measured in this window; the other button has figures.` : NOT_MEASURED.replaceAll("`", "")));
  }
  // What came before the first measurement is left out, down to a quarter of the window.
  const first = Math.min(...operations.flatMap(([, sides]) => sides.flatMap((side) => side.course.at)));
  const begin = Math.max(latency.since, Math.min(first, latency.until - latency.minutes * 15));
  for (const [name, sides] of operations) {
    const { numbers, chart } = multiples.get(name);
    numbers.replaceChildren(figuresOf(name, sides));
    chart.options.gap = latency.step * 2.5;
    chart.set({
      from: begin, to: latency.until,
      series: sides.flatMap((side) => ["p50", "p95"].map((which) => ({
        name: `${SIDES[side.side]} ${which}`, side: side.side, thin: which === "p50",
        // A step's point stands in its middle.
        points: side.course.at.map((at, number) => [Math.min(at + latency.step / 2, latency.until), side.course[which][number]]),
      }))),
    });
  }
  showKey(parts, latency);
}

async function loadLatency() {
  const wanted = minutes;
  const found = await ask(`/api/latency?minutes=${wanted}`);
  if (found && wanted === minutes) { latency = found; drawLatency(); }
}
for (const button of document.querySelectorAll("[data-kind]")) button.addEventListener("click", () => { kind = button.dataset.kind; drawLatency(); });
for (const button of document.querySelectorAll("[data-minutes]")) {
  button.addEventListener("click", () => {
    minutes = Number(button.dataset.minutes);
    for (const other of document.querySelectorAll("[data-minutes]")) other.setAttribute("aria-pressed", String(other === button));
    loadLatency();
  });
}

// The quarantine

async function loadQuarantine(page) {
  const dataset = byId("quarantine-dataset").value;
  const found = await ask(`/api/quarantine?page=${page}&dataset=${encodeURIComponent(dataset)}`);
  if (found) { quarantinePage = found.page; showQuarantine(found); }
}
byId("quarantine-dataset").addEventListener("change", () => loadQuarantine(1));
byId("quarantine-before").addEventListener("click", () => loadQuarantine(quarantinePage - 1));
byId("quarantine-after").addEventListener("click", () => loadQuarantine(quarantinePage + 1));

// Hearing

async function ask(path) {
  try {
    const answer = await fetch(path);
    // 503: what is wrong with PostgreSQL is said at the top.
    return answer.ok ? await answer.json() : null;
  } catch {
    return null; // the stream of events says so
  }
}

const SHOW = {
  now(now) {
    showNow(now);
    if (parts.state) showStores(parts.state, now);
    take(now);
  },
  migration: showMigration,
  gate: showGate,
  kept(kept) { showKept(kept); loadQuarantine(quarantinePage); },
  mismatches: showMismatches,
  state(state) { showState(state, parts.migration?.target); showStores(state, parts.now); },
  trouble() {},
};

/** Whether there is anything to ask PostgreSQL for. */
const answers = () => parts.now?.reachable === true && parts.now.phase !== null;

let wasReachable = null;
function listen() {
  const events = new EventSource("/api/events");
  for (const part of Object.keys(SHOW)) {
    events.addEventListener(part, (event) => {
      heard = Date.now() / 1000;
      parts[part] = JSON.parse(event.data);
      SHOW[part](parts[part]);
      showKey(parts, latency);
      showLive();
      if (part === "now" && answers() !== wasReachable) {
        wasReachable = answers();
        if (wasReachable) { loadLatency(); loadQuarantine(quarantinePage); }
      }
    });
  }
  events.addEventListener("open", loadHistory);
  events.addEventListener("error", () => {
    // After some errors a browser gives up; this page does not.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 1000);
  });
}
listen();
setInterval(showLive, 1000);
setInterval(() => { if (answers()) loadLatency(); }, LATENCY_EVERY);
const offset = -new Date().getTimezoneOffset() / 60;
byId("foot").textContent = `Times are this browser's (UTC${offset < 0 ? "−" : "+"}${Math.abs(offset)}). Figures for programs: /metrics, /healthz, /api/now, /api/migration, /api/gate, /api/kept, /api/mismatches, /api/state, /api/history, /api/latency, /api/quarantine.`;
