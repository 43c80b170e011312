// Sort, filter and mark the responsible samples. What they are called comes from the evidence: it is only ever set as
// text, never as markup, and nothing here reaches beyond the page.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const review = document.getElementById("review");
  if (!review) return;
  const controls = document.getElementById("controls");
  const list = document.getElementById("list");
  const items = data.items;
  const marks = new Map(); // index -> {decision, when}
  const nodes = new Map(); // index -> the element that shows it
  for (const item of items) if (item.mark) marks.set(item.index, { decision: item.mark.decision, when: item.mark.when });
  const has = (key) => items.some((item) => item[key] !== null && item[key] !== "");
  const hasPictures = has("picture");
  const columns = [
    { key: "index", title: "index", number: true, of: (item) => item.index },
    { key: "id", title: "id", of: (item) => item.id, hide: items.every((item) => item.id === String(item.index)) },
    { key: "label", title: "label", of: (item) => item.label, hide: new Set(items.map((item) => item.label)).size < 2 },
    { key: "score", title: "score", number: true, of: (item) => item.score, show: (score) => score.toFixed(3) },
    { key: "source", title: "source", of: (item) => item.source, hide: !has("source") },
    { key: "text", title: "text", of: (item) => item.text, hide: !has("text"), words: true },
    ...data.columns.map((title, place) => ({
      key: `column ${place}`, title, number: true, of: (item) => item.values[place] ?? null,
      show: (value) => (value === null ? "" : String(Number(value.toPrecision(5)))),
    })),
  ].filter((column) => !column.hide);

  const state = { view: hasPictures ? "gallery" : "table", sort: "score", down: true, page: 0 };
  const changed = new Set(); // marks that no file holds yet

  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  // The choices that depend on the data.
  for (const column of columns) {
    controls.sort.append(element("option", { value: `${column.key}/down`, textContent: `${column.title}, ${column.number ? "largest" : "last"} first` }));
    controls.sort.append(element("option", { value: `${column.key}/up`, textContent: `${column.title}, ${column.number ? "smallest" : "first"} first` }));
  }
  const sources = [...new Set(items.map((item) => item.source))].filter((source) => source !== null);
  const count = (source) => items.filter((item) => item.source === source).length;
  for (const [source, n] of sources.map((source) => [source, count(source)]).sort((a, b) => b[1] - a[1]).slice(0, 200)) {
    controls.source.append(element("option", { value: `=${source}`, textContent: `${source || "(none)"} (${n})` }));
  }
  controls.source.parentElement.hidden = sources.length < 2;
  controls.view.parentElement.hidden = !hasPictures;

  const stateOf = (item) => marks.get(item.index)?.decision ?? (item.is_responsible || item.is_suspect ? "none" : "let go");

  const chosen = () => {
    const query = controls.query.value.trim().toLowerCase();
    const [least, most] = [Number(controls.least.value || 0), Number(controls.most.value || 1)];
    const source = controls.source.value;
    const column = columns.find((one) => one.key === state.sort);
    const sign = state.down ? -1 : 1;
    return items
      .filter((item) => item.score >= least && item.score <= most)
      .filter((item) => !source || `=${item.source}` === source)
      .filter((item) => !controls.marks.value || stateOf(item) === controls.marks.value)
      .filter((item) => !query || [String(item.index), item.id, item.source ?? "", item.text ?? ""].some((text) => text.toLowerCase().includes(query)))
      .sort((a, b) => {
        const [x, y] = [column.of(a), column.of(b)];
        if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index; // what is missing comes last
        const order = column.number ? x - y : x.localeCompare(y, undefined, { numeric: true });
        return sign * order || a.index - b.index;
      });
  };

  const paint = (item) => {
    const node = nodes.get(item.index);
    const now = stateOf(item);
    document.getElementById("n-marked").textContent = marks.size;
    if (!node) return;
    node.classList.toggle("is-confirmed", now === "confirmed");
    node.classList.toggle("is-cleared", now === "cleared");
    node.classList.toggle("is-let-go", now === "let go");
    node.querySelector(".confirm").setAttribute("aria-pressed", now === "confirmed");
    node.querySelector(".clear").setAttribute("aria-pressed", now === "cleared");
  };

  const mark = (item, decision) => {
    const taken = decision === null || marks.get(item.index)?.decision === decision;
    if (taken) marks.delete(item.index);
    else marks.set(item.index, { decision, when: new Date().toISOString() });
    changed.add(item.index);
    paint(item);
  };

  const buttons = (item) => {
    const button = (name, words, decision) => {
      const made = element("button", { type: "button", className: name, textContent: words, title: `${words} sample ${item.index}` });
      made.setAttribute("aria-label", `${words} sample ${item.index}`);
      made.addEventListener("click", () => mark(item, decision));
      return made;
    };
    return element("div", { className: "marks" }, button("confirm", "confirm", "confirmed"), button("clear", "clear", "cleared"));
  };

  const card = (item) => {
    const caption = element("span", { className: "caption" }, element("b", { textContent: item.index }), ` ${item.score.toFixed(3)}`);
    const node = element("li", { className: item.is_responsible ? "responsible" : "" }, element("img", { src: item.picture, alt: `training sample ${item.index}` }), caption);
    for (const text of [item.id === String(item.index) ? null : item.id, item.source]) {
      if (text) node.append(element("span", { className: "caption id", title: text }, element("bdi", { textContent: text })));
    }
    node.append(buttons(item));
    return node;
  };

  const row = (item) => {
    const node = element("tr", {}, element("td", {}, buttons(item)));
    for (const column of columns) {
      const value = column.of(item);
      const cell = element("td", { className: column.number ? "number" : column.words ? "words" : "" });
      cell.append(element("bdi", { textContent: column.show ? column.show(value) : value ?? "" }));
      node.append(cell);
    }
    return node;
  };

  const table = (shown) => {
    const head = element("tr", {}, element("th", { scope: "col", textContent: "mark" }));
    for (const column of columns) {
      const isSorted = state.sort === column.key;
      const button = element("button", { type: "button", textContent: column.title + (isSorted ? (state.down ? " ↓" : " ↑") : "") });
      button.addEventListener("click", () => {
        state.down = isSorted ? !state.down : Boolean(column.number);
        state.sort = column.key;
        state.page = 0;
        render();
        list.querySelector(`th[data-key="${CSS.escape(column.key)}"] button`).focus();
      });
      const cell = element("th", { scope: "col", className: column.number ? "number" : "" }, button);
      cell.dataset.key = column.key;
      cell.setAttribute("aria-sort", isSorted ? (state.down ? "descending" : "ascending") : "none");
      head.append(cell);
    }
    return element("table", {}, element("thead", {}, head), element("tbody", {}, ...shown));
  };

  const render = () => {
    const all = chosen();
    const listed = state.view === "gallery" ? all.filter((item) => item.picture) : all;
    const size = state.view === "gallery" ? 48 : 100;
    const nPages = Math.max(1, Math.ceil(listed.length / size));
    state.page = Math.min(Math.max(0, state.page), nPages - 1);
    nodes.clear();
    const part = listed.slice(state.page * size, (state.page + 1) * size);
    const shown = part.map((item) => {
      const node = state.view === "gallery" ? card(item) : row(item);
      node.dataset.index = item.index;
      nodes.set(item.index, node);
      return node;
    });
    list.replaceChildren(state.view === "gallery" ? element("ul", { className: "gallery" }, ...shown) : table(shown));
    part.forEach(paint);
    const without = all.length - listed.length;
    const n = (number) => number.toLocaleString("en");
    document.getElementById("status").textContent = `${n(all.length)} of ${n(items.length)} samples` +
      (without ? `; ${n(without)} of them have no picture here and are in the table.` : ".");
    document.getElementById("where").textContent = `page ${state.page + 1} of ${nPages}`;
    document.getElementById("back").disabled = state.page === 0;
    document.getElementById("next").disabled = state.page === nPages - 1;
    controls.sort.value = `${state.sort}/${state.down ? "down" : "up"}`;
    controls.view.value = state.view;
  };

  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", () => {
    const [key, direction] = controls.sort.value.split(/\/(?=[^/]*$)/);
    Object.assign(state, { view: controls.view.value, sort: key, down: direction === "down", page: 0 });
    render();
  });
  for (const [id, step] of [["back", -1], ["next", 1]]) {
    document.getElementById(id).addEventListener("click", () => {
      state.page += step;
      render();
    });
  }
  for (const [id, decision] of [["confirm-all", "confirmed"], ["clear-all", "cleared"], ["unmark-all", null]]) {
    document.getElementById(id).addEventListener("click", () => {
      for (const item of chosen()) if (decision === null ? marks.has(item.index) : stateOf(item) !== decision) mark(item, decision);
      render();
    });
  }

  list.addEventListener("keydown", (event) => {
    const node = event.target.closest("[data-index]");
    if (!node || event.ctrlKey || event.metaKey || event.altKey) return;
    const item = items.find((one) => one.index === Number(node.dataset.index));
    if (event.key === "c") mark(item, "confirmed");
    else if (event.key === "x") mark(item, "cleared");
    else {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const next = step === 1 ? node.nextElementSibling : step === -1 ? node.previousElementSibling : null;
      if (!next) return;
      const kind = event.target.classList.contains("clear") ? ".clear" : ".confirm";
      next.querySelector(kind).focus();
    }
    event.preventDefault();
  });

  document.getElementById("download").addEventListener("click", () => {
    const ids = new Map(items.map((item) => [item.index, item.id]));
    const decisions = [...marks].sort((a, b) => a[0] - b[0]).map(([index, made]) => ({ index, id: ids.get(index), ...made }));
    const text = JSON.stringify({ schema: 1, case: data.case, decisions }, null, 1) + "\n";
    const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "decisions.json" });
    link.click();
    URL.revokeObjectURL(link.href);
    changed.clear();
  });
  document.getElementById("load").addEventListener("change", async (event) => {
    const status = document.getElementById("status");
    try {
      const loaded = JSON.parse(await event.target.files[0].text());
      if (loaded.case.created !== data.case.created) throw new Error("decisions on another case");
      const known = new Set(items.map((item) => item.index));
      for (const made of loaded.decisions) {
        if (known.has(made.index) && ["confirmed", "cleared"].includes(made.decision)) {
          marks.set(made.index, { decision: made.decision, when: String(made.when) });
        }
      }
      render();
      document.getElementById("n-marked").textContent = marks.size;
    } catch (error) {
      status.textContent = `This file could not be used: ${error.message}.`;
    }
    event.target.value = "";
  });
  window.addEventListener("beforeunload", (event) => {
    if (changed.size) event.preventDefault();
  });
  document.getElementById("static")?.remove();
  document.getElementById("n-marked").textContent = marks.size;
  review.hidden = false;
  render();
})();
