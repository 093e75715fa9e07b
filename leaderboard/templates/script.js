"use strict";
(() => {
  const DASH = "–";
  const all = (root, query) => [...root.querySelectorAll(query)];

  // the texts of value, low and high of a cell at a rung; empty if undefined
  const estimate = (cell, rung) => {
    const rungs = (cell.dataset.e || "").split(";");
    const [value = "", low = "", high = ""] = (rungs[Math.min(rung, rungs.length - 1)] || "").split(",");
    return [value, low, high];
  };
  const bounds = (low, high) => (low && high ? `${low}–${high}` : "");

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

  function showRung(section, table, rung, label) {
    const full = Number(section.dataset.scale), unit = section.dataset.unit;
    all(section, "td.worst, td.rung").forEach((cell) => {
      const [value, low, high] = estimate(cell, rung);
      cell.querySelector(".v").textContent = value ? value + (unit && `\u00a0${unit}`) : DASH;
      const interval = bounds(low, high);
      cell.querySelector(".ci").textContent = interval + (interval && unit === "%" ? "\u00a0%" : "");
      const fill = cell.querySelector(".fill"), span = cell.querySelector(".span");
      if (!fill || !value) return;
      fill.setAttribute("width", (100 * value) / full);
      span.setAttribute("x", (100 * low) / full);
      span.setAttribute("width", (100 * (high - low)) / full);
    });
    all(table, ".change").forEach((span) => { span.textContent = span.dataset.changes.split("|")[rung]; });
    all(table, ".rank").forEach((cell) => {
      const place = cell.dataset.ranks.split(",")[rung];
      if (place !== undefined) cell.textContent = place ? place + (cell.dataset.sharing.split(",")[rung] > 1 ? "=" : "") : DASH;
    });
    all(section, ".ranking .eps, .attacks .eps").forEach((eps) => { eps.textContent = label; });
  }

  // show the matrix and its colours at the radius of its board
  function showTransfer(figure, rung, label) {
    all(figure, ".cell").forEach((cell) => {
      const [value, low, high] = estimate(cell, rung);
      const interval = bounds(low, high);
      cell.querySelector(".v").textContent = value || DASH;
      cell.querySelector(".ci").textContent = interval;
      cell.title = cell.title.replace(/^95 % interval [^,]*, /, "");
      if (interval) cell.title = `95 % interval ${interval}, ${cell.title}`;
      cell.className = cell.className.replace(/\bheat\d+/, "");
      if (value) cell.classList.add(`heat${Math.floor(value / 10 + 0.5)}`);
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
      return parseFloat(estimate(cell, rung)[0]);
    };
    return (column, up, rung) => {
      const rows = bodies.map((body) => [body, key(body, column, rung)]);
      rows.sort(([a, x], [b, y]) => {
        // rows without a rank stay below the others in every order
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

  // one filter bar for the page: task and modality select datasets, the other filters rows
  function filters() {
    const bar = document.querySelector(".filters");
    if (!bar) return () => {};
    const groups = all(document, ".group").map((group) => [group, all(group, ".board").map((section) =>
      [section, all(section, "tbody[data-place]"), document.querySelector(`[data-board="${section.id}"]`)])]);
    const inputs = all(bar, "input, select"), reset = document.getElementById("reset");
    const value = (id) => document.getElementById(id)?.value || "";
    const leave = (element, out) => element?.classList.toggle("filtered", out);
    const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
    const apply = () => {
      const words = value("find").toLowerCase().split(/\s+/).filter(Boolean);
      const [task, modality, family, defense] = ["task", "modality", "family", "defense"].map(value);
      const fits = (row) => words.every((word) => row.search.includes(word))
        && (!family || family === row.family) && (!defense || row.defense.split(" ").includes(defense));
      let boards = 0, rows = 0, total = 0, sections = 0;
      groups.forEach(([group, own]) => {
        const chosen = (!task || task === group.dataset.task) && (!modality || modality === group.dataset.modality);
        let left = 0;
        own.forEach(([section, bodies, line]) => {
          const shown = bodies.filter((body) => { const yes = chosen && fits(body.dataset); leave(body, !yes); return yes; }).length;
          leave(section, !shown);
          leave(line, !shown);
          left += shown > 0;
          rows += shown;
          total += bodies.length;
        });
        leave(group, !left);
        leave(document.querySelector(`[data-group="${own[0][0].id}"]`), !left);
        boards += left;
        sections += own.length;
      });
      const every = count(sections, "board") + ", " + count(total, "row");
      bar.querySelector(".count").textContent = rows === total ? every
        : rows ? `${boards} of ${count(sections, "board")}, ${rows} of ${count(total, "row")}` : "No row matches these filters.";
      reset.hidden = inputs.every((input) => !input.value);
    };
    const clear = () => { inputs.forEach((input) => { input.value = ""; }); apply(); };
    inputs.forEach((input) => input.addEventListener("input", apply));
    reset.addEventListener("click", () => { clear(); inputs[0].focus(); });
    apply();
    return clear;
  }

  function drills(table) {
    all(table, ".open").forEach((button) => button.addEventListener("click", () => {
      const drill = document.getElementById(button.getAttribute("aria-controls"));
      const source = drill.querySelector("script");
      if (source) { // most of a page is in these texts, so each is parsed when it is opened
        drill.querySelector(".panel").innerHTML = source.textContent;
        source.remove();
      }
      const shown = drill.classList.toggle("shown");
      button.setAttribute("aria-expanded", String(shown));
      const link = shown ? button.closest("tbody").id : button.closest(".board").id;
      history.replaceState(null, "", `#${link}`);
    }));
  }

  // a phone shows a board when its button is pressed; elsewhere button and class have no effect
  function unfold(section, open = true) {
    const button = section.querySelector(".unfold");
    section.classList.toggle("shown", open);
    button.setAttribute("aria-expanded", String(open));
    button.textContent = `${open ? "Hide" : "Show"} the ${button.dataset.of || "board"}`;
  }

  // a link to a row or a card opens it, even if the filters hide it
  function follow(clear) {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    if (target.closest(".filtered")) clear();
    if (target.matches("details")) target.open = true;
    const section = target.closest(".board");
    if (section) unfold(section);
    const button = target.matches("tbody") && target.querySelector(".open");
    if (button && button.getAttribute("aria-expanded") === "false") button.click();
    target.scrollIntoView();
    button?.focus?.({ preventScroll: true });
  }

  function slides() {
    all(document, ".slide").forEach((slide) => {
      const pair = slide.closest(".pair");
      const move = () => {
        pair.style.setProperty("--at", `${slide.value}%`);
        slide.setAttribute("aria-valuetext", `${slide.value} % clean, ${100 - slide.value} % attacked`);
      };
      slide.addEventListener("input", move);
      move();
    });
  }

  // the page holds the file leaderboard.csv, compressed by gzip and written in base64
  async function csv() {
    const bytes = Uint8Array.from(atob(document.getElementById("csv").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  const json = () => JSON.stringify(JSON.parse(document.getElementById("data").textContent), null, 1);

  function downloads() {
    const kinds = { csv: ["text/csv", csv, "leaderboard.csv"], json: ["application/json", json, "leaderboard.json"] };
    all(document, "[data-save]").forEach((button) => button.addEventListener("click", async () => {
      const [type, write, name] = kinds[button.dataset.save];
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([await write()], { type }));
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
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
    section.querySelector(".unfold").addEventListener("click", () => unfold(section, !section.classList.contains("shown")));
    const table = section.querySelector(".ranking");
    if (!table) return; // a study
    const sort = sorter(table);
    let column = "worst", up = false;
    const rung = () => Number(section.querySelector(".radius :checked").value);
    all(section, ".radius input").forEach((input) => input.addEventListener("change", () => {
      showRung(section, table, rung(), input.dataset.label);
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
    drills(table);
    highlight(section, table);
    // a browser keeps the chosen radius when the page is reloaded, so show that radius
    const chosen = section.querySelector(".radius :checked");
    if (!chosen.defaultChecked) chosen.dispatchEvent(new Event("change"));
  }

  // a menu closes on Escape and on a click outside it
  const closeMenus = (event) => all(document, ".columns[open], .jump[open]").forEach((menu) => {
    const away = event.type === "click" && (!menu.contains(event.target) || event.target.closest("a"));
    if (event.key === "Escape" || away) menu.open = false;
  });
  document.addEventListener("click", closeMenus);
  document.addEventListener("keydown", closeMenus);

  theme(document.getElementById("theme"));
  all(document, ".board").forEach(board);
  slides();
  downloads();
  const clear = filters();
  addEventListener("hashchange", () => follow(clear));
  document.addEventListener("click", ({ target }) => { // a second click on the same link opens it again
    if (target.closest("a")?.getAttribute("href") === location.hash) follow(clear);
  });
  follow(clear);
  document.addEventListener("click", async ({ target }) => {
    const button = target.closest(".copy");
    if (!button) return;
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch { // no clipboard for this page: select the text instead
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  });
})();
