/* The sample browser: the data is JSON in the page; only the samples that are looked at become elements. */
const holder = document.getElementById("sample-data");
if (holder) {
  const PAGE = 20;
  const [STEP, PROMPT, ANSWER, REWARD, GOLD, KL, LENGTH, FINISHED, TOKENS, TOKEN_KL] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
  const all = JSON.parse(holder.textContent);
  const texts = all.map((row) => (row[PROMPT].map((turn) => turn[1]).join("\n") + "\n" + row[ANSWER]).toLowerCase());
  const field = (name) => document.getElementById("sample-" + name);
  const [query, step, order, finished, least, list, count, more] =
    ["query", "step", "order", "finished", "least", "list", "count", "more"].map(field);
  let found = [];
  let shown = 0;

  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const turn = (role, text) => {
    const made = element("div", "turn");
    made.append(element("span", "role", role), element("div", "text", text));
    return made;
  };
  const card = (row) => {
    const made = element("article");
    const head = element("header");
    head.append(element("span", "", "step " + row[STEP]));
    for (const [name, place] of [["reward", REWARD], ["gold", GOLD], ["KL", KL], ["tokens", LENGTH]]) {
      if (row[place] !== null) head.append(element("span", "", name + " " + row[place]));
    }
    if (row[FINISHED] === false) head.append(element("span", "cut", "not finished"));
    const prompt = element("div", "prompt");
    for (const [role, text] of row[PROMPT]) prompt.append(turn(role, text));
    made.append(head, prompt, turn("answer", row[ANSWER]));
    if (row[TOKENS] && row[TOKENS].length) made.append(tokens(row[TOKENS], row[TOKEN_KL]));
    return made;
  };
  /* Each token coloured by log(policy / reference); the class names the level, see the legend. */
  const level = (ratio) => {
    const size = Math.abs(ratio ?? 0);
    return size < 0.1 ? "" : (ratio > 0 ? "more" : "less") + (size < 0.5 ? 1 : size < 1.5 ? 2 : 3);
  };
  const signed = (ratio) => (ratio === null ? "not known" : (ratio < 0 ? "\u2212" : "+") + Math.abs(ratio).toFixed(2));
  const tokens = (texts, ratios) => {
    const made = element("details", "tokens");
    made.append(element("summary", "", "KL of each token"));
    const legend = element("p", "levels");
    legend.append("Policy against reference, nats: ");
    for (const [name, text] of [["less3", "\u2264 \u22121.5"], ["less2", "\u2264 \u22120.5"], ["less1", "\u2264 \u22120.1"], ["", "about 0"],
      ["more1", "\u2265 0.1"], ["more2", "\u2265 0.5"], ["more3", "\u2265 1.5"]]) {
      legend.append(element("span", name, text), " ");
    }
    const text = element("div", "text");
    texts.forEach((piece, i) => {
      const one = element("span", level(ratios[i]), piece);
      one.title = signed(ratios[i]);
      text.append(one);
    });
    const order = texts.map((_, i) => i).sort((a, b) => Math.abs(ratios[b] ?? 0) - Math.abs(ratios[a] ?? 0)).slice(0, 5);
    const most = order.map((i) => "\u201c" + (texts[i].trim() || "white space") + "\u201d " + signed(ratios[i])).join(", ");
    made.append(legend, text, element("p", "unit", "Largest: " + most + ". The sum over all tokens is the KL of the answer."));
    return made;
  };
  const grow = () => {
    list.append(...found.slice(shown, shown + PAGE).map((i) => card(all[i])));
    shown = Math.min(found.length, shown + PAGE);
    more.hidden = shown >= found.length;
    more.textContent = "Show " + Math.min(PAGE, found.length - shown) + " more";
  };
  const search = () => {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const low = least.value === "" ? -Infinity : Number(least.value);
    found = [];
    all.forEach((row, i) => {
      if (step.value !== "" && String(row[STEP]) !== step.value) return;
      if (finished.value !== "" && String(row[FINISHED]) !== finished.value) return;
      if (low > -Infinity && !(row[REWARD] !== null && row[REWARD] >= low)) return;
      if (words.every((word) => texts[i].includes(word))) found.push(i);
    });
    const reward = (i) => (all[i][REWARD] === null ? -Infinity : all[i][REWARD]);
    const by = { latest: (a, b) => b - a, best: (a, b) => reward(b) - reward(a), worst: (a, b) => reward(a) - reward(b),
      length: (a, b) => all[b][LENGTH] - all[a][LENGTH] };
    found.sort(by[order.value]);
    count.textContent = found.length.toLocaleString("en") + " of " + all.length.toLocaleString("en") + " samples";
    list.replaceChildren();
    shown = 0;
    grow();
  };
  for (const value of [...new Set(all.map((row) => row[STEP]))].sort((a, b) => b - a)) {
    step.append(new Option("step " + value, String(value)));
  }
  let waiting;
  query.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 120); });
  least.addEventListener("input", search);
  for (const control of [step, order, finished]) control.addEventListener("change", search);
  more.addEventListener("click", grow);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) {
      event.preventDefault();
      query.focus();
    }
    if (event.key === "Escape" && document.activeElement === query) { query.value = ""; search(); }
  });
  field("controls").hidden = false;
  search();
}
