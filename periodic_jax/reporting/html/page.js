"use strict";
// Draws the run in #data. All words come into the page as text, never as markup; plotly, which reads some markup, gets
// no words of the run.
(() => {
  const el = (id) => document.getElementById(id);
  const live = JSON.parse(el("live").textContent);
  let run = JSON.parse(el("data").textContent);
  let chosen = run.first, kept = null, range = [0, 0], others = [], listening = false;
  const cache = new Map();

  const make = (tag, text, into, set) => {
    const node = document.createElement(tag);
    if (text !== null && text !== undefined) node.textContent = text;
    Object.assign(node, set || {});
    if (into) into.appendChild(node);
    return node;
  };
  const unpack = (text, Type) => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Type(bytes.buffer);
  };
  const arrays = (i) => {
    if (!cache.has(i)) {
      const c = run.configs[i];
      cache.set(i, {
        steps: unpack(c.steps, Uint32Array), curves: c.curves.map((t) => unpack(t, Float32Array)),
        evalSteps: unpack(c.eval_steps, Uint32Array), evaluations: c.evaluations.map((t) => unpack(t, Float32Array)),
        onsets: unpack(c.onsets, Uint32Array), ends: unpack(c.ends, Uint32Array),
      });
    }
    return cache.get(i);
  };
  const number = (v, format) => {  // as tables print it
    if (v === null) return "-";
    if (format === "percent") return (100 * v).toFixed(1) + " %";
    if (format === "whole" && Math.abs(v) < 1e9) return v.toFixed(0);
    if (format === ".2f") return v.toFixed(2);
    return v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5) ? v.toExponential(2) : String(Number(v.toPrecision(3)));
  };
  const title = (i) => run.axes.map((a, k) => a.title + " " + a.words[run.configs[i].at[k]]).join(", ");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  // The configuration in a cell of the map, for the chosen values of the other axes; -1 for none.
  const inCell = (column, row) =>
    run.configs.findIndex((c) => c.at[0] === column && c.at[1] === row && others.every((v, k) => c.at[k + 2] === v));

  function drawSelectors() {
    const place = el("selectors");
    place.replaceChildren();
    run.axes.slice(2).forEach((axis, k) => {
      const label = make("label", axis.title + " ", place);
      const select = make("select", null, label, { id: "select-" + axis.name });
      axis.words.forEach((word, i) => make("option", word, select, { value: i }));
      select.value = others[k];
      select.addEventListener("change", () => {
        others[k] = Number(select.value);
        const [column, row] = run.configs[chosen].at;
        let next = inCell(column, row);
        if (next < 0) next = run.configs.findIndex((c) => others.every((v, j) => c.at[j + 2] === v));
        drawMap();
        if (next >= 0) choose(next);
      });
    });
  }

  const isFaint = (c) => c.regime !== "undecided" && c.numbers[0] !== null && c.numbers[0] < run.faint;

  function drawMap() {
    const table = el("map"), [across, up] = run.axes;
    table.replaceChildren();
    table.className = across.words.length > 12 ? "large" : "";
    for (let row = up.words.length - 1; row >= 0; row--) {
      const tr = make("tr", null, table);
      make("th", (row === up.words.length - 1 ? up.title + " " : "") + up.words[row], tr, { scope: "row" });
      for (let column = 0; column < across.words.length; column++) {
        const td = make("td", null, tr), i = inCell(column, row);
        if (i < 0) continue;
        const c = run.configs[i], count = c.numbers[1];
        const button = make("button", c.regime[0].toUpperCase() + (count ? " " + count : ""), td, { tabIndex: -1 });
        const sure = c.numbers[0], faint = isFaint(c);
        button.style.background = (run.regimes[c.regime] || "#ffffff") + (faint ? "66" : "");
        button.classList.toggle("dark", c.regime === "diverged" && !faint);
        button.dataset.config = i;
        button.setAttribute("aria-label", `${title(i)}: ${c.regime}, confidence ${number(sure, ".2f")}, ${count} destabilisations`);
      }
    }
    const foot = make("tr", null, table);
    make("th", null, foot);
    across.words.forEach((word) => make("th", word, foot, { scope: "col" }));
    const last = make("tr", null, table);
    make("th", null, last);
    make("th", across.title, last, { colSpan: across.words.length });
    const legend = el("legend");
    legend.replaceChildren();
    Object.entries(run.regimes).forEach(([name, value]) => {
      if (!run.configs.some((c) => c.regime === name)) return;
      const span = make("span", null, legend);
      make("i", null, span).style.background = value;
      span.append(`${name[0].toUpperCase()}: ${name}`);
    });
    if (run.configs.some(isFaint)) make("span", `faint: confidence below ${run.faint}`, legend);
    markCells();
  }

  function markCells() {
    for (const button of el("map").querySelectorAll("button")) {
      const i = Number(button.dataset.config);
      button.setAttribute("aria-pressed", String(i === chosen));
      button.tabIndex = i === chosen ? 0 : -1;
      button.classList.toggle("kept", i === kept);
    }
    el("keep").textContent = kept === null ? "Compare" : "Stop comparing";
  }

  function drawNumbers() {
    const shown = kept === null || kept === chosen ? [chosen] : [chosen, kept];
    el("chosen").textContent = shown.map(title).join("  |  ");
    el("because").textContent = shown.map((i) => run.configs[i].regime + ": " + run.configs[i].because).join("  |  ");
    const table = el("facts");
    table.replaceChildren();
    const rows = (words, key) => words.forEach((word, k) => {
      const tr = make("tr", null, table);
      make("th", null, tr, { scope: "row" }).append(make("span", word, null, { title: run.help[key][k] }));
      shown.forEach((i) => make("td", number(run.configs[i][key][k], run.formats[key][k]), tr));
    });
    if (shown.length > 1) {
      const head = make("tr", null, table);
      make("th", "colour of its curves", head, { scope: "row" });
      ["first", "second"].forEach((name, s) => {
        make("td", s ? "\u2501\u2501 kept" : "\u2501\u2501 chosen", head).style.color = `var(--${name})`;
      });
    }
    rows(run.numbers, "numbers");
    rows(run.theory, "theory");
    const tr = make("tr", null, table);
    make("th", "checks violated / that apply", tr, { scope: "row" });
    shown.forEach((i) => {
      const known = run.configs[i].checks.filter((v) => v !== null);
      const bad = run.checks.filter((_, k) => run.configs[i].checks[k]);
      make("td", `${bad.length} / ${known.length}${bad.length ? ": " + bad.join(", ") : ""}`, tr);
    });
  }

  const span = (steps) => {  // positions within the chosen steps
    let first = 0, last = steps.length;
    while (first < last && steps[first] < range[0]) first++;
    while (last > first && steps[last - 1] > range[1]) last--;
    return [first, last];
  };

  // Positions of the lowest and highest values of some curves in each of DRAWN equal stretches of the chosen steps.
  const DRAWN = 200;
  const thin = (steps, curves, first, last) => {
    const all = Array.from({ length: last - first }, (_, k) => first + k);
    if (all.length <= 2 * DRAWN) return all;
    const width = Math.max(range[1] - range[0], 1) / DRAWN, kept = [first];
    for (let k = first; k < last;) {
      const begin = k, end = range[0] + (Math.floor((steps[k] - range[0]) / width) + 1) * width;
      do k++; while (k < last && steps[k] < end);
      const found = [];
      curves.forEach((y) => {
        let low = begin, high = begin;
        for (let j = begin; j < k; j++) {
          if (y[j] < y[low] || Number.isNaN(y[low])) low = j;
          if (y[j] > y[high] || Number.isNaN(y[high])) high = j;
        }
        found.push(low, high);
      });
      found.sort((a, b) => a - b).forEach((j) => j > kept[kept.length - 1] && kept.push(j));
    }
    if (kept[kept.length - 1] < last - 1) kept.push(last - 1);
    return kept;
  };

  function sayHowFine() {
    const drawn = Math.max(run.bucket, Math.ceil((range[1] - range[0]) / DRAWN)), all = 2;
    const held = run.bucket <= all ? "every step" : `those of every ${run.bucket} steps`;
    el("decimated").textContent = "Drag over a curve to choose steps, double-click for all. "
      + (drawn <= all ? "Every step is drawn." : `Curves are drawn through their lowest and highest values of every ${drawn} steps, `
        + "which keeps all jumps" + (drawn > run.bucket ? `; this page holds ${held}: choose fewer steps to see them.`
          : ". This page holds no finer ones."))
      + " Short strokes above the curves mark onsets of destabilisations.";
  }

  function drawPlots() {
    const shown = kept === null || kept === chosen ? [chosen] : [chosen, kept];
    const text = colour("text"), line = colour("line"), tints = [colour("first"), colour("second")];
    const panels = [...run.curves.map((q) => ({ ...q, log: true })), ...run.evaluations];
    const gap = 0.02, strip = 0.03, height = (1 - strip) / Math.max(panels.length, 1);
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, exponentformat: "power",
      ticklabeloverflow: "allow" };  // measuring which labels fit takes an eighth of the time
    // High enough to read, and low enough that all curves are seen at once.
    const above = el("curves").getBoundingClientRect().top + window.scrollY;
    const each = Math.max(85, Math.min(150, (window.innerHeight - above - 70) / Math.max(panels.length, 1)));
    const layout = {
      height: Math.round(each * panels.length + 60), margin: { l: 60, r: 22, t: 10, b: 40 }, showlegend: false, hovermode: "closest",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, size: 11 }, dragmode: "zoom",
      xaxis: { ...axis, tickformat: "~s", title: { text: "step" }, anchor: "y" + (panels.length + 1), range: [...range] },
      yaxis: { domain: [1 - strip, 1], visible: false, range: [-1, 1], fixedrange: true },
    };
    const plotted = layout.height - layout.margin.t - layout.margin.b;
    const traces = [], rings = [], loops = [];
    shown.forEach((i, s) => {
      const a = arrays(i), tint = tints[s], [first, last] = span(a.steps), [e, f] = span(a.evalSteps), [o, p] = span(a.onsets);
      const ex = Array.from(a.evalSteps.subarray(e, f));
      traces.push({ x: Array.from(a.onsets.subarray(o, p)), y: new Array(p - o).fill(s ? -0.5 : 0.5), mode: "markers",
        marker: { symbol: "line-ns-open", size: 8, color: tint }, hovertemplate: "onset at step %{x}<extra></extra>" });
      panels.forEach((panel, k) => {
        const perStep = k < run.curves.length;
        const source = perStep ? a.curves[k] : a.evaluations[k - run.curves.length];
        const at = perStep ? thin(a.steps, [source], first, last) : [];
        const x = perStep ? at.map((j) => a.steps[j]) : ex;
        const y = perStep ? at.map((j) => source[j]) : Array.from(source.subarray(e, f));
        traces.push({ x, y, yaxis: "y" + (k + 2), mode: "lines", name: String(i),
          line: { color: tint, width: 1 }, hovertemplate: `step %{x}: %{y${panel.percent ? ":.1%" : ""}}<extra></extra>` });
      });
      const elr = run.curves.findIndex((q) => q.name === "effective_lr");
      const grad = run.curves.findIndex((q) => q.name === "effective_grad_norm");
      if (elr < 0 || grad < 0 || first === last) return;
      const px = a.curves[elr], py = a.curves[grad];
      const before = { x: [], y: [] }, A = { x: [], y: [] }, B = { x: [], y: [] };
      const begin = a.onsets.length ? a.onsets[0] : Infinity;  // what comes before is of no period
      let k = 0;
      thin(a.steps, [px, py], first, last).forEach((j) => {
        const step = a.steps[j];
        while (k < a.ends.length && a.ends[k] < step) k++;
        const burst = k < a.onsets.length && a.onsets[k] <= step;
        const border = burst && (step === a.onsets[k] || step === a.ends[k]);
        before.x.push(px[j]); before.y.push(step <= begin ? py[j] : null);
        A.x.push(px[j]); A.y.push(step >= begin && (!burst || border) ? py[j] : null);
        B.x.push(px[j]); B.y.push(burst ? py[j] : null);
      });
      loops.push({ ...before, mode: "lines", opacity: 0.35, line: { color: tint, width: 0.8 },
        hovertemplate: "before the first onset<extra></extra>" });
      loops.push({ ...A, mode: "lines", line: { color: tint, width: 0.8 }, hovertemplate: "phase A<extra></extra>" });
      loops.push({ ...B, mode: "lines", line: { color: colour("burst"), width: 1.3, dash: s ? "dot" : "solid" },
        hovertemplate: "phase B<extra></extra>" });
      rings.push({ x: [px[first]], y: [py[first]], mode: "markers", hovertemplate: "start<extra></extra>",
        marker: { symbol: "circle-open", size: 11, color: text, line: { width: 2 } } });
    });
    const labels = el("labels");
    labels.replaceChildren();  // plotly's own take it two milliseconds each
    panels.forEach((panel, k) => {
      const top = 1 - strip - k * height;
      make("span", panel.title, labels, { title: panel.help }).style.top = layout.margin.t + (1 - top) * plotted + "px";
      layout["yaxis" + (k + 2)] = { ...axis, domain: [Math.max(top - height + gap, 0), top - 0.015],
        type: panel.log ? "log" : "linear", nticks: panel.log ? 3 : 5, ...(panel.percent ? { tickformat: "~%" } : {}) };
    });
    const options = { responsive: true, displaylogo: false, displayModeBar: false };
    const tall = Math.min(520, Math.max(320, window.innerHeight * 0.6));
    const loop = {
      height: tall, margin: { l: 60, r: 10, t: 30, b: 50 },
      showlegend: false, hovermode: "closest", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: text, size: 11 }, title: { text: "ring: start; faint: before the first onset; phase B (destabilisations) in orange", font: { size: 12 } },
      xaxis: { ...axis, type: "log", title: { text: "effective learning rate" } },
      yaxis: { ...axis, type: "log", title: { text: "effective gradient norm" } },
    };
    el("curves").style.height = layout.height + "px";
    el("phase").style.height = tall + "px";
    sayHowFine();
    Plotly.react("curves", traces, layout, options);
    Plotly.react("phase", [...loops, ...rings], loop, options);
    if (!listening) {
      listening = true;
      el("curves").on("plotly_relayout", (change) => {
        if ("xaxis.range[0]" in change) setRange(change["xaxis.range[0]"], change["xaxis.range[1]"]);
        else if (change["xaxis.autorange"]) setRange(0, run.steps);
      });
    }
  }

  function setRange(first, last) {
    first = Math.max(0, Math.min(Math.round(first), run.steps));
    last = Math.max(0, Math.min(Math.round(last), run.steps));
    range = [Math.min(first, last), Math.max(first, last)];
    showRange();
    drawPlots();
  }

  function showRange() {
    ["from", "to"].forEach((id, k) => {
      el(id).max = run.steps;
      el(id).value = range[k];
      el(id + "-step").textContent = range[k];
    });
  }

  function choose(i, focus) {
    chosen = i;
    if (others.some((v, k) => v !== run.configs[i].at[k + 2])) {
      others = run.configs[i].at.slice(2);
      drawSelectors();
      drawMap();
    }
    markCells();
    if (focus) el("map").querySelector(`button[data-config="${i}"]`).focus();
    drawNumbers();
    drawPlots();
    document.body.dataset.chosen = i;
  }

  function keep() {
    kept = kept === null ? chosen : null;
    markCells();
    drawNumbers();
    drawPlots();
  }

  function move(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (steps && event.target.dataset.config !== undefined) {
      event.preventDefault();
      let [column, row] = run.configs[Number(event.target.dataset.config)].at;
      for (;;) {  // over the empty cells of a grid that is no product
        column += steps[0];
        row += steps[1];
        if (column < 0 || row < 0 || column >= run.axes[0].words.length || row >= run.axes[1].words.length) return;
        const i = inCell(column, row);
        if (i >= 0) return choose(i, true);
      }
    }
    const typing = event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey;
    if (!typing && event.key.toLowerCase() === "c" && run.configs.length) keep();
    if (event.key === "Escape" && kept !== null) keep();
  }

  function csv() {
    const shown = kept === null || kept === chosen ? [chosen] : [chosen, kept];
    const names = [...run.curves, ...run.evaluations].map((q) => q.name);
    const lines = [["config", ...run.axes.map((a) => a.name), "step", ...names].join(",")];
    const cell = (v) => (Number.isFinite(v) ? String(v) : "");
    shown.forEach((i) => {
      const a = arrays(i), head = [i, ...run.axes.map((axis, k) => axis.values[run.configs[i].at[k]])];
      const [first, last] = span(a.steps), [e, f] = span(a.evalSteps);
      for (let k = first; k < last; k++)
        lines.push([...head, a.steps[k], ...a.curves.map((c) => cell(c[k])), ...a.evaluations.map(() => "")].join(","));
      for (let k = e; k < f; k++)
        lines.push([...head, a.evalSteps[k], ...a.curves.map(() => ""), ...a.evaluations.map((c) => cell(c[k]))].join(","));
    });
    return lines.join("\n") + "\n";
  }

  function download() {
    const link = make("a", null, document.body, { download: "periodic_jax.csv" });
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.click();
    setTimeout(() => { URL.revokeObjectURL(link.href); link.remove(); }, 1000);
  }

  function start() {
    cache.clear();
    el("name").textContent = run.name || "run";
    el("summary").replaceChildren();
    el("headline").textContent = run.headline;
    el("about").textContent = run.summary[0];
    run.summary.slice(1).forEach((sentence) => make("p", sentence, el("summary")));
    const some = run.configs.length > 0;
    ["choice", "numbers", "pictures", "findings"].forEach((id) => { el(id).hidden = !some; });
    if (!some) return;
    const focused = el("map").contains(document.activeElement);  // before its cells are made anew
    chosen = Math.min(chosen, run.configs.length - 1);
    others = run.configs[chosen].at.slice(2);
    drawSelectors();
    drawMap();
    showRange();
    choose(chosen, focused);
  }

  function refresh() {
    fetch("data.json").then((answer) => (answer.ok ? answer.json() : null)).then((fresh) => {
      if (!fresh) return;
      const whole = range[0] === 0 && range[1] === run.steps;
      run = fresh;
      if (whole) range = [0, run.steps];
      start();
    }).catch(() => {}).finally(() => setTimeout(refresh, 1000 * live));
  }

  el("map").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) choose(Number(button.dataset.config), true);
  });
  document.addEventListener("keydown", move);
  el("from").addEventListener("input", () => setRange(el("from").value, Math.max(range[1], el("from").value)));
  el("to").addEventListener("input", () => setRange(Math.min(range[0], el("to").value), el("to").value));
  el("all").addEventListener("click", () => setRange(0, run.steps));
  el("keep").addEventListener("click", keep);
  el("csv").addEventListener("click", download);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => run.configs.length && drawPlots());
  window.report = { csv };  // for tests
  range = [0, run.steps];
  start();
  if (live) setTimeout(refresh, 1000 * live);
})();
