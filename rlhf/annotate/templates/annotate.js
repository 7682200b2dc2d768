"use strict";
// All text from people and models goes through textContent: it is never markup.
const $ = (id) => document.getElementById(id);
const NEITHER = -100;
const WORDS = { "-3": "Left is much better", "-2": "Left is better", "-1": "Left is slightly better",
                "1": "Right is slightly better", "2": "Right is better", "3": "Right is much better" };
let task = null, started = 0, timer = null, saving = Promise.resolve(), last = null, changed = false, again = null;

async function api(method, path, body) {
  const response = await fetch(path, { method, headers: { "Content-Type": "application/json" },
                                       body: body === undefined ? undefined : JSON.stringify(body) });
  const content = await response.json().catch(() => ({}));
  if (response.ok) return content;
  const error = new Error(typeof content.detail === "string" ? content.detail : "The server refused what was sent.");
  error.status = response.status;
  throw error;
}

function element(tag, text, attributes = {}) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function show(...ids) {
  for (const id of ["sign-in", "progress", "task", "done"]) $(id).hidden = !ids.includes(id);
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

// --- drafts: in the server after a second, and in this browser at once -------------------------------------------------
const local = (number) => `rlhf-annotate-${$("name").textContent}-${number}`;

function submission() {
  const picked = document.querySelector("input[name=strength]:checked");
  const ratings = (side) => Object.fromEntries(
    [...document.querySelectorAll(`#ratings-${side} input:checked`)].map((node) => [node.dataset.attribute, Number(node.value)]));
  return { strength: picked ? Number(picked.value) : null, ratings_1: ratings("left"), ratings_2: ratings("right"),
           reason: $("reason").value };
}

function keepLocally() {
  try { localStorage.setItem(local(task.number), JSON.stringify(submission())); } catch { /* private mode: the server has it */ }
}

function change() {
  changed = true;
  keepLocally();
  say("Saving …");
  clearTimeout(timer);
  timer = setTimeout(() => save(false), 600);
}

function save(final) {
  clearTimeout(timer);
  const number = task.number, body = { submission: submission(), final, seconds: task.seconds + (Date.now() - started) / 1000 };
  saving = saving.catch(() => {}).then(async () => {
    await api("PUT", `/api/tasks/${number}`, body);
    if (task && task.number === number) changed = false;
    try { if (final) localStorage.removeItem(local(number)); } catch { /* see above */ }
  });
  return saving.then(() => { say(final ? "Submitted." : "Saved."); return true; }, (error) => {
    if (error.status === 401) signIn(error.message);
    else say(error.status ? error.message : "No connection. Your text is kept in this browser.", true);
    return false;
  });
}

// --- a task ------------------------------------------------------------------------------------------------------------
function ratings(side, saved) {
  const box = $(`ratings-${side}`);
  box.replaceChildren(...task.attributes.map((attribute) => {
    const field = element("fieldset"), legend = element("legend");
    legend.append(element("span", attribute, { class: "name" }));
    field.append(legend);
    for (let value = 0; value <= 4; value++) {
      const label = element("label"), input = element("input", undefined, { type: "radio", name: `${side}-${attribute}`, value });
      input.dataset.attribute = attribute;
      input.setAttribute("aria-label", `${attribute} of the ${side} response: ${value} of 4`);
      input.checked = saved[attribute] === value;
      label.append(input, element("span", String(value), { "aria-hidden": "true" }));
      field.append(label);
    }
    return field;
  }));
}

function present(next) {
  task = next; started = Date.now(); changed = false;
  let saved = task.submission;
  try {
    const kept = localStorage.getItem(local(task.number));
    if (kept && !task.final) saved = JSON.parse(kept);
  } catch { /* nothing kept */ }
  $("prompt").replaceChildren(...task.prompt.map((message) => {
    const box = element("div");  // the direction is the content's own, not that of the role's word
    box.append(element("span", message.role, { class: "role" }), element("div", message.content, { dir: "auto" }));
    return box;
  }));
  $("left").textContent = task.left;
  $("right").textContent = task.right;
  $("left").scrollTop = $("right").scrollTop = 0;
  ratings("left", saved.ratings_1);
  ratings("right", saved.ratings_2);
  const options = [...task.strengths.map((value) => [value, WORDS[value]]), [NEITHER, "Neither is valid"]];
  $("scale").replaceChildren(...options.map(([value, words]) => {
    const label = element("label"), input = element("input", undefined, { type: "radio", name: "strength", value });
    input.checked = saved.strength === value;
    label.append(input, element("span", words));
    return label;
  }));
  $("reason").value = saved.reason;
  $("others").hidden = !task.others.length;
  $("others").lastElementChild.replaceChildren(...task.others.map((other) => {
    const box = element("blockquote");
    box.append(element("strong", `${other.annotator}: ${WORDS[other.strength] || "Neither is valid"}. `),
               element("div", other.reason, { dir: "auto" }));
    return box;
  }));
  $("back").hidden = last === null;
  say("");
  show("progress", "task");
  window.scrollTo(0, 0);
  $("prompt-title").setAttribute("tabindex", "-1");
  $("prompt-title").focus({ preventScroll: true });
}

async function next() {
  try {
    const { task: following, waiting } = await api("GET", "/api/next");
    await refresh();
    if (following) return present(following);
    task = null;
    $("done").textContent = waiting ? "The next two responses are being sampled …" : "Nothing is left for you. Thank you.";
    show("progress", "done");
    clearTimeout(again);
    if (waiting) again = setTimeout(() => { if (!$("done").hidden) next(); }, 1500);
  } catch (error) {
    if (error.status === 401) return signIn(error.message);
    say(error.message, true);
    if ($("task").hidden) { $("done").textContent = error.message; show("done"); }
  }
}

async function refresh() {
  const p = await api("GET", "/api/progress");
  $("bar").max = Math.max(p.wanted, 1); $("bar").value = p.annotations;
  $("counts").textContent = `${p.own} by you · ${p.annotations} of ${p.wanted} annotations · ${p.complete} of ${p.tasks} tasks complete`
    + ` · ${p.disputed} for the adjudicator`;
  const table = element("table"), head = element("tr");
  for (const title of ["", "annotations", "weighted kappa", "median seconds"]) head.append(element("th", title));
  table.append(head);
  const figure = (value) => value === null ? "–" : value.toFixed(2);
  const rows = [["all", p.annotations, p.kappa.linear, null],
                ...Object.entries(p.annotators).map(([name, a]) => [name, a.count, a.kappa, a.seconds])];
  for (const [name, count, kappa, seconds] of rows) {
    const row = element("tr");
    for (const cell of [name, count, figure(kappa), seconds === null ? "" : Math.round(seconds)]) row.append(element("td", String(cell)));
    table.append(row);
  }
  $("agreement").replaceChildren(table);
}

// --- sign-in -----------------------------------------------------------------------------------------------------------
function signIn(why = "") {
  $("sign-in-why").textContent = why;
  $("who").hidden = true;
  show("sign-in");
  $("token").focus();
}

async function enter(person) {
  $("name").textContent = person.name + (person.adjudicates ? " (adjudicator)" : "");
  $("who").hidden = false;
  await next();
}

$("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const person = await api("POST", "/api/session", { token: $("token").value });
    $("token").value = "";
    await enter(person);
  } catch (error) { signIn(error.message); }
});
$("sign-out").addEventListener("click", async () => {
  await fetch("/api/session", { method: "DELETE", headers: { "Content-Type": "application/json" } });
  signIn("Signed out.");
});
let submitting = false;  // a second click or key while the first one travels is not for the next task
$("answer").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (submitting) return;
  submitting = true;
  try { if (await save(true)) { last = task.number; await next(); } } finally { submitting = false; }
});
$("back").addEventListener("click", async () => {
  if (changed) await save(false);
  present((await api("GET", `/api/tasks/${last}`)).task);
});
for (const id of ["answer", "ratings-left", "ratings-right"]) $(id).addEventListener("input", change);

document.addEventListener("keydown", (event) => {
  if (!task || $("task").hidden) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); $("answer").requestSubmit(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || /^(TEXTAREA|INPUT)$/.test(event.target.tagName) && event.target.type !== "radio") return;
  if (event.target.name && event.target.name.includes("-") && /^[0-4]$/.test(event.key)) {
    const pick = document.querySelector(`input[name="${CSS.escape(event.target.name)}"][value="${event.key}"]`);
    pick.checked = true; pick.focus(); change(); return;
  }
  if (/^[0-6]$/.test(event.key)) {
    const value = event.key === "0" ? NEITHER : task.strengths[Number(event.key) - 1];
    const pick = document.querySelector(`input[name=strength][value="${value}"]`);
    pick.checked = true; pick.focus(); change();
  } else if (event.key === "r") { event.preventDefault(); $("reason").focus(); }
});

api("GET", "/api/session").then(enter, () => signIn());
