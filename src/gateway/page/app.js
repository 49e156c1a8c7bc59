// The dashboard: one stream in, one document out. It asks for nothing by itself but the stream and, on a click, an order.

import { $, clock, count, el, mark, span, text } from "./dom.js";
import { Card } from "./card.js";
import { Refused, call, listen, token } from "./stream.js";

const STATES = ["healthy", "initializing", "unhealthy", "draining", "restarting", "crashed", "stuck", "stopped"];
const EVENTS_MAX = 200;
const LINES_MAX = 1000;
const pools = new Map();
const cards = new Map();
let log = null;
let asking = null;

// Tokens: asked for when something is refused without one, kept for this tab alone.

function ask(reason) {
  const dialog = $("ask");
  if (asking === null) {
    asking = {};
    asking.promise = new Promise((resolve) => (asking.resolve = resolve));
    dialog.showModal();
  }
  text($("ask-wrong"), reason ?? "");
  $("token").value = "";
  $("token").focus();
  return asking.promise;
}

async function answer(shown) {
  const before = token.get();
  if (shown !== null) {
    token.set(shown);
    try {
      await call("POST", "/api/ticket", { path: "/api/watch" });
    } catch (error) {
      token.set(before);
      return text($("ask-wrong"), error instanceof Refused && error.status === 401 ? "That is no token that is good." : error.message);
    }
  }
  $("ask").close();
  asking?.resolve(shown !== null);
  asking = null;
  showSign();
  if (shown !== null) watching.again();
}

const showSign = () => text($("sign"), token.get() === null ? "Sign in" : "Sign out");

$("ask-yes").addEventListener("click", () => answer($("token").value.trim()));
$("ask-no").addEventListener("click", () => answer(null));
$("ask").addEventListener("cancel", (event) => (event.preventDefault(), answer(null)));
$("token").addEventListener("keydown", (event) => event.key === "Enter" && answer($("token").value.trim()));
$("sign").addEventListener("click", () => {
  if (token.get() === null) return void ask();
  token.set(null);
  showSign();
  watching.again();
});

// Orders.

async function order(path, button, done) {
  button.disabled = true;
  try {
    if (token.get() === null && !(await ask())) return;
    const told = await call("POST", path);
    say(done(told));
  } catch (error) {
    if (error instanceof Refused && error.status === 401) token.set(null);
    showSign();
    note(`refused: ${error.message}`);
  } finally {
    button.disabled = false;
    button.focus();
  }
}

const reset = (target, button) =>
  order(`/api/reset/${encodeURIComponent(target)}`, button, (told) => `${told.circuit_breakers_reset} circuit breakers of ${target} reset`);

const say = (sentence) => {
  text($("said"), sentence);
  note(sentence);
};

// Lines of events and logs: the newest at the end, in sight unless somebody has scrolled away from it.

function add(list, most, attributes, time, who, what) {
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 8;
  list.append(el("li", attributes, el("time", { datetime: time }, clock(time)), el("span", { class: "who" }, who), el("span", { class: "what" }, what)));
  while (list.childElementCount > most) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

const note = (what) => add($("events"), EVENTS_MAX, { "data-kind": "note" }, new Date().toISOString(), "", what);

function happened(event) {
  const who = event.worker ?? event.pool ?? "";
  add($("events"), EVENTS_MAX, { "data-kind": event.kind }, event.time, who, event.text);
  if (event.kind !== "death") return;
  text($("said"), `${who} died: ${event.text}`);
}

// Logs.

async function openLog(worker, button) {
  if (token.get() === null && !(await ask("What workers write is told to who shows a token."))) return void button.focus();
  closeLog();
  $("log-lines").replaceChildren();
  text($("log-title"), `Log of ${worker}`);
  text($("log-state"), "connecting");
  $("log").hidden = false;
  const stream = listen(`/api/logs/${encodeURIComponent(worker)}?lines=200`, {
    message: (kind, data) => {
      text($("log-state"), "live");
      if (kind === "log") add($("log-lines"), LINES_MAX, { "data-stream": data.stream }, data.time, data.worker, data.text);
    },
    lost: (_pause, error) => {
      text($("log-state"), error instanceof Refused ? error.message : "lost; it begins again");
      if (error instanceof Refused) stream.end();
      else $("log-lines").replaceChildren();
    },
  });
  log = { stream, button };
  $("log-close").focus();
}

function closeLog() {
  log?.stream.end();
  log?.button.focus();
  log = null;
  $("log").hidden = true;
}

$("log-close").addEventListener("click", closeLog);
document.addEventListener("keydown", (event) => event.key === "Escape" && !$("ask").open && closeLog());

// The snapshot.

function poolOf(name) {
  let pool = pools.get(name);
  if (pool === undefined) {
    const title = el("h2", {}, name);
    const about = el("p", { class: "about" });
    const button = el("button", { type: "button", "aria-label": `Reset all circuit breakers of ${name}` }, "Reset breakers");
    button.addEventListener("click", () => reset(name, button));
    const list = el("div", { class: "cards" });
    const element = el("section", { class: "pool", "aria-label": name }, el("div", { class: "head" }, title, about, button), list);
    pool = { about, button, list, element };
    pools.set(name, pool);
  }
  return pool;
}

function showPool(info) {
  const pool = poolOf(info.name);
  const parts = info.service ? ["service"] : info.claims ? [] : [`${info.counts.healthy} of ${info.wanted} healthy`];
  if (info.claims) parts.push(`${info.claims.warm} warm, ${info.claims.busy} busy of ${info.claims.sessions_max}${info.claims.paused ? ", paused" : ""}`);
  if (info.frozen > 0) parts.push(`${info.frozen} frozen`);
  const requests = info.requests;
  if (requests) {
    parts.push(`${count(requests.requests)} requests`, `${requests.in_flight} in flight`, `${requests.queued} queued`);
    if (requests.sessions > 0) parts.push(`${requests.sessions} sessions`);
    if (requests.pool_saturated > 0) parts.push(`${count(requests.pool_saturated)} refused as saturated`);
    if (requests.breaker !== "closed") parts.push(`⚠ pool breaker ${requests.breaker.replace("_", "-")}`);
  }
  text(pool.about, parts.join(" · "));
  pool.button.hidden = !requests;
  return pool;
}

// Puts children in order without touching those that are in place.
function arrange(parent, wanted) {
  wanted.forEach((child, at) => parent.children[at] !== child && parent.insertBefore(child, parent.children[at] ?? null));
  while (parent.childElementCount > wanted.length) parent.lastElementChild.remove();
}

function show(snapshot) {
  const { daemon, totals, workers } = snapshot;
  const now = performance.now();
  text($("instance"), daemon.instance === "default" ? "" : `/${daemon.instance}`);
  text($("daemon"), `${daemon.version} · ${daemon.state} · up ${span(daemon.uptime_seconds)}`);
  const notices = [];
  if (daemon.state_trouble) notices.push(["bad", `State cannot be written: ${daemon.state_trouble}`]);
  if (daemon.state === "stopping") notices.push(["bad", "The daemon is stopping."]);
  if (!daemon.limits_enforced) notices.push(["fair", `Not every limit is enforced: ${daemon.limits_reason ?? "this host cannot"}`]);
  const wanted = JSON.stringify(notices);
  if ($("notices").dataset.shown !== wanted) {
    $("notices").dataset.shown = wanted;
    $("notices").replaceChildren(...notices.map(([kind, what]) => el("p", { class: `notice ${kind}` }, what)));
  }
  showHealth(totals, workers);
  // What people came for first, then what it stands on.
  const rank = (info) => (info.name === "gateway" ? 2 : info.service ? 1 : 0);
  const ordered = [...snapshot.pools].sort((one, other) => rank(one) - rank(other));
  arrange($("pools"), ordered.map((info) => showPool(info).element));
  for (const info of ordered) {
    const own = workers.filter((worker) => worker.pool === info.name);
    arrange(pools.get(info.name).list, own.map((worker) => {
      if (!cards.has(worker.name)) cards.set(worker.name, new Card(worker.name, { reset, log: openLog }));
      const card = cards.get(worker.name);
      card.show(worker, snapshot.sample, now, daemon.limits_reason);
      return card.element;
    }));
  }
  const names = new Set(workers.map((worker) => worker.name));
  for (const name of cards.keys()) if (!names.has(name)) cards.delete(name);
  showSessions(snapshot.sessions);
}

function showHealth(totals, workers) {
  const percentage = totals.expected === 0 ? null : (totals.healthy / totals.expected) * 100;
  text($("percentage"), percentage === null ? "–" : `${percentage.toFixed(percentage % 1 === 0 ? 0 : 1)}%`);
  mark($("health"), "data-tone", percentage === null ? null : percentage === 100 ? "good" : percentage >= 50 ? "fair" : "bad");
  const bar = $("bar");
  while (bar.childElementCount > workers.length) bar.lastElementChild.remove();
  while (bar.childElementCount < workers.length) bar.append(el("i"));
  const states = STATES.map((state) => [state, workers.filter((worker) => worker.state === state).length]).filter(([, many]) => many > 0);
  let at = 0;
  for (const [state, many] of states) for (let one = 0; one < many; one += 1) mark(bar.children[at++], "data-state", state);
  const said = states.map(([state, many]) => `${many} ${state}`);
  mark(bar, "aria-label", said.join(", ") || "no workers yet");
  const legend = $("legend");
  if (legend.textContent !== said.join("")) legend.replaceChildren(...states.map(([state, many]) => el("li", { "data-state": state }, `${many} ${state}`)));
  text($("total-healthy"), `${totals.healthy}/${totals.expected}`);
  for (const key of ["requests", "failed", "restarts"]) text($(`total-${key}`), count(totals[key]));
  document.title = percentage === null || percentage === 100 ? "halsup" : `(${totals.expected - totals.healthy} down) halsup`;
}

function showSessions(sessions) {
  $("sessions").hidden = sessions.length === 0;
  const cells = (session) => [session.name, session.worker, session.ended ? `ended ${session.exit ?? ""}` : session.frozen ? "frozen" : session.state, session.project ?? "", clock(session.started)];
  const wanted = JSON.stringify(sessions.map(cells));
  if ($("session-rows").dataset.shown === wanted) return;
  $("session-rows").dataset.shown = wanted;
  $("session-rows").replaceChildren(...sessions.map((session) => el("tr", {}, ...cells(session).map((cell) => el("td", {}, cell)))));
}

// The stream.

function linked(isLive, words) {
  mark($("link"), "data-link", isLive ? "live" : "lost");
  text($("link"), words);
  mark(document.querySelector("main"), "data-stale", !isLive);
}

async function begin() {
  const ticket = new URLSearchParams(location.hash.slice(1)).get("ticket");
  if (ticket === null) return;
  history.replaceState(null, "", location.pathname);
  try {
    token.set((await call("GET", `/api/token?ticket=${encodeURIComponent(ticket)}`)).token);
  } catch (error) {
    note(`the ticket is good no more: ${error.message}`);
  }
}

await begin();
showSign();
const watching = listen("/api/watch", {
  message: (kind, data) => {
    if (kind === "snapshot") {
      linked(true, "live");
      show(data);
    } else if (kind === "missed") note(`${data.missed} events were missed`);
    else if (kind === "server_shutdown") note("the gateway ends; its successor is awaited");
    else if (kind !== "end") happened(data);
  },
  lost: (pause, error) => {
    const why = error instanceof Refused ? error.message : "connection lost";
    linked(false, `${why}; trying again in ${(pause / 1000).toFixed(pause < 1000 ? 1 : 0)} s`);
    if (error instanceof Refused && error.status === 401) {
      if (token.get() !== null) token.set(null);
      showSign();
      if (asking === null) void ask("Status is told to who shows a token.");
    }
  },
});
