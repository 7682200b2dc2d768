"use strict";
// Text of people and models goes through textContent: it is never markup.
const $ = (id) => document.getElementById(id);
let messages = [], keeps = false, seed = 0, latest = null;

async function post(path, body) {
  const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  if (response.ok) return response;
  const content = await response.json().catch(() => ({}));
  const error = new Error(typeof content.detail === "string" ? content.detail : "The server refused the message.");
  error.status = response.status;
  throw error;
}

function say(text, bad = false) { $("status").textContent = text; $("status").className = bad ? "bad" : ""; }

function element(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}

function start(state) {
  keeps = state.keeps;
  $("sign-in").hidden = true; $("ask").hidden = false; $("reset").hidden = false;
  $("text").focus();
}

function signIn(why = "") { $("why").textContent = why; $("sign-in").hidden = false; $("ask").hidden = true; $("token").focus(); }

function box(turn, name) {
  const node = element("section", undefined, "answer"), text = element("div", "", "text");
  text.dir = "auto";
  node.append(element("h2", name), text, element("p", "", "reward"));
  turn.append(node);
  return node;
}

function finish(node, answer) {
  node.querySelector(".text").textContent = answer.text;
  const parts = [];
  if (answer.reward !== null) parts.push(`reward ${answer.reward.toFixed(2)}`);
  for (const [name, value] of Object.entries(answer.attributes || {})) parts.push(`${name} ${value.toFixed(1)}`);
  if (!answer.finished) parts.push("cut off");
  node.querySelector(".reward").textContent = parts.join(" · ");
}

async function ask() {
  const text = $("text").value.trim();
  if (!text) return;
  if (latest) messages.push({ role: "assistant", content: latest.chosen });
  messages.push({ role: "user", content: text });
  const user = element("p", text, "user"), turn = element("div", undefined, "answers");
  user.dir = "auto";
  $("turns").append(user, turn);
  $("text").value = ""; $("send").disabled = true; say("Answering …");
  const boxes = {}, answers = {}, prompt = [...messages];
  try {
    const response = await post("/api/answer", { messages: prompt, seed: seed++ });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map(JSON.parse)) {
        if (line.error) throw new Error(line.error);
        boxes[line.name] ??= box(turn, line.name);
        if (line.piece !== undefined) boxes[line.name].querySelector(".text").textContent += line.piece;
        else { answers[line.name] = line; finish(boxes[line.name], line); }
      }
    }
    choose(prompt, boxes, answers, turn);
    say("");
  } catch (error) {
    messages = prompt.slice(0, -1);
    if (latest) messages.pop();
    if (error.status === 401) signIn(error.message); else say(error.message, true);
    $("text").value = text;
  }
  $("send").disabled = false;
  $("text").focus();
}

function choose(prompt, boxes, answers, turn) {
  const names = Object.keys(answers), own = { chosen: answers[names[0]].text };
  latest = own;
  const mark = (name) => {
    own.chosen = answers[name].text;
    for (const other of names) {
      boxes[other].classList.toggle("continued", other === name && names.length > 1);
      boxes[other].querySelector("button")?.setAttribute("aria-pressed", String(other === name));
    }
  };
  if (names.length < 2) return;
  for (const name of names) {
    const pick = element("button", "Continue with this");
    pick.type = "button";
    pick.addEventListener("click", () => { if (latest === own) mark(name); });
    boxes[name].append(pick);
  }
  mark(names[0]);
  if (!keeps) return;
  if (answers[names[0]].text === answers[names[1]].text) {
    turn.after(element("p", "The answers are the same: there is nothing to annotate.", "note"));
    return;
  }
  const keep = element("button", "Send this pair to annotate");
  keep.type = "button";
  keep.addEventListener("click", async () => {
    try {
      const response = await post("/api/pairs", { messages: prompt, first: answers[names[0]].text, second: answers[names[1]].text });
      keep.textContent = (await response.json()).new ? "Sent to annotate" : "Is there already";
      keep.disabled = true;
    } catch (error) { say(error.message, true); }
  });
  turn.after(keep);
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); if (!$("send").disabled) ask(); }
});
$("reset").addEventListener("click", () => { messages = []; latest = null; $("turns").replaceChildren(); say(""); $("text").focus(); });
$("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  try { start(await (await post("/api/session", { token: $("token").value })).json()); $("token").value = ""; }
  catch (error) { signIn(error.message); }
});
fetch("/api/session").then(async (response) => { if (response.ok) start(await response.json()); else signIn(); });
