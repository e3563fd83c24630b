// What each panel says of its part. Every text goes into text nodes: what comes from the database is never markup.

import { clock } from "/chart.js";

export const SIDES = { embedded: "SQLite", postgres: "PostgreSQL", dual: "both" };
const ORDER = Object.keys(SIDES);
const PHASES = [
  ["embedded", "files alone"],
  ["copying", "files are copied"],
  ["following", "kept in step"],
  ["dual", "PostgreSQL answers"],
  ["finalized", "PostgreSQL alone"],
];

export const byId = (id) => document.getElementById(id);

/** An element with attributes; text in backquotes among its children becomes code. */
export function h(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function withCode(text) {
  return text.split("`").map((piece, number) => (number % 2 ? h("code", {}, piece) : piece));
}

const say = (id, text) => {
  const node = byId(id);
  // Only what has changed is written: a live region is read out again otherwise.
  if (node.dataset.said !== text) {
    node.dataset.said = text;
    node.replaceChildren(...withCode(text));
  }
};

const empty = (text) => h("p", { class: "empty" }, ...withCode(text));

// Numbers

const whole = new Intl.NumberFormat("en");
export const count = (n) => whole.format(n);
const three = (n) => (n === 0 ? "0" : n >= 100 ? whole.format(Math.round(n)) : String(Number(n.toPrecision(3))));

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 s";
  if (value < 0.9995) return `${three(value * 1000)} ms`;
  if (value < 120) return `${three(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${three(value / 3600)} h`;
  return `${three(value / 86400)} d`;
}
/** A lag is seen to the second: what is pending and was not seen before is younger than that. */
export const lag = (value, pending) => (pending && value < 0.001 ? "< 1 s" : seconds(value));
export const millis = (value) => (value === null || value === undefined ? "–" : `${three(value * 1000)} ms`);

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let number = 0;
  while (value >= 1000 && number < units.length - 1) { value /= 1000; number += 1; }
  return `${three(value)} ${units[number]}`;
}

export function moment(text) {
  const at = new Date(text);
  const pad = (n) => String(n).padStart(2, "0");
  return `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${clock(at / 1000, true)}`;
}

function percent(part, all) {
  if (!all) return "0 %";
  const share = (part / all) * 100;
  // 100 % is said of all alone.
  return `${part < all && share > 99.9 ? "99.9" : share === 100 || share === 0 ? share : share.toFixed(1)} %`;
}

const records = (n) => `${count(n)} ${n === 1 ? "record" : "records"}`;

// Tables

/** columns: [title, numeric, cell]; the first column's cells are the rows' headers. */
function table(caption, columns, rows, { cards = true, hideCaption = true } = {}) {
  const head = h("tr", {}, ...columns.map(([title, numeric]) => h("th", { scope: "col", class: numeric ? "n" : null }, title)));
  const body = rows.map((row) =>
    h("tr", {}, ...columns.map(([title, numeric, cell], number) => {
      const inside = [cell(row)].flat();
      if (number === 0) return h("th", { scope: "row" }, ...inside);
      return h("td", { class: numeric ? "n" : null, "data-name": title }, ...inside);
    })),
  );
  return h("table", { class: cards ? "cards" : null }, h("caption", { class: hideCaption ? "hidden" : null }, caption), h("thead", {}, head), h("tbody", {}, ...body));
}

// What is looked at every second

export function showNow(now) {
  say("phase-said", now.phase === null ? "Nothing is known of it yet." : phaseWords(now));
  const at = PHASES.findIndex(([name]) => name === now.phase);
  byId("steps").replaceChildren(
    ...PHASES.map(([name, meaning], number) =>
      h("li", { class: number < at ? "past" : number === at ? "now" : null, "aria-current": number === at ? "step" : null }, name, h("small", {}, meaning)),
    ),
  );
  const follower = now.follower;
  if (follower === null) {
    say("follower", "No `iceburg-db follow` has been seen.");
  } else {
    const silent = follower.silent_seconds > 30;
    const seen = silent ? `silent for ${seconds(follower.silent_seconds)}` : `${follower.state}, ${count(follower.applied)} applied, ${three(follower.rate)}/s`;
    say("follower", `\`follow\` on ${follower.host}, process ${follower.process}: ${seen}${follower.reason ? ` (${follower.reason})` : ""}${now.paused ? "; the control file says pause" : ""}`);
  }
  showLag(now);
}

function phaseWords(now) {
  const words = {
    embedded: "The files are all there is; `iceburg-db migrate --live` begins.",
    copying: "Everything is copied while the application writes.",
    following: "PostgreSQL is kept in step; reads come from the files. `iceburg-db cutover` turns the flag on.",
    dual: "The flag is on: reads come from PostgreSQL, writes go to both. `iceburg-db cutover --back` is open at any moment.",
    finalized: "PostgreSQL alone is written; the files are fenced. `iceburg-db rollback` makes files again.",
  };
  return `${now.phase} since ${moment(now.phase_since)}. ${words[now.phase]}`;
}

function showLag(now) {
  if (!now.sources.length) return say("lag-said", "No store is followed. `iceburg-db migrate --live` begins to log changes.");
  const behind = now.sources.filter((source) => source.pending);
  if (!behind.length) return say("lag-said", `PostgreSQL has all changes of ${now.sources.length} stores.`);
  const parts = behind.map((s) => `${s.source} ${count(s.pending)} ${s.kind === "jsonl" ? "bytes" : "changes"}`);
  return say("lag-said", `Behind in ${parts.slice(0, 4).join(", ")}${parts.length > 4 ? ` and ${parts.length - 4} more` : ""}.`);
}

export function showLagTable(points) {
  const minutes = new Map();
  for (const point of points) {
    const minute = Math.floor(point.at / 60) * 60;
    const known = minutes.get(minute) ?? { minute, lag: 0, changes: 0, bytes: 0, away: 0 };
    known.lag = Math.max(known.lag, point.lag_seconds);
    known.changes = Math.max(known.changes, point.pending_changes);
    known.bytes = Math.max(known.bytes, point.pending_bytes);
    known.away += point.reachable ? 0 : 1;
    minutes.set(minute, known);
  }
  byId("lag-table").replaceChildren(table("The highest of each minute, the newest first", [
    ["Minute", false, (m) => clock(m.minute)],
    ["Lag", true, (m) => seconds(m.lag)],
    ["Pending changes", true, (m) => count(m.changes)],
    ["Pending bytes of JSONL", true, (m) => count(m.bytes)],
    ["PostgreSQL", false, (m) => (m.away ? "away" : "answers")],
  ], [...minutes.values()].reverse(), { cards: false, hideCaption: false }));
}

/** The tiles: parts is what is known of every part, latency the window. */
export function showKey(parts, latency) {
  const { now, migration, kept, state, gate } = parts;
  const tiles = [];
  const tile = (title, value, note, mark) => tiles.push(h("div", {}, h("dt", {}, title), h("dd", { class: mark }, value, h("small", {}, note))));
  const sum = (list, value) => list.reduce((before, one) => before + value(one), 0);
  const unknown = (title) => tile(title, "–", "not known yet");
  if (migration) {
    const done = (d) => d.copied_rows + d.quarantined_rows;
    const all = sum(migration.datasets, (d) => (d.phase === "complete" ? done(d) : d.total_rows ?? 0));
    const copied = Math.min(sum(migration.datasets, done), all);
    tile("Copied", percent(copied, all), `${count(copied)} of ${count(all)} records`);
  } else unknown("Copied");
  if (now) {
    tile("Pending", count(now.pending_changes), `changes${now.pending_bytes ? `, ${bytes(now.pending_bytes)} of JSONL` : ""}`);
    tile("Lag", lag(now.lag_seconds, now.pending_changes + now.pending_bytes), "oldest change pending");
  } else ["Pending", "Lag"].forEach(unknown);
  if (gate) {
    const held = gate.conditions.filter((condition) => condition.held).length;
    const all = held === gate.conditions.length;
    tile("Gate", `${held} of ${gate.conditions.length}`, all ? "every condition holds" : "conditions hold", all ? "good-text" : null);
  } else unknown("Gate");
  if (latency) {
    const different = sum(latency.comparisons, (c) => c.mismatches);
    const errors = sum(latency.sides, (s) => s.errors);
    tile("Mismatches", count(different), `of ${count(sum(latency.comparisons, (c) => c.comparisons))} compared, ${windowName(latency)}`, different ? "bad-text" : null);
    tile("Errors", count(errors), `of ${count(sum(latency.sides, (s) => s.calls))} calls, ${windowName(latency)}`, errors ? "bad-text" : null);
  } else ["Mismatches", "Errors"].forEach(unknown);
  if (kept) tile("Quarantine", count(kept.records), kept.records === 1 ? "record" : "records");
  else unknown("Quarantine");
  if (state) tile("Connections", count(state.server.connections), `of ${count(state.server.max_connections)}; database ${bytes(state.server.size_bytes)}`);
  else unknown("Connections");
  byId("key").replaceChildren(...tiles);
}

export const windowName = (latency) => ({ 15: "last 15 min", 60: "last hour", 360: "last 6 h", 1440: "last 24 h" })[latency.minutes];

// The gate

export function showGate(gate) {
  const broken = gate.conditions.filter((condition) => !condition.held);
  say("gate-said", broken.length
    ? `${broken.length} of ${gate.conditions.length} conditions do not hold.`
    : "Every condition holds.");
  byId("gate").replaceChildren(...gate.conditions.map((condition) =>
    h("li", { class: condition.held ? "held" : "broken", "data-condition": condition.name },
      h("span", { class: "mark", "aria-hidden": "true" }, condition.held ? "✓" : "✕"),
      h("div", {},
        h("b", {}, condition.title), h("span", { class: "hidden" }, condition.held ? ": holds" : ": does not hold"),
        h("p", { class: "figures" }, h("span", {}, ...withCode(condition.measured)), " · asked for: ", ...withCode(condition.limit)),
        condition.held || !condition.hint ? null : h("p", { class: "hint" }, ...withCode(condition.hint))))));
}

// The migration

export function showMigration(migration) {
  byId("installation").textContent = migration.installation ?? "";
  const going = migration.datasets.filter((dataset) => dataset.phase !== "complete");
  const missing = going.reduce((sum, d) => sum + Math.max(0, (d.total_rows ?? 0) - d.copied_rows - d.quarantined_rows), 0);
  const rate = going.reduce((sum, d) => sum + (d.rate ?? 0), 0);
  say("migration-said", !migration.datasets.length
    ? "Nothing is being migrated yet."
    : !going.length ? `Complete: ${migration.datasets.length} datasets.`
    : !missing ? `All records are copied; indexes and constraints of ${going.length} datasets are being made.`
    : `${records(missing)} to be copied${rate ? `, ${count(Math.round(rate))}/s: about ${seconds(missing / rate)} left` : ""}. ${migration.datasets.length - going.length} of ${migration.datasets.length} datasets are complete.`);
  byId("migration").replaceChildren(migration.datasets.length ? table("Progress of each dataset", [
    ["Dataset", false, (d) => d.dataset],
    ["Goes to", false, (d) => h("span", { class: "muted wrap" }, d.target)],
    ["State", false, (d) => d.phase],
    ["Progress", false, progress],
    ["Copied", true, (d) => count(d.copied_rows)],
    ["Of", true, (d) => (d.total_rows !== null ? count(d.total_rows) : d.phase === "complete" ? "–" : "counting")],
    ["Rate", true, (d) => (!d.rate ? "" : `${count(Math.round(d.rate))}/s`)],
    ["Time left", true, (d) => (d.seconds_left === null ? "" : seconds(d.seconds_left))],
    ["Quarantined", true, (d) => (d.quarantined_rows ? h("span", { class: "warn-text" }, count(d.quarantined_rows)) : "0")],
    ["Originals kept", true, (d) => count(d.preserved_originals)],
  ], [...migration.datasets].sort(byInterest)) : empty("`iceburg-db migrate --live DATA_DIR` copies everything; its progress is shown here."));
  showHistory(migration);
}

/** What is being copied now comes first, then what is to be copied, then the rest; each by size. */
function byInterest(a, b) {
  const rank = (d) => (d.phase === "complete" ? 2 : d.rate ? 0 : 1);
  return rank(a) - rank(b) || (b.total_rows ?? 0) - (a.total_rows ?? 0) || (a.dataset < b.dataset ? -1 : 1);
}

function progress(dataset) {
  const done = dataset.copied_rows + dataset.quarantined_rows;
  const share = dataset.phase === "complete" ? 1 : dataset.total_rows ? Math.min(1, done / dataset.total_rows) : 0;
  const words = dataset.phase === "complete" ? "100 %" : dataset.total_rows === null ? "not known" : percent(Math.min(done, dataset.total_rows), dataset.total_rows);
  const filled = h("i");
  filled.style.width = `${share * 100}%`;
  return h("span", { class: "bar", role: "img", "aria-label": words }, filled);
}

function showHistory(migration) {
  byId("moves").replaceChildren(migration.moves.length ? table("Moves from phase to phase", [
    ["When", false, (m) => h("span", { class: "keep" }, moment(m.moved_at))],
    ["From", false, (m) => m.from_phase],
    ["To", false, (m) => m.to_phase],
    ["By", false, (m) => m.moved_by],
    ["Why", false, (m) => m.reason],
  ], migration.moves, { hideCaption: false }) : empty("The installation has not moved from phase to phase yet."));
  byId("runs").replaceChildren(migration.runs.length ? table("Last runs of commands", [
    ["Run", false, (r) => `${r.run_id} ${r.command}`],
    ["Started", false, (r) => h("span", { class: "keep" }, moment(r.started))],
    ["Took", true, (r) => (r.finished === null ? "" : seconds((new Date(r.finished) - new Date(r.started)) / 1000))],
    ["Status", false, (r) => r.status],
  ], migration.runs, { hideCaption: false }) : empty("No command has run yet."));
}

// What the layer has measured

const figures = [
  ["Operation", false, (s) => s.operation],
  ["Measured", false, (s) => (s.kind === "pair" ? "compared reads" : "all calls")],
  ["Side", false, (s) => SIDES[s.side]],
  ["Calls", true, (s) => count(s.calls)],
  ["Failed", true, (s) => (s.errors ? h("span", { class: "bad-text" }, `${count(s.errors)} (${percent(s.errors, s.calls)})`) : "0")],
  ["Not in step", true, (s) => count(s.behind)],
  ["p50", true, (s) => millis(s.p50)],
  ["p95", true, (s) => millis(s.p95)],
];

export const NOT_MEASURED = "Nothing was measured in this window. The application's processes write their figures every ten seconds; ICEBURG_SHADOW_READS=0.05 in their environment has a share of the reads compared. Without the layer, `iceburg-db cutover DATA_DIR --dry-run --probe 1000` asks both sides.";

/** The sides of one kind by operation: [[operation, [side, ...]], ...]. */
export function byOperation(latency, kind) {
  const found = new Map();
  for (const side of latency.sides) if (side.kind === kind && side.calls) found.set(side.operation, [...(found.get(side.operation) ?? []), side]);
  for (const sides of found.values()) sides.sort((a, b) => ORDER.indexOf(a.side) - ORDER.indexOf(b.side));
  return [...found].sort(([a], [b]) => (a < b ? -1 : 1));
}

export function figuresOf(operation, sides) {
  return table(`Latency of ${operation}`, [
    ["Side", false, (s) => SIDES[s.side]],
    ["p50", true, (s) => millis(s.p50)],
    ["p95", true, (s) => millis(s.p95)],
    ["Calls", true, (s) => count(s.calls)],
  ], sides, { cards: false });
}

export function showFigures(latency, kind) {
  const operations = byOperation(latency, kind);
  const what = kind === "pair" ? "The same reads asked of both sides, one after the other" : "What callers waited for";
  say("latency-said", operations.length ? `${what}; ${windowName(latency)}, a point is ${seconds(latency.step)}. Each picture has its own scale.` : "");
  byId("latency-table").replaceChildren(latency.sides.length ? table("Figures of each operation", figures, latency.sides) : empty(NOT_MEASURED));
  const calls = latency.sides.reduce((sum, s) => sum + s.calls, 0);
  const wrong = latency.sides.filter((s) => s.errors || s.behind);
  const errors = wrong.reduce((sum, s) => sum + s.errors, 0);
  say("errors-said", !latency.sides.length ? "" : errors ? `${count(errors)} of ${count(calls)} calls have failed, ${windowName(latency)}.` : `No call has failed: ${count(calls)} calls, ${windowName(latency)}.`);
  byId("errors").replaceChildren(!latency.sides.length ? empty(NOT_MEASURED)
    : wrong.length ? table("Operations that failed, or could not be answered by PostgreSQL", figures.slice(0, 6), wrong)
    : empty("Operations that fail, or that PostgreSQL could not answer because it was not in step, are listed here."));
  showComparisons(latency);
}

function showComparisons(latency) {
  const compared = latency.comparisons.reduce((sum, c) => sum + c.comparisons, 0);
  const different = latency.comparisons.reduce((sum, c) => sum + c.mismatches, 0);
  say("mismatches-said", latency.comparisons.length ? `${count(different)} of ${count(compared)} compared reads differed, ${windowName(latency)}.` : "");
  byId("comparisons").replaceChildren(latency.comparisons.length ? table("Comparisons by operation", [
    ["Operation", false, (c) => c.operation],
    ["Compared", true, (c) => count(c.comparisons)],
    ["Different", true, (c) => (c.mismatches ? h("span", { class: "bad-text" }, count(c.mismatches)) : "0")],
    ["Came to nothing", true, (c) => count(c.inconclusive)],
  ], latency.comparisons) : empty(NOT_MEASURED));
}

export function showMismatches(mismatches) {
  byId("mismatches").replaceChildren(...mismatches.last.map((m) =>
    h("details", { class: "mismatch" },
      h("summary", {}, h("span", { class: "bad-text" }, "differed "), `${moment(m.seen_at)} `, h("code", {}, `${m.operation}(${m.arguments})`)),
      h("dl", { class: "fields" },
        h("dt", {}, "SQLite"), h("dd", {}, h("pre", {}, m.embedded)),
        h("dt", {}, "PostgreSQL"), h("dd", {}, h("pre", {}, m.postgres)),
        h("dt", {}, "Process"), h("dd", {}, m.process)))));
}

// The quarantine

export function showKept(kept) {
  const review = kept.review;
  const accepted = review ? Object.values(review.records).reduce((sum, n) => sum + n, 0) : 0;
  const reviewed = review ? ` ${records(accepted)} accepted by ${review.reviewed_by}, ${moment(review.reviewed_at)}.` : kept.records ? " None is accepted yet: `iceburg-db cutover --accept-quarantine` does that." : "";
  say("quarantine-said", kept.records ? `${records(kept.records)} of which PostgreSQL could make no row; each is kept whole.${reviewed}` : "Every record became a row.");
  const choice = byId("quarantine-dataset");
  const sums = new Map();
  for (const one of kept.counts) sums.set(one.dataset, (sums.get(one.dataset) ?? 0) + one.records);
  const chosen = choice.value;
  const listed = [["", kept.records], ...sums].map(([name, number]) => h("option", { value: name }, `${name || "all"} (${count(number)})`));
  if (listed.map((o) => o.textContent).join("\n") === [...choice.options].map((o) => o.textContent).join("\n")) return;
  choice.replaceChildren(...listed);
  choice.value = chosen === "" || sums.has(chosen) ? chosen : "";
}

export function showQuarantine(page) {
  byId("quarantine").replaceChildren(page.found.length ? table("Records in quarantine", [
    ["Dataset", false, (r) => r.dataset],
    ["Key", false, (r) => h("code", {}, r.key)],
    ["Reason", false, (r) => r.reason],
    ["Original value", false, (r) => h("dl", { class: "fields" }, ...r.fields.flatMap(field))],
  ], page.found) : empty("The quarantine is empty: nothing has to be looked at."));
  byId("quarantine-page").textContent = page.records ? `Page ${page.page} of ${page.pages}, ${records(page.records)}` : "";
  byId("quarantine-before").disabled = page.page <= 1;
  byId("quarantine-after").disabled = page.page >= page.pages;
}

function field(one) {
  const cut = one.size === null ? "" : ` … (${count(one.size)} ${one.kind === "blob" ? "bytes" : "characters"})`;
  const kind = one.kind === "text" ? null : h("span", { class: "muted" }, `${one.kind} `);
  const value = one.kind === "null" ? h("span", { class: "muted" }, "NULL") : h("pre", {}, kind ?? "", one.text + cut);
  return [h("dt", {}, one.name), h("dd", {}, value)];
}

// The server

export function showState(state, target) {
  const server = state.server;
  const facts = [
    ["PostgreSQL", server.version],
    ["pgvector", server.vector_version ?? "not created"],
    ["Database", `${server.database}, ${bytes(server.size_bytes)}`],
    ["Running since", moment(server.started_at)],
    ["Connections", `${count(server.connections)} of ${count(server.max_connections)}`],
    ["Oldest transaction", server.longest_transaction === null ? "none is open" : `open for ${seconds(server.longest_transaction)}`],
    ["Found in memory", server.cache_hit_share === null ? "–" : `${(server.cache_hit_share * 100).toFixed(1)} % of blocks`],
    ["Rolled back", `${count(server.rollbacks)} transactions, ${count(server.deadlocks)} deadlocks`],
    ["Asked at", target ?? ""],
  ];
  byId("server").replaceChildren(...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  byId("connections").replaceChildren(table("Connections to the database", [
    ["Application", false, (c) => c.application],
    ["State", false, (c) => c.state],
    ["Connections", true, (c) => count(c.connections)],
  ], state.connections, { hideCaption: false }));
  byId("processes").replaceChildren(state.processes.length ? table("Processes of the application's layer", [
    ["Process", false, (p) => `${p.host} ${p.pid}`],
    ["Mode", false, (p) => p.mode],
    ["Since", false, (p) => h("span", { class: "keep" }, moment(p.started_at))],
    ["Last heard", true, (p) => h("span", { class: p.silent_seconds > 30 ? "warn-text" : null }, `${seconds(Math.max(1, Math.round(p.silent_seconds)))} ago`)],
  ], state.processes, { hideCaption: false }) : empty("No process of the application's layer has been heard of. Processes that use `iceburg.database` show up within ten seconds."));
}

export function showStores(state, now) {
  const known = new Map((now?.sources ?? []).map((source) => [source.source, source]));
  byId("stores").replaceChildren(state.sources.length ? table("Stores", [
    ["Store", false, (s) => s.source],
    ["Kind", false, (s) => s.kind],
    ["State", false, (s) => (s.problem ? h("span", { class: "bad-text" }, s.problem) : s.complete ? s.state : "not copied to its end")],
    ["Pending", true, (s) => pendingOf(s, known.get(s.source))],
    ["Lag", true, (s) => (known.has(s.source) ? lag(known.get(s.source).lag_seconds, known.get(s.source).pending) : "")],
  ], state.sources, { hideCaption: false }) : empty("No store has been migrated yet."));
}

function pendingOf(store, now) {
  const pending = now ? now.pending : store.pending;
  return pending === null || pending === undefined ? "" : store.kind === "jsonl" ? bytes(pending) : count(pending);
}
