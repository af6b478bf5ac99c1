// The page: asks the API what there is, shows it, and follows it by its events. Text goes in as text, never as HTML.
"use strict";

const VIEWS = ["overview", "volumes", "controllers", "events", "hosts"];
const RATES_MS = 2000, STATUS_MS = 5000, HISTORY = 40, EVENTS = 200;
const ROLES = ["viewer", "operator", "admin"];
const $ = (selector) => document.querySelector(selector);
const state = { token: sessionStorage.getItem("token") || "", role: "", volumes: new Map(), controllers: new Map(),
  counted: new Map(), rates: new Map(), history: new Map(), last: null, rows: new Map(), watch: null };

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

async function ask(method, path, body) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const data = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(data.detail), { status: answer.status });
  return data;
}

async function all(collection) {
  const found = new Map();
  let after = "";
  do {
    const page = await ask("GET", `/v1/${collection}?limit=1000${after && `&after=${encodeURIComponent(after)}`}`);
    for (const item of page.items) found.set(item.spec.name, item);
    after = page.next;
  } while (after);
  return found;
}

function complain(error) {
  $("#alert").hidden = !error;
  $("#alert").textContent = error ? error.message : "";
}

const may = (role) => ROLES.indexOf(state.role) >= ROLES.indexOf(role);

// -- signing in ---------------------------------------------------------------------------------------------

async function enter() {
  try {
    const who = await ask("GET", "/v1/principal");
    state.role = who.role;
    $("#who").textContent = `${who.name}, ${who.role}`;
    $("#enter").hidden = true;
    $("#leave").hidden = !state.token;
    document.querySelectorAll(".change").forEach((one) => { one.hidden = !may("operator"); });
    complain(null);
    show(location.hash.slice(1) || "overview");
    await quietly(reload);
    await quietly(refresh);
    watch();
  } catch (error) {
    $("#enter").hidden = false;
    VIEWS.forEach((view) => { $(`#${view}`).hidden = true; });
    if (state.token || error.status !== 401) complain(error);
    state.token = "";
    sessionStorage.removeItem("token");
    $("#token").focus();
  }
}

$("#enter").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("#token").value.trim();
  sessionStorage.setItem("token", state.token);
  $("#token").value = "";
  enter();
});
$("#leave").addEventListener("click", () => { sessionStorage.removeItem("token"); location.reload(); });

// -- views --------------------------------------------------------------------------------------------------

function show(view) {
  const chosen = VIEWS.includes(view) ? view : "overview";
  for (const name of VIEWS) {
    $(`#${name}`).hidden = name !== chosen;
    $(`#tab-${name}`).setAttribute("aria-selected", String(name === chosen));
  }
  if (location.hash.slice(1) !== chosen) history.replaceState(null, "", `#${chosen}`);
  if (chosen === "hosts" && state.role) quietly(refreshHosts);
}

VIEWS.forEach((name, index) => {
  const tab = element("button", { id: `tab-${name}`, textContent: name[0].toUpperCase() + name.slice(1), title: `Key ${index + 1}` });
  tab.setAttribute("role", "tab");
  tab.addEventListener("click", () => show(name));
  $("nav").append(tab);
});
addEventListener("hashchange", () => show(location.hash.slice(1)));
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName) || $("#dialog").open) return;
  if (VIEWS[event.key - 1]) show(VIEWS[event.key - 1]);
  else if (event.key === "/") { show("volumes"); $("#filter").focus(); event.preventDefault(); }
});

function titles(table, ...names) {
  $(`${table} thead`).replaceChildren(element("tr", {}, ...names.map((name) => element("th", { textContent: name }))));
}

function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  const power = bytes > 0 ? Math.min(5, Math.floor(Math.log2(bytes) / 10)) : 0;
  return `${+(bytes / 1024 ** power).toPrecision(3)} ${units[power]}`;
}
const number = (value) => Math.round(value).toLocaleString("en");
const seconds = (value) => (value === null ? "–" : `${value.toFixed(2)} s`);
const cell = (text, className = "") => element("td", { textContent: text, className });
const stateCell = (item) => cell(item.status.state, { "in-sync": "good", pending: "dim", unknown: "dim" }[item.status.state] ?? "bad");

// -- volumes ------------------------------------------------------------------------------------------------

titles("#volume-table", "volume", "backend", "size", "state", "used by", "IOPS", "", "bandwidth", "latency", "");

function volumeRow(item) {
  const name = item.spec.name;
  const row = element("tr", {}, cell(name), cell(item.spec.backend ?? "file"), cell(size(item.status.size), "number"), stateCell(item),
    cell(item.status.used_by.join(", ")), cell("", "number"), element("td"), cell("", "number"), cell("", "number"), element("td"));
  row.dataset.name = name;
  if (may("operator")) {
    const buttons = [["Grow", () => grow(name, item)], ["Limit", () => limit(name, item)], ["Delete", () => remove(name)]];
    if (item.spec.pool) buttons.push(["Snapshot", () => snapshot(name)]);
    row.lastChild.append(...buttons.map(([text, act]) => element("button", { textContent: text, onclick: act, ariaLabel: `${text} ${name}` })));
  }
  return row;
}

function showVolumes() {
  const wanted = $("#filter").value.toLowerCase();
  const rows = [];
  const kept = new Map();
  for (const [name, item] of state.volumes) {
    const before = state.rows.get(name);
    const row = before?.item === JSON.stringify(item) ? before : { item: JSON.stringify(item), row: volumeRow(item) };
    kept.set(name, row);
    row.row.hidden = !name.toLowerCase().includes(wanted);
    rows.push(row.row);
  }
  state.rows = kept;
  const body = $("#volume-table tbody");
  if (rows.length !== body.children.length || rows.some((row, index) => row !== body.children[index])) body.replaceChildren(...rows);
  showRates();
}
$("#filter").addEventListener("input", showVolumes);

function spark(values) {
  const most = Math.max(...values, 1);
  const points = values.map((value, index) => `${index * 2},${17 - (16 * value) / most}`).join(" ");
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("class", "spark");
  picture.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points);
  picture.append(line);
  return picture;
}

function showRates() {
  for (const [name, { row }] of state.rows) {
    const rate = state.rates.get(name);
    const texts = rate ? [number(rate.iops), `${size(rate.bytes)}/s`, rate.latency === null ? "–" : `${number(rate.latency)} µs`] : ["", "", ""];
    [5, 7, 8].forEach((column, index) => {
      if (row.children[column].textContent !== texts[index]) row.children[column].textContent = texts[index];
    });
    const past = state.history.get(name);
    if (past?.some((value) => value)) row.children[6].replaceChildren(spark(past));
  }
}

async function count() {
  const now = performance.now();
  const counted = new Map();
  let after = "";
  do {
    const page = await ask("GET", `/v1/statistics?limit=1000${after && `&after=${encodeURIComponent(after)}`}`);
    for (const one of page.items) counted.set(one.volume, one);
    after = page.next;
  } while (after);
  const time = state.last === null ? null : (now - state.last) / 1000;
  for (const [name, one] of counted) {
    const before = state.counted.get(name);
    if (!before || !time || one.read.operations < before.read.operations) continue;
    const done = (field) => one.read[field] - before.read[field] + one.write[field] - before.write[field];
    const operations = done("operations");
    const rate = { iops: operations / time, bytes: done("bytes") / time, latency: operations ? (done("latency_s") / operations) * 1e6 : null };
    state.rates.set(name, rate);
    const past = state.history.get(name) ?? [];
    state.history.set(name, [...past, rate.iops].slice(-HISTORY));
  }
  state.counted = counted;
  state.last = now;
  showRates();
}

// -- controllers, guests, overview --------------------------------------------------------------------------

titles("#controller-table", "controller", "target", "namespaces", "state", "guest", "recoveries", "longest stall", "");
titles("#guests", "controller", "guest", "phase", "recoveries", "last stall", "longest stall");
titles("#host-table", "host", "state", "targets", "guests", "controllers", "volumes", "labels", "version", "problems");
titles("#event-table", "time", "who", "from", "what", "object", "");

function showControllers() {
  $("#controller-table tbody").replaceChildren(...[...state.controllers.values()].map((item) => {
    const { spec, status } = item;
    const shown = element("td");
    for (const ns of spec.namespaces ?? []) {
      shown.append(element("span", { textContent: `${ns.nsid}: ${ns.volume} ` }));
      if (may("operator")) shown.append(element("button", { textContent: "×", ariaLabel: `Detach ${ns.volume} from ${spec.name}`, onclick: () => detach(spec.name, ns.volume) }));
    }
    const guest = status.guest;
    const row = element("tr", {}, cell(spec.name), cell(spec.target ?? "spdk"), shown, stateCell(item), cell(guest ? `process ${guest.pid}` : "none", guest ? "" : "dim"),
      cell(guest ? String(guest.recoveries) : "", "number"), cell(guest ? seconds(guest.longest_stall) : "", "number"), element("td"));
    if (may("operator")) row.lastChild.append(element("button", { textContent: "Attach", onclick: () => attach(spec.name), ariaLabel: `Attach to ${spec.name}` }),
      element("button", { textContent: "Delete", onclick: () => act("DELETE", `/v1/controllers/${spec.name}`), ariaLabel: `Delete ${spec.name}` }));
    return row;
  }));
}

function card(title, value, bad = false) {
  return element("div", { className: "card" }, element("span", { textContent: title, className: "dim" }), element("b", { textContent: value, className: bad ? "bad" : "" }));
}

async function refreshStatus() {
  const status = await ask("GET", "/v1/status");
  const { drifted = [], missing = [], in_sync: right = [] } = status.objects;
  const wrong = [...drifted, ...missing];
  $("#cards").replaceChildren(
    ...Object.entries(status.targets).map(([name, one]) => card(`target ${name}`, one.ready && one.answers ? "ready" : "not ready", !(one.ready && one.answers))),
    card("guests", String(status.guests.length)), card("in sync", String(right.length)), card("not as declared", String(wrong.length), wrong.length > 0),
    card("longest stall", seconds(status.longest_stall_s)));
  $("#problems").replaceChildren(...(status.errors.length ? status.errors : ["none"]).map((text) => element("li", { textContent: text })));
  $("#drift").textContent = wrong.join(", ") || "none";
  $("#repair").hidden = !wrong.length || !may("operator");
  $("#guests tbody").replaceChildren(...status.guests.map((one) => element("tr", {}, cell(one.controller), cell(String(one.pid)), cell(one.phase),
    cell(String(one.recoveries), "number"), cell(seconds(one.last_stall), "number"), cell(seconds(one.longest_stall), "number"))));
}

async function refresh() {
  const ended = await Promise.allSettled([refreshStatus(), ...($("#hosts").hidden ? [] : [refreshHosts()])]);
  for (const one of ended) if (one.status === "rejected") throw one.reason;
}

async function reload() {
  [state.volumes, state.controllers] = await Promise.all([all("volumes"), all("controllers")]);
  for (const [name, one] of await all("snapshots")) state.volumes.set(name, one);
  showVolumes();
  showControllers();
}

// -- events -------------------------------------------------------------------------------------------------

function showEvent(event) {
  const fields = event.before && event.after ? Object.keys({ ...event.before, ...event.after }).filter((key) => JSON.stringify(event.before[key]) !== JSON.stringify(event.after[key])) : [];
  const row = element("tr", {}, cell(new Date(event.time * 1000).toLocaleString()), cell(event.who), cell(event.source), cell(event.action), cell(`${event.kind} ${event.name}`), cell(fields.join(", ")));
  const body = $("#event-table tbody");
  body.prepend(row);
  while (body.children.length > EVENTS) body.lastChild.remove();
}

let reloading = null;
function soon() {
  reloading ??= setTimeout(async () => { reloading = null; await quietly(reload); await quietly(refresh); }, 200);
}

async function watch() {
  if (state.watch) return;
  let last = null, cut = false;
  for (const event of (await ask("GET", "/v1/events?limit=1000")).items) { showEvent(event); last = event.id; }
  for (;;) {
    try {
      state.watch = await fetch(`/v1/events?watch=true&after=${last ?? 0}`, { headers: state.token ? { Authorization: `Bearer ${state.token}` } : {} });
      if (!state.watch.ok) throw new Error("the watch was refused");
      if (cut) complain(null);
      cut = false;
      const reader = state.watch.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const parts = (text + value).split("\n\n");
        text = parts.pop();
        for (const part of parts) {
          const data = part.split("\n").find((line) => line.startsWith("data: "));
          if (!data) continue;
          const event = JSON.parse(data.slice(6));
          if (event.id) { last = event.id; showEvent(event); }
          soon();
        }
      }
    } catch (error) { cut = true; complain(new Error(`not connected: ${error.message}`)); }
    await new Promise((resolve) => { setTimeout(resolve, 2000); });
  }
}

// -- changes ------------------------------------------------------------------------------------------------

function dialog(title, fields, go) {
  const box = $("#dialog");
  box.querySelector("h2").textContent = title;
  box.querySelector(".error").textContent = "";
  box.querySelector(".fields").replaceChildren(...fields.map(({ label, options, ...rest }) => {
    const input = element(options ? "select" : "input", { name: label, ...rest });
    for (const one of options ?? []) input.append(element("option", { value: one, textContent: one }));
    return element("label", {}, element("span", { textContent: label }), input);
  }));
  box.querySelector(".go").onclick = async (event) => {
    event.preventDefault();
    const form = box.querySelector("form");
    if (!form.reportValidity()) return;
    try { await go(Object.fromEntries(new FormData(form))); box.close(); } catch (error) { box.querySelector(".error").textContent = error.message; }
  };
  box.showModal();
}

async function act(method, path, body) {
  try { await ask(method, path, body); complain(null); soon(); } catch (error) { complain(error); }
}
let failing = false;
async function quietly(work) {
  try {
    await work();
    if (failing) complain(null);
    failing = false;
  } catch (error) { failing = true; complain(error); }
}

$("#create-volume").addEventListener("click", () => dialog("Create a volume",
  [{ label: "name", required: true }, { label: "size", required: true, placeholder: "10G" }],
  async ({ name, size: wanted }) => { await ask("POST", "/v1/volumes", { name, size: wanted }); soon(); }));
$("#create-controller").addEventListener("click", () => dialog("Create a controller", [{ label: "name", required: true }, { label: "volume", options: ["", ...free()] }],
  async ({ name, volume }) => { await ask("POST", "/v1/controllers", { name, namespaces: volume ? [volume] : [] }); soon(); }));
const free = () => [...state.volumes.values()].filter((one) => !one.status.used_by.length).map((one) => one.spec.name);
const attach = (name) => dialog(`Attach to ${name}`, [{ label: "volume", options: free(), required: true }],
  async ({ volume }) => { await ask("PUT", `/v1/controllers/${name}/namespaces/${volume}`); soon(); });
const detach = (name, volume) => dialog(`Detach ${volume} from ${name}?`, [], async () => { await ask("DELETE", `/v1/controllers/${name}/namespaces/${volume}`); soon(); });
const grow = (name, item) => dialog(`Grow ${name}`, [{ label: "size", required: true, value: size(item.status.size).replace(" ", "").replace("iB", "") }],
  async ({ size: wanted }) => { await ask("PATCH", `/v1/volumes/${name}`, { size: wanted }); soon(); });
const limit = (name, item) => dialog(`Limit ${name} (0: none)`, ["iops", "mbps"].map((label) => ({ label, type: "number", min: 0, value: item.spec.limits?.[label] ?? 0 })),
  async ({ iops, mbps }) => { await ask("PATCH", `/v1/volumes/${name}`, { limits: { iops: +iops, mbps: +mbps } }); soon(); });
const snapshot = (name) => dialog(`Snapshot of ${name}`, [{ label: "name", required: true, value: `${name}-1` }],
  async ({ name: made }) => { await ask("POST", "/v1/snapshots", { name: made, of: name }); soon(); });
const remove = (name) => dialog(`Delete ${name} and its data?`, [{ label: "its name again", required: true, pattern: name.replace(/[.]/g, "\\.") }],
  async () => { await ask("DELETE", `/v1/${state.volumes.get(name).spec.of ? "snapshots" : "volumes"}/${name}?wipe=true`); soon(); });
$("#repair").addEventListener("click", () => act("POST", "/v1/reconcile"));

setInterval(() => state.role && !$("#volumes").hidden && !document.hidden && quietly(count), RATES_MS);
setInterval(() => state.role && !document.hidden && quietly(refresh), STATUS_MS);
enter();
