"use strict";
(() => {
  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const narrow = () => window.innerWidth < 640;

  // Charts come as data without colours of their own; the page's style gives them.
  function themed(layout) {
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"),
      zerolinecolor: colour("--line"), automargin: true };
    const out = { ...layout, autosize: true, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--fg"), family: "system-ui, sans-serif", size: narrow() ? 11 : 13 },
      hoverlabel: { bgcolor: colour("--soft"), bordercolor: colour("--line"),
        font: { color: colour("--fg") } },
      legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom",
        traceorder: "normal",
        ...(layout.legend || {}) },
      margin: { l: 50, r: 15, t: 30, b: 45, ...(layout.margin || {}) } };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis/.test(name)) out[name] = { ...axis, ...layout[name] };
    }
    out.shapes = (layout.shapes || []).map((s) =>
      ({ ...s, line: { color: colour("--bad"), width: 2, dash: "dash", ...(s.line || {}) } }));
    out.annotations = (layout.annotations || []).map((a) =>
      ({ showarrow: false, font: { color: colour("--bad"), size: 12 }, ...a }));
    return out;
  }

  function draw(place) {
    const source = document.getElementById(`${place.id}-data`);
    const chart = JSON.parse(source.textContent);
    Plotly.react(place, chart.data, themed(chart.layout),
      { responsive: true, displayModeBar: false, displaylogo: false });
  }
  const seen = (place) => place.offsetParent !== null;
  const drawSeen = (root) => root.querySelectorAll(".chart").forEach((p) => seen(p) && draw(p));

  document.querySelectorAll("[role=tablist]").forEach((list) => {
    const tabs = [...list.querySelectorAll("[role=tab]")];
    const choose = (tab) => {
      tabs.forEach((other) => {
        const chosen = other === tab;
        other.setAttribute("aria-selected", String(chosen));
        other.tabIndex = chosen ? 0 : -1;
        document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
      });
      drawSeen(document.getElementById(tab.getAttribute("aria-controls")));
    };
    tabs.forEach((tab, index) => {
      tab.addEventListener("click", () => choose(tab));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = tabs[(index + step + tabs.length) % tabs.length];
        next.focus();
        choose(next);
      });
    });
  });

  async function copied(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  }
  document.querySelectorAll(".copy").forEach((button) =>
    button.addEventListener("click", async () => {
      const done = await copied(button.parentElement.querySelector("code").textContent);
      button.textContent = done ? "Copied" : "Select it and press Ctrl+C";
      document.getElementById("said").textContent = button.textContent;
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    }));

  const key = (row, index) => {
    const cell = row.cells[index];
    const text = cell.dataset.key ?? cell.textContent;
    const number = Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text;
  };
  const compare = (a, b) => {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  };
  document.querySelectorAll("table.sortable th button").forEach((button) =>
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const up = head.getAttribute("aria-sort") !== "ascending";
      const body = head.closest("table").tBodies[0];
      head.parentElement.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [key(row, head.cellIndex), row]);
      rows.sort(([a], [b]) => (up ? compare(a, b) : compare(b, a)));
      body.append(...rows.map(([, row]) => row));
    }));

  const again = () => drawSeen(document);
  again();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  matchMedia("print").addEventListener("change", again);
  window.addEventListener("beforeprint", again);
  window.addEventListener("afterprint", again);
})();
