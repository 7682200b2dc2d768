"use strict";

/* Charts: the pointer snaps to the nearest step and shows every line's value there. */
for (const figure of document.querySelectorAll("figure[data-hover]")) {
  const { px, step, rows } = JSON.parse(figure.dataset.hover);
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const rule = cursor.querySelector("line");
  const dots = cursor.querySelectorAll("circle");
  const tip = figure.querySelector(".tip");
  const cells = tip.querySelectorAll("b");
  let shown = -1;

  const show = (index) => {
    shown = index;
    rule.setAttribute("x1", px[index]);
    rule.setAttribute("x2", px[index]);
    tip.querySelector(".at").textContent = figure.dataset.axis + " " + step[index];
    rows.forEach((row, i) => {
      const known = row.value[index] !== null;
      cells[i].textContent = known ? row.value[index] : "\u2013";
      dots[i].style.visibility = known ? "inherit" : "hidden";
      if (known) { dots[i].setAttribute("cx", px[index]); dots[i].setAttribute("cy", row.py[index]); }
    });
    cursor.classList.add("on");
    tip.classList.add("on");
    const width = svg.getBoundingClientRect().width;
    const at = px[index] / svg.viewBox.baseVal.width * width;
    tip.style.left = Math.min(width - tip.offsetWidth, at < width / 2 ? at + 12 : Math.max(0, at - tip.offsetWidth - 12)) + "px";
  };
  const hide = () => { shown = -1; cursor.classList.remove("on"); tip.classList.remove("on"); };

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    show(px.reduce((best, at, i) => (Math.abs(at - x) < Math.abs(px[best] - x) ? i : best), 0));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    show(Math.min(px.length - 1, Math.max(0, shown < 0 ? (by > 0 ? 0 : px.length - 1) : shown + by)));
  });
}

/* Answers: best, worst or random first; twelve at a time. */
const list = document.querySelector(".pairs");
if (list) {
  const STEP = 12;
  const cards = [...list.children];
  const controls = document.querySelector(".controls");
  const [some, all] = document.querySelectorAll(".further button");
  let order = "best";
  let key = controls.dataset.key;
  let limit = STEP;

  const value = (card, name) => (card.dataset[name] === "" ? NaN : Number(card.dataset[name]));
  const compare = (a, b, name) => {
    const [left, right] = [value(a, name), value(b, name)];
    if (isNaN(left) || isNaN(right)) return isNaN(left) - isNaN(right);
    return order === "best" ? right - left : left - right;
  };
  const arrange = () => {
    const other = key === "gold" ? "reward" : "gold";
    if (order === "random") {
      for (let i = cards.length - 1; i > 0; i--) {
        const j = Math.floor(Math.random() * (i + 1));
        [cards[i], cards[j]] = [cards[j], cards[i]];
      }
    } else {
      cards.sort((a, b) => compare(a, b, key) || compare(a, b, other));
    }
    list.append(...cards);
    reveal();
  };
  const reveal = () => {
    cards.forEach((card, i) => { card.hidden = i >= limit; });
    const left = Math.max(0, cards.length - limit);
    some.textContent = "Show " + Math.min(STEP, left) + " more";
    all.textContent = "Show all " + cards.length;
    some.hidden = left === 0;
    all.hidden = left <= STEP;
  };
  controls.hidden = false;
  for (const button of controls.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      if (button.dataset.order) order = button.dataset.order;
      if (button.dataset.by) key = button.dataset.by;
      limit = STEP;
      for (const one of controls.querySelectorAll("button")) {
        one.setAttribute("aria-pressed", String(one.dataset.order === order || one.dataset.by === key));
      }
      arrange();
    });
  }
  some.addEventListener("click", () => { limit += STEP; reveal(); });
  all.addEventListener("click", () => { limit = cards.length; reveal(); });
  arrange();
}

document.body.dataset.ready = "true";
