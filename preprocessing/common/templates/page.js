// Tabs, sortable tables, groups that fold, pictures that enlarge and the current place in the navigation.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (name, properties, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  for (const tabs of all(".tabs")) {
    const panels = all(":scope > section", tabs);
    if (panels.length < 2) continue;
    const buttons = panels.map((panel) => make("button", { type: "button", role: "tab" }, panel.dataset.tab));
    const show = (chosen) => panels.forEach((panel, i) => {
      panel.hidden = i !== chosen;
      buttons[i].setAttribute("aria-selected", i === chosen);
      buttons[i].tabIndex = i === chosen ? 0 : -1;
    });
    buttons.forEach((button, i) => {
      panels[i].setAttribute("role", "tabpanel");
      button.onclick = () => show(i);
      button.onkeydown = (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = (i + step + panels.length) % panels.length;
        show(next);
        buttons[next].focus();
      };
    });
    tabs.prepend(make("div", { className: "tablist", role: "tablist" }, ...buttons));
    show(0);
  }

  const number = (cell) => {
    const value = parseFloat(cell.textContent.replace(/,/g, "").replace("−", "-"));
    return Number.isNaN(value) ? null : value;
  };
  const compare = (column, sign) => (a, b) => {
    const [x, y] = [a.cells[column], b.cells[column]];
    const [m, n] = [number(x), number(y)];
    if (m !== null && n !== null) return sign * (m - n);
    if (m !== null || n !== null) return m === null ? 1 : -1;  // cells without a number last
    return sign * x.textContent.localeCompare(y.textContent);
  };
  for (const table of all("table").filter((each) => each.tHead)) {
    const heads = all("thead tr:last-child th", table);
    const spanned = all("thead tr:first-child th[rowspan]", table);
    [...spanned, ...heads].forEach((head, column) => {
      const button = make("button", { type: "button", title: "sort" }, ...head.childNodes);
      head.append(button);
      button.onclick = () => {
        const first = table.querySelector("tbody tr:not(.group)")?.cells[column];
        const before = head.getAttribute("aria-sort");
        // numbers start with the largest, names with the first
        const down = before ? before === "ascending" : Boolean(first) && number(first) !== null;
        all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        for (const body of table.tBodies) {
          const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
          body.append(...rows.sort(compare(column, down ? -1 : 1)));
        }
      };
    });
  }

  for (const head of all("tr.group > th")) {
    const button = make("button", { type: "button", title: "fold" }, ...head.childNodes);
    head.append(button);
    button.setAttribute("aria-expanded", true);
    button.onclick = () => {
      const folded = head.closest("tbody").classList.toggle("folded");
      button.setAttribute("aria-expanded", !folded);
    };
  }

  const dialog = make("dialog", { className: "large" });
  dialog.onclick = () => dialog.close();
  document.body.append(dialog);
  for (const picture of all("figure img")) {
    picture.classList.add("enlarges");
    picture.onclick = () => {
      dialog.replaceChildren(make("img", { src: picture.src, alt: picture.alt }));
      dialog.showModal();
    };
  }

  const menu = document.getElementById("menu");
  const links = new Map(all("nav li a[href^='#']").map((link) => [link.hash.slice(1), link]));
  for (const link of links.values()) link.onclick = () => { if (menu) menu.checked = false; };
  const places = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  const mark = () => {
    const passed = places.filter((place) => place.getBoundingClientRect().top < 120);
    const current = passed.length ? passed[passed.length - 1].id : null;
    for (const [id, link] of links) link.classList.toggle("current", id === current);
  };
  addEventListener("scroll", mark, { passive: true });
  mark();

  // A link to something folded away opens it.
  const reveal = () => {
    for (let e = document.getElementById(location.hash.slice(1)); e; e = e.parentElement) {
      if (e.localName === "details") e.open = true;
    }
  };
  addEventListener("hashchange", reveal);
  reveal();
})();
