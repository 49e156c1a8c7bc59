// One worker as a card: made once, then kept up to date in place, so that focus and selection stay where they are.

import { bytes, clock, count, el, mark, span, svg, text } from "./dom.js";

const SAMPLES = 60;
const WIDTH = 120;
const HEIGHT = 34;
// How long a death is seen, however fast the next one lives.
const DIED_MS = 3000;

class Chart {
  constructor(name) {
    this.values = [];
    this.value = el("span");
    this.curve = svg("polyline", { class: "curve" });
    this.area = svg("polygon", { class: "area" });
    this.limit = svg("line", { class: "limit", x1: 0, x2: WIDTH, visibility: "hidden" });
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": name });
    this.picture.append(
      svg("line", { class: "floor", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }), this.area, this.curve, this.limit);
    this.name = name;
    this.element = el("div", { class: "chart" }, el("div", { class: "reading" }, el("span", {}, name), this.value), this.picture);
  }

  // `value` and `limit` in the same unit; `reading` says both.
  add(value, limit, reading) {
    text(this.value, reading);
    this.picture.setAttribute("aria-label", `${this.name} ${reading}`);
    if (value === null) return;
    this.values = [...this.values, value].slice(-SAMPLES);
    const most = Math.max(...this.values);
    const top = limit === null ? most * 1.25 || 1 : Math.max(limit, most) * 1.08;
    const y = (one) => (HEIGHT - (one / top) * HEIGHT).toFixed(1);
    const step = WIDTH / (SAMPLES - 1);
    const first = WIDTH - (this.values.length - 1) * step;
    const points = this.values.map((one, at) => `${(first + at * step).toFixed(1)},${y(one)}`);
    this.curve.setAttribute("points", points.join(" "));
    this.area.setAttribute("points", [`${first.toFixed(1)},${HEIGHT}`, ...points, `${WIDTH},${HEIGHT}`].join(" "));
    this.limit.setAttribute("visibility", limit === null ? "hidden" : "visible");
    if (limit !== null) for (const end of ["y1", "y2"]) this.limit.setAttribute(end, y(limit));
    this.element.classList.toggle("high", limit !== null && value > limit * 0.9);
  }
}

export class Card {
  constructor(name, on) {
    this.name = name;
    this.usage = null;
    this.sample = null;
    this.death = undefined;
    this.title = el("h3", { title: name }, name);
    this.state = el("span", { class: "state" });
    this.more = el("span", { class: "more" });
    this.says = el("p", { class: "says" });
    this.numbers = {};
    const number = (key, label) => el("div", {}, el("dt", {}, label), (this.numbers[key] = el("dd")));
    const numbers = el("dl", {}, number("requests", "requests"), number("failed", "failures"), number("restarts", "restarts"));
    this.memory = new Chart("memory");
    this.processor = new Chart("cpu");
    this.cause = el("b");
    this.ended = el("span");
    this.certificate = el("pre");
    this.details = el("details", {}, el("summary", {}, "last death: ", this.cause, this.ended), this.certificate);
    this.breaker = el("span", { class: "breaker" });
    this.reset = el("button", { type: "button" }, "Reset breaker");
    this.reset.addEventListener("click", () => on.reset(name, this.reset));
    const log = el("button", { type: "button", "aria-label": `Log of ${name}` }, "Log");
    log.addEventListener("click", () => on.log(name, log));
    this.element = el("article", { class: "card", "aria-label": name },
      el("div", { class: "top" }, this.title, this.state, this.more), this.says, numbers,
      el("div", { class: "charts" }, this.memory.element, this.processor.element), this.details,
      el("div", { class: "row" }, this.breaker, this.reset, log));
    this.details.hidden = true;
  }

  // Red for a while, even if it is back before anybody could see that it was gone.
  died() {
    mark(this.element, "data-died", true);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => mark(this.element, "data-died", false), DIED_MS);
  }

  // `known`: why limits are not enforced, where the page says it of all.
  show(worker, sample, now, known) {
    mark(this.element, "data-state", worker.state);
    text(this.state, worker.state);
    const more = [worker.occupancy, worker.session, worker.port && `:${worker.port}`, worker.pid && `pid ${worker.pid}`];
    if (worker.restart_in_ms !== null) more.push(`again in ${(worker.restart_in_ms / 1000).toFixed(1)} s`);
    text(this.more, more.filter(Boolean).join(" · "));
    const isNews = !worker.limits_enforced && (known === null || worker.limits_reason !== known);
    const says = [worker.status_text, isNews && `limits not enforced: ${worker.limits_reason ?? ""}`];
    if (worker.missed_heartbeats > 0) says.push(`${worker.missed_heartbeats} heartbeats missed`);
    if (worker.oom_kills > 0) says.push(`${worker.oom_kills} out of memory`);
    text(this.says, says.filter(Boolean).join(" · "));
    this.says.hidden = this.says.textContent === "";
    for (const [key, element] of Object.entries(this.numbers)) text(element, count(worker[key]));
    mark(this.numbers.failed, "class", worker.failed > 0 && "bad");
    this.#showBreaker(worker);
    if (sample !== this.sample) this.#measure(worker, now);
    this.sample = sample;
    this.#showDeath(worker.last_death);
  }

  #showBreaker(worker) {
    const isOpen = worker.breaker === "open" || worker.breaker === "half_open";
    const probe = worker.probe_in_ms ? `, probe in ${span(worker.probe_in_ms / 1000)}` : "";
    text(this.breaker, worker.breaker === null ? "" : isOpen ? `⚠ breaker ${worker.breaker.replace("_", "-")}${probe}` : "breaker closed");
    mark(this.breaker, "data-open", isOpen);
    this.reset.hidden = worker.breaker === null;
    mark(this.reset, "aria-label", `Reset the circuit breaker of ${this.name}`);
  }

  #measure(worker, now) {
    const memory = worker.memory_bytes;
    const limit = worker.memory_max_bytes;
    this.memory.add(memory, limit, memory === null ? "not counted" : `${bytes(memory)}${limit === null ? "" : ` / ${bytes(limit)}`}`);
    const before = this.usage;
    this.usage = worker.cpu_usec === null ? null : { usec: worker.cpu_usec, now, generation: worker.generation };
    if (this.usage === null) return this.processor.add(null, null, "not counted");
    if (before === null || before.generation !== worker.generation || before.usec > worker.cpu_usec || now <= before.now) return;
    const used = ((worker.cpu_usec - before.usec) / ((now - before.now) * 1000)) * 100;
    const most = worker.cpu_max_millis === null ? null : worker.cpu_max_millis / 10;
    this.processor.add(used, most, `${used.toFixed(used < 10 ? 1 : 0)} %${most === null ? "" : ` / ${most} %`}`);
  }

  #showDeath(death) {
    this.details.hidden = death === null;
    const known = this.death;
    this.death = death === null ? null : death.generation;
    if (death === null) return;
    if (known !== undefined && known !== death.generation) this.died();
    text(this.cause, death.cause);
    text(this.ended, ` at ${clock(death.ended)}`);
    const rows = [
      ["generation", death.generation],
      ["status", death.status],
      ["asked by", death.asked_by],
      ["start", death.start_failure],
      ["memory peak", death.memory_peak_bytes && bytes(death.memory_peak_bytes)],
      ["cpu", death.user_usec !== null && span((death.user_usec + (death.system_usec ?? 0)) / 1e6)],
    ].filter(([, value]) => value !== null && value !== false && value !== undefined && value !== 0);
    const said = death.last_output ? `\n${death.last_output}` : "";
    text(this.certificate, rows.map(([key, value]) => `${key}: ${value}`).join("\n") + said);
  }
}
