// The view of hosts: of a fleet, all of its; of a host that belongs to none, itself. What it uses is page.js'.
"use strict";

const ITSELF = "this host";

function hostState(host) {
  if (!host.live) return "does not answer";
  return ["live", ...(host.cordoned ? ["cordoned"] : []), ...(host.pending ? ["no target"] : [])].join(", ");
}

function hostProblems(host) {
  const told = Object.entries(host.problems).map(([key, text]) => (key ? `${key.replace("/", " ")}: ${text}` : text));
  return [...told, ...(host.more_problems ? [`${host.more_problems} more`] : [])].filter(Boolean).join("; ");
}

function itself(status) {
  return { name: ITSELF, live: Boolean(status), cordoned: false, pending: false, labels: {}, controllers: state.controllers.size,
    volumes: state.volumes.size, version: "", problems: { "": (status?.errors ?? []).join("; ") }, more_problems: 0 };
}

// Targets and guests are known of the host alone that is asked.
function hostRow(host, status) {
  const own = host.name === ITSELF || host.name === status?.fleet?.host;
  const targets = own && status ? Object.entries(status.targets).map(([name, one]) => `${name} ${one.ready && one.answers ? "ready" : "not ready"}`).join(", ") : "–";
  const problems = hostProblems(host);
  const labels = Object.entries(host.labels).sort().map(([name, value]) => `${name}=${value}`).join(" ");
  const row = element("tr", {}, cell(own && host.name !== ITSELF ? `${host.name} (${ITSELF})` : host.name),
    cell(hostState(host), host.live && !host.pending ? "good" : "bad"), cell(targets, targets.includes("not ready") ? "bad" : ""),
    cell(own && status ? String(status.guests.length) : "–", "number"), cell(String(host.controllers), "number"), cell(String(host.volumes), "number"),
    cell(labels), cell(host.version), cell(problems || "none", problems ? "bad" : "dim"));
  row.dataset.name = host.name;
  return row;
}

async function refreshHosts() {
  const [fleet, asked] = await Promise.allSettled([ask("GET", "/v1/hosts"), ask("GET", "/v1/status")]);
  const hosts = fleet.value?.items.length ? fleet.value.items : [itself(asked.value)];
  $("#host-table tbody").replaceChildren(...hosts.map((host) => hostRow(host, asked.value)));
  const failed = [fleet, asked].find((one) => one.status === "rejected");
  if (failed) throw failed.reason;
}
