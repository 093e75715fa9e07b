"use strict";
(() => {
  const DASH = "–";
  const all = (root, query) => [...root.querySelectorAll(query)];
  const percent = (share) => (100 * share).toFixed(1);
  // how a board writes its score: factor and decimals
  const written = (section) => {
    const [factor, digits] = section.dataset.scale.split(",").map(Number);
    return (value) => (factor * value).toFixed(digits);
  };

  // value, low, high of a cell at a rung; undefined metrics are NaN
  const estimate = (cell, rung) => {
    const rungs = (cell.dataset.e || "").split(";");
    const texts = (rungs[Math.min(rung, rungs.length - 1)] || "").split(",");
    return [0, 1, 2].map((i) => (texts[i] ? Number(texts[i]) : NaN));
  };

  function theme(button) {
    const root = document.documentElement;
    const dark = () => root.dataset.theme ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    const show = () => {
      button.textContent = dark() ? "Light" : "Dark";
      button.setAttribute("aria-pressed", String(dark()));
    };
    try { root.dataset.theme = localStorage.getItem("theme") || ""; } catch { /* no storage: system theme */ }
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      try { localStorage.setItem("theme", root.dataset.theme); } catch { /* not kept, still shown */ }
      show();
    });
    show();
  }

  function showRung(table, rung, label, write) {
    all(table, "td.worst, td.rung").forEach((cell) => {
      const [value, low, high] = estimate(cell, rung);
      cell.querySelector(".v").textContent = Number.isNaN(value) ? DASH : write(value);
      cell.querySelector(".ci").textContent = Number.isNaN(low) ? "" : `${write(low)}–${write(high)}`;
      const fill = cell.querySelector(".fill"), span = cell.querySelector(".span");
      if (!fill || Number.isNaN(value)) return;
      fill.setAttribute("width", 100 * value);
      span.setAttribute("x", 100 * low);
      span.setAttribute("width", 100 * (high - low));
    });
    all(table, ".change").forEach((span) => { span.textContent = span.dataset.changes.split("|")[rung]; });
    all(table, ".rank").forEach((cell) => {
      if (cell.dataset.ranks) cell.textContent = cell.dataset.ranks.split(",")[rung] || DASH;
    });
    table.querySelector(".eps").textContent = label;
  }

  // a matrix follows the radius of its board, colours too
  function showTransfer(figure, rung, label) {
    all(figure, ".cell").forEach((cell) => {
      const [value, low, high] = estimate(cell, rung);
      const bounds = Number.isNaN(low) ? "" : `${percent(low)}–${percent(high)}`;
      cell.querySelector(".v").textContent = Number.isNaN(value) ? DASH : percent(value);
      cell.querySelector(".ci").textContent = bounds;
      cell.title = cell.title.replace(/^95 % interval [^,]*, /, "");
      if (bounds) cell.title = `95 % interval ${bounds}, ${cell.title}`;
      cell.className = cell.className.replace(/\bheat\d+/, "");
      if (!Number.isNaN(value)) cell.classList.add(`heat${Math.floor(10 * value + 0.5)}`);
    });
    figure.querySelector(".eps").textContent = label;
  }

  function sorter(table) {
    const bodies = all(table, "tbody[data-place]");
    const standing = ["ranked", "control", "flagged", "incomplete", "invalid"];
    const key = (body, column, rung) => {
      const cell = body.querySelector(`.main [data-col="${column}"]`);
      if (column === "victim") return cell.querySelector(".open").textContent.trim().toLowerCase();
      if (column === "rank") return Number((cell.dataset.ranks || "").split(",")[rung]) || NaN;
      return estimate(cell, rung)[0];
    };
    return (column, up, rung) => {
      const rows = bodies.map((body) => [body, key(body, column, rung)]);
      rows.sort(([a, x], [b, y]) => {
        // what is not ranked stays below, whatever the column
        const group = standing.indexOf(a.dataset.standing) - standing.indexOf(b.dataset.standing);
        const gap = Number.isNaN(x) - Number.isNaN(y);
        const order = typeof x === "string" ? x.localeCompare(y) : x - y || 0;
        return group || gap || (up ? order : -order) || a.dataset.place - b.dataset.place;
      });
      table.append(...rows.map(([body]) => body));
      all(table.tHead, "th").forEach((th) => {
        const mine = th.dataset.col === column;
        th.setAttribute("aria-sort", mine ? (up ? "ascending" : "descending") : "none");
      });
    };
  }

  function filters(board, table) {
    const find = board.querySelector(".find"), family = board.querySelector(".family");
    const defense = board.querySelector(".defense"); // only where a victim is defended
    const count = board.querySelector(".count"), bodies = all(table, "tbody[data-place]");
    const apply = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      bodies.forEach((body) => {
        const named = words.every((word) => body.dataset.search.includes(word));
        const shielded = !defense?.value || body.dataset.defense.split(" ").includes(defense.value);
        body.hidden = !(named && shielded && (!family.value || family.value === body.dataset.family));
      });
      const shown = bodies.filter((body) => !body.hidden).length;
      const total = `${bodies.length} victim${bodies.length === 1 ? "" : "s"}`;
      count.textContent = shown === bodies.length ? total : `${shown} of ${total}`;
    };
    find.addEventListener("input", apply);
    family.addEventListener("change", apply);
    defense?.addEventListener("change", apply);
    apply();
  }

  function drills(table) {
    all(table, ".open").forEach((button) => button.addEventListener("click", () => {
      const shown = document.getElementById(button.getAttribute("aria-controls")).classList.toggle("shown");
      button.setAttribute("aria-expanded", String(shown));
    }));
  }

  function highlight(board, table) {
    const figures = all(board, ".curves");
    const light = (place, on) => figures.forEach((figure) => {
      figure.classList.toggle("focus", on && figure.querySelector(`.curve.n${place}`) !== null);
      all(figure, ".on").forEach((g) => g.classList.remove("on"));
      if (on) all(figure, `:is(.curve, .band).n${place}`).forEach((g) => g.classList.add("on"));
    });
    const watch = (element, place) => {
      element.addEventListener("mouseenter", () => light(place, true));
      element.addEventListener("mouseleave", () => light(place, false));
    };
    figures.flatMap((figure) => all(figure, "[data-curve]")).forEach((item) => watch(item, item.dataset.curve));
    all(table, "tbody[data-curve]").forEach((body) => watch(body, body.dataset.curve));
  }

  function board(section) {
    const table = section.querySelector(".ranking"), sort = sorter(table);
    let column = "worst", up = false;
    const rung = () => Number(section.querySelector(".radius :checked").value);
    all(section, ".radius input").forEach((input) => input.addEventListener("change", () => {
      showRung(table, rung(), input.dataset.label, written(section));
      all(section, ".transfer").forEach((figure) => showTransfer(figure, rung(), input.dataset.label));
      sort(column, up, rung());
    }));
    all(table.tHead, "button").forEach((button) => button.addEventListener("click", () => {
      const chosen = button.closest("th").dataset.col;
      const first = chosen === "victim" || chosen === "rank"; // these read upwards
      up = chosen === column ? !up : first;
      column = chosen;
      sort(column, up, rung());
    }));
    all(section, ".columns input").forEach((box) => box.addEventListener("change", () => {
      all(table, `[data-col="${box.value}"]`).forEach((cell) => { cell.hidden = !box.checked; });
    }));
    filters(section, table);
    drills(table);
    highlight(section, table);
    // browsers keep the choice of a reloaded page: show what the control says
    const chosen = section.querySelector(".radius :checked");
    if (!chosen.defaultChecked) chosen.dispatchEvent(new Event("change"));
  }

  // a menu closes when one leaves it or presses Escape
  const closeMenus = (event) => all(document, ".columns[open]").forEach((menu) => {
    if (event.key === "Escape" || (event.type === "click" && !menu.contains(event.target))) menu.open = false;
  });
  document.addEventListener("click", closeMenus);
  document.addEventListener("keydown", closeMenus);

  theme(document.getElementById("theme"));
  all(document, ".board").forEach(board);
  all(document, ".copy").forEach((button) => button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch { // no clipboard for this page: select the text instead
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  }));
})();
