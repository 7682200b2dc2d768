/* The sample browser: the data is JSON in the page; only the samples that are looked at become elements. */
const holder = document.getElementById("sample-data");
if (holder) {
  const PAGE = 20;
  const [STEP, PROMPT, ANSWER, REWARD, GOLD, KL, LENGTH, FINISHED, TOKENS, FIGURES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
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
    if (row[TOKENS] && row[TOKENS].length) made.append(tokens(row));
    return made;
  };
  /* Figures of each token: the class of a token names its level, see the legend. */
  const BOUNDS = [0.1, 0.5, 1.5];
  const signed = (value) => value === null ? "not known" : value === 0 ? "0"
    : (value < 0 ? "\u2212" : "+") + Number(Math.abs(value).toPrecision(3));
  const level = (value, unit) => {
    const size = BOUNDS.filter((bound) => Math.abs(value ?? 0) >= bound * unit * 0.9999).length;
    return size && unit ? (value > 0 ? "more" : "less") + size : "";
  };
  const greatest = (values) => Math.max(0, ...values.map((value) => Math.abs(value ?? 0)));
  const KINDS = {
    kl: { name: "KL", word: "KL", lead: "Policy against reference, nats: ", unit: () => 1 },
    reward: { name: "Reward", word: "reward", lead: "Reward of each token: ", unit: (values) => greatest(values.slice(0, -1)) / 1.5 },
    value: { name: "Value", word: "value", lead: "The critic's value before each token: ", unit: (values) => greatest(values) / 1.5 },
  };
  const summary = (kind, texts, values, whole) => {
    const sum = whole ? signed(values.reduce((total, value) => total + (value ?? 0), 0)) : "not known, as the text is cut";
    if (kind === "reward") return "Minus the KL penalty at each token; the last also has the answer's reward. Sum: " + sum + ".";
    const order = texts.map((_, i) => i).sort((a, b) => Math.abs(values[b] ?? 0) - Math.abs(values[a] ?? 0)).slice(0, 5);
    const most = order.map((i) => "\u201c" + (texts[i].trim() || "white space") + "\u201d " + signed(values[i])).join(", ");
    return "Largest: " + most + "." + (kind === "kl" ? " Sum, the KL of the answer: " + sum + "." : "");
  };
  const table = (texts, figures, kinds) => {
    const made = element("details", "");
    made.append(element("summary", "", "Table"));
    made.addEventListener("toggle", () => {
      if (!made.open || made.children.length > 1) return;
      const rows = element("table");
      for (const cells of [["token", ...kinds.map((kind) => KINDS[kind].name)],
        ...texts.map((text, i) => [text.trim() || JSON.stringify(text), ...kinds.map((kind) => signed(figures[kind][i]))])]) {
        const row = element("tr");
        cells.forEach((cell, i) => {
          const tag = element(i && rows.children.length ? "td" : "th", "", cell);
          if (tag.tagName === "TH") tag.scope = rows.children.length ? "row" : "col";
          row.append(tag);
        });
        rows.append(row);
      }
      const scroll = element("div", "scroll");
      scroll.tabIndex = 0;
      scroll.append(rows);
      made.append(scroll);
    });
    return made;
  };
  const tokens = (row) => {
    const [texts, figures] = [row[TOKENS], row[FIGURES]];
    const kinds = Object.keys(KINDS).filter((kind) => kind in figures);
    const made = element("details", "tokens");
    made.append(element("summary", "", kinds.map((kind) => KINDS[kind].word).join(", ") + " of each token"));
    const [choice, legend, text, note] = [element("div", "kinds"), element("p", "levels"), element("div", "text"), element("p", "unit")];
    const show = (kind) => {
      const values = figures[kind];
      const unit = KINDS[kind].unit(values);
      const last = kind === "reward" && texts.length === row[LENGTH] ? values.length - 1 : -1;
      legend.replaceChildren(KINDS[kind].lead);
      for (const size of unit ? [-3, -2, -1, 0, 1, 2, 3] : []) {
        const bound = Number((BOUNDS[Math.abs(size) - 1] * unit).toPrecision(2));
        legend.append(element("span", size ? (size < 0 ? "less" : "more") + Math.abs(size) : "",
          size ? (size < 0 ? "\u2264 \u2212" : "\u2265 ") + bound : "about 0"), " ");
      }
      text.replaceChildren(...texts.map((piece, i) => {
        const one = element("span", level(values[i], i === last ? Math.abs(values[i] ?? 0) / 1.5 : unit), piece);
        one.title = kinds.map((name) => (kinds.length > 1 ? KINDS[name].name + " " : "") + signed(figures[name][i])).join(", ");
        return one;
      }));
      note.textContent = summary(kind, texts, values, texts.length === row[LENGTH]);
      for (const button of choice.children) button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
    };
    choice.setAttribute("role", "group");
    choice.setAttribute("aria-label", "Coloured by");
    for (const kind of kinds.length > 1 ? kinds : []) {
      const button = element("button", "", KINDS[kind].name);
      button.type = "button";
      button.dataset.kind = kind;
      button.addEventListener("click", () => show(kind));
      choice.append(button);
    }
    made.append(choice, legend, text, note, table(texts, figures, kinds));
    show("kl");
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
