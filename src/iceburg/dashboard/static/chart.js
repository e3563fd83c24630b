// Time series as inline SVG: a true zero, units on the axis, gaps where nothing was measured.

const NS = "http://www.w3.org/2000/svg";
const LEFT = 58, RIGHT = 8, TOP = 8, BOTTOM = 20;

export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** The least of 1, 2, 5 times a power of ten (or of the steps that are given) that is not below a value. */
export function niceTop(value, least) {
  const wanted = Math.max(value, least);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= wanted * 0.999999);
}

const pad = (n) => String(n).padStart(2, "0");
export function clock(seconds, withSeconds = false) {
  const at = new Date(seconds * 1000);
  return `${pad(at.getHours())}:${pad(at.getMinutes())}${withSeconds ? `:${pad(at.getSeconds())}` : ""}`;
}

const TIME_STEPS = [60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600];
function timeTicks(from, to, room) {
  const step = TIME_STEPS.find((s) => (to - from) / s <= Math.max(1, Math.floor(room / 75))) ?? 43200;
  const shift = new Date(from * 1000).getTimezoneOffset() * 60;
  const found = [];
  for (let at = Math.ceil((from - shift) / step) * step + shift; at <= to; at += step) found.push(at);
  return found;
}

export class Chart {
  /** host: where it is drawn; options: height, format (value to text with its unit), least (top of an empty axis),
   *  gap (seconds without a point after which a line breaks), label (what it shows), readout (told what is pointed
   *  at), keyboard (whether arrow keys move along it). */
  constructor(host, options) {
    this.host = host;
    this.options = { height: 120, least: 1, gap: 5, keyboard: false, ...options };
    this.data = null;
    this.pointed = null;
    new ResizeObserver(() => this.draw()).observe(host);
    host.addEventListener("pointermove", (event) => this.pointAt(event.clientX - host.getBoundingClientRect().left));
    host.addEventListener("pointerleave", () => this.point(null));
    if (this.options.keyboard) {
      host.tabIndex = 0;
      host.addEventListener("keydown", (event) => this.key(event));
      host.addEventListener("blur", () => this.point(null));
    }
  }

  /** data: {from, to, series: [{name, side, thin, area, points: [[at, value or null]]}], away: [[from, to]]} */
  set(data) {
    this.data = data;
    this.draw();
  }

  times() {
    return [...new Set(this.data.series.flatMap((one) => one.points.map(([at]) => at)))].sort((a, b) => a - b);
  }

  pointAt(x) {
    if (!this.data) return;
    const { from, to } = this.data;
    const at = from + ((x - LEFT) / (this.width - LEFT - RIGHT)) * (to - from);
    let near = null;
    for (const time of this.times()) if (near === null || Math.abs(time - at) < Math.abs(near - at)) near = time;
    this.point(near);
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -60, PageDown: 60, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || !this.data) return;
    event.preventDefault();
    const times = this.times();
    if (!times.length) return;
    const now = this.pointed === null ? times.length - 1 : times.indexOf(this.pointed);
    this.point(times[Math.min(times.length - 1, Math.max(0, now + step))]);
  }

  point(at) {
    this.pointed = at;
    this.draw();
  }

  draw() {
    const width = this.host.clientWidth;
    if (!this.data || !width) return;
    this.width = width;
    const { height, format, least, gap, label } = this.options;
    const { from, to, series, away = [] } = this.data;
    const values = series.flatMap((one) => one.points.map(([, value]) => value)).filter((value) => value !== null);
    const top = niceTop(Math.max(0, ...values), least);
    const x = (at) => LEFT + ((at - from) / (to - from)) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - value / top) * (height - TOP - BOTTOM);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": this.words(label) });
    for (const [begin, end] of away) {
      const left = Math.max(LEFT, x(begin));
      picture.append(svg("rect", { class: "away", x: left, y: TOP, width: Math.max(1, x(end) - left), height: height - TOP - BOTTOM }));
    }
    for (const share of [0, 0.5, 1]) {
      const at = y(top * share);
      picture.append(svg("line", { class: share ? "grid" : "base", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
      picture.append(svg("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, format(top * share)));
    }
    for (const at of timeTicks(from, to, width - LEFT - RIGHT)) {
      const anchor = x(at) > width - 24 ? "end" : "middle";
      picture.append(svg("text", { x: x(at), y: height - 4, "text-anchor": anchor }, clock(at)));
      picture.append(svg("line", { class: "base", x1: x(at), x2: x(at), y1: height - BOTTOM, y2: height - BOTTOM + 3 }));
    }
    for (const one of series) {
      const runs = this.runs(one.points, gap);
      if (one.area) for (const run of runs) {
        const line = run.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join("L");
        picture.append(svg("path", { class: "area", d: `M${x(run[0][0]).toFixed(1)},${y(0)}L${line}L${x(run.at(-1)[0]).toFixed(1)},${y(0)}Z` }));
      }
      for (const run of runs) {
        if (run.length === 1) {
          picture.append(svg("circle", { class: `dot ${one.side}`, cx: x(run[0][0]), cy: y(run[0][1]), r: one.thin ? 1.5 : 2.2 }));
          continue;
        }
        const line = run.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join("L");
        picture.append(svg("path", { class: `series ${one.side}${one.thin ? " p50" : ""}`, d: `M${line}` }));
      }
    }
    if (this.pointed !== null) picture.append(svg("line", { class: "cross", x1: x(this.pointed), x2: x(this.pointed), y1: TOP, y2: height - BOTTOM }));
    this.host.replaceChildren(picture);
    this.options.readout?.(this.pointed, this.data);
  }

  runs(points, gap) {
    const runs = [];
    let last = null;
    for (const point of points) {
      if (point[1] === null) { last = null; continue; }
      if (last === null || point[0] - last > gap) runs.push([]);
      runs.at(-1).push(point);
      last = point[0];
    }
    return runs;
  }

  words(label) {
    const said = this.data.series.map((one) => {
      const known = one.points.filter(([, value]) => value !== null);
      if (!known.length) return `${one.name}: nothing measured`;
      const values = known.map(([, value]) => value);
      return `${one.name}: last ${this.options.format(values.at(-1))}, highest ${this.options.format(Math.max(...values))}`;
    });
    return `${label}, ${clock(this.data.from)} to ${clock(this.data.to)}. ${said.join("; ")}.`;
  }
}
