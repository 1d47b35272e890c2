"use strict";
// Numbers of tokens on hover and by keyboard, order and choice of the sources. Everything shown is
// in the page already; this only reads it.
const tip = document.getElementById("tip");
const list = document.getElementById("groups");
const controls = document.getElementById("controls");
const groups = [...list.children];
const lines = [...document.querySelectorAll(".tokens")];

const spelled = (token) => token.dataset.s ?? token.textContent;
for (const line of lines) {
  line.setAttribute("role", "listbox");
  line.setAttribute("aria-orientation", "horizontal");
  [...line.querySelectorAll("i")].forEach((token, number) => {
    token.setAttribute("role", "option");
    token.setAttribute("aria-label", `${spelled(token)} reward ${token.dataset.r}`);
    token.tabIndex = number ? -1 : 0; // one stop of Tab for each text, arrows continue from there
  });
}

let marked = null;
function show(token) {
  hide();
  marked = token;
  token.classList.add("at");
  const others = [...token.parentNode.querySelectorAll("i")];
  const value = (each) => Number(each.dataset.r.replace("\u2212", "-"));
  const place = 1 + others.filter((each) => value(each) > value(token)).length;
  const word = document.createElement("b");
  word.textContent = spelled(token);
  word.dir = "auto";
  tip.replaceChildren(word, ` reward ${token.dataset.r}`, document.createElement("br"));
  tip.append(`rank ${place} of ${others.length} tokens`);
  tip.hidden = false;
  const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
  const right = document.documentElement.clientWidth - tip.offsetWidth - 4;
  const below = box.bottom + 8 + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${window.scrollX + Math.max(4, Math.min(box.left, right))}px`;
  tip.style.top = `${window.scrollY + (below ? box.bottom + 8 : box.top - tip.offsetHeight - 8)}px`;
}
function hide() {
  tip.hidden = true;
  marked?.classList.remove("at");
  marked = null;
}
const tokenAt = (event) => event.target.closest?.(".tokens i");
list.addEventListener("pointerover", (event) => tokenAt(event) && show(tokenAt(event)));
list.addEventListener("pointerout", (event) => {
  if (!tokenAt(event)) return;
  const focused = document.activeElement.closest?.(".tokens i");
  if (focused) show(focused);
  else hide();
});
list.addEventListener("focusin", (event) => tokenAt(event) && show(tokenAt(event)));
list.addEventListener("focusout", hide);

function go(token) {
  if (!token) return;
  for (const each of token.parentNode.querySelectorAll('i[tabindex="0"]')) each.tabIndex = -1;
  token.tabIndex = 0;
  token.focus();
}
list.addEventListener("click", (event) => go(tokenAt(event)));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
  const token = tokenAt(event);
  if (!token || event.ctrlKey || event.altKey || event.metaKey) return;
  const tokens = [...token.parentNode.querySelectorAll("i")];
  const here = tokens.indexOf(token);
  const forward = getComputedStyle(token.parentNode).direction === "rtl" ? -1 : 1;
  const shown = [...list.querySelectorAll("article:not([hidden]) .tokens")];
  const other = (step) => {
    const line = shown[shown.indexOf(token.parentNode) + step];
    const found = line ? [...line.querySelectorAll("i")] : [];
    return found[Math.min(here, found.length - 1)];
  };
  const target = {
    ArrowRight: () => tokens[here + forward],
    ArrowLeft: () => tokens[here - forward],
    Home: () => tokens[0],
    End: () => tokens[tokens.length - 1],
    ArrowDown: () => other(1),
    ArrowUp: () => other(-1),
  }[event.key];
  if (!target) return;
  event.preventDefault();
  go(target());
});

const texts = groups.map((group) => group.textContent.toLowerCase());
const numbers = (group, name) => group.dataset[name].split(" ").map(Number);
function update() {
  const wanted = controls.find.value.toLowerCase();
  const run = Number(controls.run?.value ?? 0);
  const key = { wrong: "wrong", spread: "spread" }[controls.order.value];
  const order = groups.map((group, place) => [group, place]);
  if (key) order.sort((a, b) => numbers(b[0], key)[run] - numbers(a[0], key)[run] || a[1] - b[1]);
  let count = 0;
  for (const [group, place] of order) {
    const fits = texts[place].includes(wanted);
    group.hidden = !fits || (controls.wrong.checked && !numbers(group, "wrong")[run]);
    count += !group.hidden;
  }
  list.append(...order.map(([group]) => group));
  list.classList.toggle("spaces", controls.spaces.checked);
  controls.count.value = `${count} of ${groups.length} shown`;
  hide();
}
controls.addEventListener("input", update);
controls.addEventListener("submit", (event) => event.preventDefault());
controls.hidden = false;
update();
