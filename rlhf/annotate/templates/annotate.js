"use strict";
// All text from people and models goes through textContent: it is never markup.
const $ = (id) => document.getElementById(id);
const NEITHER = -100;
const WORDS = { "-3": "Left is much better", "-2": "Left is better", "-1": "Left is slightly better",
                "1": "Right is slightly better", "2": "Right is better", "3": "Right is much better" };
let task = null, started = 0, timer = null, saving = Promise.resolve(), last = null, changed = false, again = null, project = "";

async function api(method, path, body) {
  const response = await fetch(path, { method, headers: { "Content-Type": "application/json" },
                                       body: body === undefined ? undefined : JSON.stringify(body) })
    .catch(() => { throw new Error("No connection to the server."); });
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

// --- drafts: in the server after a second, and in this browser until it has them ---------------------------------------
const local = (number) => `rlhf-annotate-${project}-${$("name").textContent}-${number}`;

function submission() {
  const picked = document.querySelector("input[name=strength]:checked");
  const ratings = (side) => Object.fromEntries(
    [...document.querySelectorAll(`#ratings-${side} input:checked`)].map((node) => [node.dataset.attribute, Number(node.value)]));
  return { strength: picked ? Number(picked.value) : null, ratings_1: ratings("left"), ratings_2: ratings("right"),
           reason: $("reason").value };
}

function keepLocally() {
  const draft = { version: task.version, sent: task.sent, submission: submission() };
  try { localStorage.setItem(local(task.number), JSON.stringify(draft)); } catch { /* private mode: the server has it */ }
}

function change() {
  changed = true;
  keepLocally();
  say("Saving …");
  clearTimeout(timer);
  timer = setTimeout(() => save(false), 600);
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

function save(final) {
  clearTimeout(timer);
  const saved = task, content = submission(), seconds = task.seconds + (Date.now() - started) / 1000;
  const put = () => api("PUT", `/api/tasks/${saved.number}`, { submission: content, final, seconds, version: saved.version });
  saving = saving.catch(() => {}).then(async () => {
    const { version } = await put().catch(async (error) => {
      if (error.status !== 409 || !saved.sent) throw error;
      const now = (await api("GET", `/api/tasks/${saved.number}`)).task;  // saved, but the answer to that did not arrive
      if (!same(now.submission, saved.sent)) throw error;
      saved.version = now.version;
      return put();
    }).catch((error) => { if (!error.status) unconfirmed(saved, content); throw error; });
    if (version === null) return false;
    saved.version = version;
    saved.sent = null;
    const isLast = task !== saved || same(submission(), content);
    if (isLast) changed = false;
    try { if (isLast || final) localStorage.removeItem(local(saved.number)); } catch { /* see above */ }
    return true;
  });
  return saving.then((kept) => {
    say(final ? "Submitted." : kept ? "Saved." : "Submit to replace your earlier answer.");
    return true;
  }, async (error) => {
    if (error.status === 401) signIn(error.message);
    else if (error.status === 409) { await reload(saved.number); say(error.message, true); }
    else say(error.status ? error.message : "No connection. Your text is kept in this browser.", true);
    return false;
  });
}

function unconfirmed(saved, content) {  // the server may have this content, or not
  saved.sent = content;
  if (task === saved) keepLocally();
}

async function reload(number) {
  try { localStorage.removeItem(local(number)); } catch { /* see above */ }
  present((await api("GET", `/api/tasks/${number}`)).task);
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
  task = next; task.sent = null; started = Date.now(); changed = false;
  let saved = task.submission;
  try {
    const kept = JSON.parse(localStorage.getItem(local(task.number)));
    if (kept && (kept.version === task.version || same(kept.sent, saved))) saved = kept.submission;
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
  $("task").inert = false;
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
  project = person.project;
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
  try { await api("DELETE", "/api/session"); } catch (error) { return say(error.message, true); }
  signIn("Signed out.");
});
let submitting = false;  // a second click or key while the first one travels is not for the next task
$("answer").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (submitting) return;
  const focused = document.activeElement;
  submitting = $("task").inert = true;  // anything typed now would be lost
  let done = false;
  try {
    done = await save(true);
    if (done) { last = task.number; await next(); }
  } finally { submitting = $("task").inert = false; }
  if (!done) focused.focus();
});
$("back").addEventListener("click", async () => {
  if (changed) await save(false);
  try { present((await api("GET", `/api/tasks/${last}`)).task); } catch (error) { say(error.message, true); }
});
for (const id of ["answer", "ratings-left", "ratings-right"]) $(id).addEventListener("input", change);

document.addEventListener("keydown", (event) => {
  if (!task || $("task").hidden || submitting) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); $("answer").requestSubmit(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || /^(TEXTAREA|INPUT)$/.test(event.target.tagName) && event.target.type !== "radio") return;
  const rating = event.target.name && event.target.name.includes("-");
  if (rating && /^[56]$/.test(event.key)) return;  // not a rating, and not meant as a preference
  if (rating && /^[0-4]$/.test(event.key)) {
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
