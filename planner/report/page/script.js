"use strict";
(() => {
  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const narrow = () => !printing && window.innerWidth < 640;
  const PAPER = 680; // pixels that fit between the margins of A4 and of US letter
  let printing = false;

  // How many rows the legend takes: the library would guess anew at every size, and overlap.
  function legendRows(names, width) {
    if (!names.length) return 0;
    const each = Math.max(...names.map((name) => name.length)) * (narrow() ? 6.5 : 7.5) + 55;
    return Math.ceil(names.length / Math.max(1, Math.floor((width - 60) / each)));
  }

  // Charts come as data without colours of their own; the page's style gives them.
  function themed(layout, traces, width) {
    const named = traces.filter((t) => t.name && t.showlegend !== false).map((t) => t.name);
    const legend = layout.showlegend === false || named.length < 2 ? [] : named;
    const rows = legendRows(legend, width);
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"),
      zerolinecolor: colour("--line"), automargin: true };
    const out = { ...layout, autosize: true, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--fg"), family: "system-ui, sans-serif", size: narrow() ? 11 : 13 },
      hoverlabel: { bgcolor: colour("--soft"), bordercolor: colour("--line"),
        font: { color: colour("--fg") } },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1, yref: "container", yanchor: "top",
        traceorder: "normal" },
      margin: { l: 50, r: 20, t: 18 + 21 * rows, b: 45 } };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis/.test(name)) out[name] = { ...axis, ...layout[name] };
    }
    out.shapes = (layout.shapes || []).map((s) =>
      ({ ...s, line: { color: colour("--bad"), width: 2, dash: "dash", ...(s.line || {}) } }));
    out.annotations = (layout.annotations || []).map((a) =>
      ({ showarrow: false, font: { color: colour("--bad"), size: 12 }, ...a }));
    return out;
  }

  // Labels of neighbouring points would lie on each other: the first and the last stay.
  function thinned(trace) {
    if (trace.mode !== "markers+text") return;
    trace.hovertext = trace.text;
    trace.text = trace.text.map((t, i, all) => (i === 0 || i === all.length - 1 ? t : ""));
    trace.hovertemplate = trace.hovertemplate.replace("%{text}", "%{hovertext}");
  }

  function draw(place) {
    if (!window.Plotly) return; // not unpacked yet: every chart is drawn once it is
    const source = document.getElementById(`${place.id}-data`);
    const chart = JSON.parse(source.textContent);
    const width = printing ? PAPER : place.clientWidth;
    place.style.width = printing ? `${width}px` : "";
    if (narrow()) chart.data.forEach(thinned);
    Plotly.react(place, chart.data, themed(chart.layout, chart.data, width),
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
  const print = (now) => { printing = now; again(); };

  // The library is packed; what it unpacks to must have the hash that the page's policy names.
  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }
  async function load() {
    const library = document.createElement("script");
    try {
      library.textContent = await unpacked(document.getElementById("library").textContent);
    } catch {
      document.querySelectorAll(".chart").forEach((place) => {
        place.style.height = "auto";
        place.textContent = "This browser is too old to draw the chart; those since 2023 do.";
      });
      return;
    }
    document.head.append(library);
    again();
  }
  load();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  matchMedia("print").addEventListener("change", (event) => print(event.matches));
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));
})();
