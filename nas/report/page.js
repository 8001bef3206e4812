// Draws what the page's data holds, sorts its tables, shows a trial where the pointer is. No library, no network.
"use strict";
(() => {
  const state = { x: "params", cost: "epochs", sort: {}, filter: "", shown: 50, brushes: {}, open: new Set() };
  const tip = document.getElementById("tip");
  let data = null;

  // ------------------------------------------------------------------------------------------------ small things

  const escape = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
  const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(2));
  const shown = (value) => (typeof value === "number" ? String(+value.toPrecision(4)) : String(value));
  const count = (value) => {
    if (value === null || value === undefined) return "–";
    for (const [unit, size] of [[" G", 1e9], [" M", 1e6], [" k", 1e3]])
      if (value >= size) return +(value / size).toPrecision(3) + unit;
    return String(+value.toPrecision(3));
  };
  const total = (trial) => Object.values(trial.seconds).reduce((sum, s) => sum + (s ?? 0), 0);
  const archText = (arch) => Object.entries(arch).map(([name, value]) => `${name}=${shown(value)}`).join(" ");
  const value = (trial) => trial.score ?? trial.valid;
  const known = (number) => number !== null && number !== undefined && Number.isFinite(number);
  const color = (trial) => data.rows[data.runs[trial.run].row].color;
  const scored = () => data.trials.some((t) => "score" in t);
  const node = (tag, attributes = {}, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, v] of Object.entries(attributes)) made.setAttribute(name, v);
    made.append(...children);
    return made;
  };

  // ------------------------------------------------------------------------------------------------------ scales

  // An axis: place(v) in pixels and the ticks that leave each other room.
  function linear(low, high, from, to, whole = false) {
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    const place = (v) => from + ((v - low) / (high - low)) * (to - from);
    const raw = (high - low) / Math.max(2, Math.abs(to - from) / 70), power = 10 ** Math.floor(Math.log10(raw));
    const step = Math.max(whole ? 1 : 0, power * [1, 2, 5, 10].find((n) => n * power >= raw)), ticks = [];
    for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * step; k++) ticks.push([k * step, shown(+(k * step).toPrecision(10))]);
    return { place, ticks };
  }
  function logarithmic(low, high, from, to) {
    if (low === high) [low, high] = [low / 2, high * 2];
    const place = (v) => from + (Math.log(v / low) / Math.log(high / low)) * (to - from), ticks = [];
    let last = -Infinity;
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      for (const n of [1, 2, 5]) {
        const v = n * 10 ** e;
        if (v >= low && v <= high && Math.abs(place(v) - last) > 44) ticks.push([v, count(v)]), (last = place(v));
      }
    if (ticks.length < 2) return { place, ticks: linear(low, high, from, to).ticks.map(([v]) => [v, count(v)]) };
    return { place, ticks };
  }
  // Accuracy: even in the logarithm of the error, as in the pictures.
  function accuracy(values, from, to, low = null) {
    const errors = values.map((v) => 1 - v), positive = errors.filter((e) => e > 0);
    const added = positive.length < errors.length ? Math.min(1, ...positive) / 2 || 0.005 : 0;
    const f = (v) => -Math.log(Math.max(1 + added - v, 1e-9));
    let a = f(low ?? Math.min(...values)), b = f(Math.max(...values));
    const margin = Math.max(0.05 * (b - a), 0.004);
    [a, b] = [a - margin, b + margin];
    const place = (v) => from + ((Math.max(f(v), a) - a) / (b - a)) * (to - from), ticks = [];
    const wanted = [0, 50, 80, 90, 95, 98, 99, 99.5, 99.9, 100, 70, 60, 85, 97, 40, 20, 30, 10, 75, 93, 96, 92, 88, 94, 99.8, 98.5];
    for (let p = 65; p < 100; p++) wanted.push(p);
    const fitting = (texts) => {
      const kept = [];
      for (const p of texts)
        if (f(p / 100) >= a && f(p / 100) <= b && kept.length < 8 && kept.every((q) => Math.abs(place(q / 100) - place(p / 100)) > 24)) kept.push(p);
      return kept;
    };
    const back = (scaled) => Math.max(0, 1 + added - Math.exp(-scaled));
    let kept = fitting(wanted);
    if (kept.length < 3) kept = fitting(linear(100 * back(a), 100 * back(b), from, to).ticks.map(([v]) => v));
    for (const p of kept) ticks.push([p / 100, shown(+p.toPrecision(8))]);
    return { place, ticks };
  }

  function frame(plot, height, margin = { left: 56, right: 16, top: 10, bottom: 44 }, width = null) {
    width = width ?? Math.min(Math.max(plot.clientWidth, 280), 900);
    const svg = node("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
    plot.replaceChildren(svg);
    return { svg, left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom };
  }
  function axes(at, x, y, xName, yName) {
    for (const [v, text] of y.ticks) {
      at.svg.append(node("line", { class: "grid", x1: at.left, x2: at.right, y1: y.place(v), y2: y.place(v) }));
      at.svg.append(node("text", { class: "ytick", x: at.left - 6, y: y.place(v) + 4, "text-anchor": "end" }, text));
    }
    let last = -Infinity;
    for (const [v, text] of x.ticks) {
      const half = 3.6 * text.length;
      if (x.place(v) - half < last + 4) continue;
      last = x.place(v) + half;
      at.svg.append(node("text", { class: "xtick", x: x.place(v), y: at.bottom + 17, "text-anchor": "middle" }, text));
    }
    at.svg.append(node("line", { class: "axis", x1: at.left, x2: at.right, y1: at.bottom, y2: at.bottom }));
    at.svg.append(node("text", { class: "soft", x: (at.left + at.right) / 2, y: at.bottom + 36, "text-anchor": "middle" }, xName));
    const middle = (at.top + at.bottom) / 2;
    at.svg.append(node("text", { class: "soft", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, yName));
  }
  const line = (points, attributes) => node("path", { fill: "none", d: points.map(([x, y], k) => `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join(""), ...attributes });
  const marked = (hex) => (hex === "#000000" ? { class: "mark", "data-dark": "" } : { class: "mark" });
  const keys = () => (data.rows.length < 2 ? "" : data.rows.map((row) => `<span class="key"><i ${row.color === "#000000" ? 'class="mark" data-dark' : 'class="mark"'} style="background:${row.color}"></i>${escape(row.name)}</span>`).join(""));
  function choose(controls, label, options, key, redraw) {
    controls.innerHTML = `<label>${label} <select>${Object.entries(options).map(([v, text]) => `<option value="${escape(v)}"${v === state[key] ? " selected" : ""}>${escape(text)}</option>`).join("")}</select></label>${keys()}`;
    controls.querySelector("select").onchange = (event) => ((state[key] = event.target.value), redraw());
  }

  // --------------------------------------------------------------------------------------------------- the tip

  function spark(trial) {
    const points = trial.curve.filter((p) => known(p[1]));
    if (points.length < 2) return "";
    const x = linear(points[0][0], points.at(-1)[0], 2, 158), y = linear(Math.min(...points.map((p) => p[1])), Math.max(...points.map((p) => p[1])), 34, 4);
    return `<svg width="160" height="38">${line(points.map((p) => [x.place(p[0]), y.place(p[1])]), { stroke: color(trial), "stroke-width": 1.6, ...marked(color(trial)) }).outerHTML}</svg>`;
  }
  function tell(trial) {
    const result = trial.status === "failed" ? `failed: ${escape(trial.error)}` : "score" in trial ? `score ${shown(trial.score)}` : `valid. ${percent(trial.valid)} %`;
    return `<b>${escape(data.runs[trial.run].name)}, trial ${trial.id}</b>${result} after ${trial.epochs} epochs, ${total(trial).toFixed(1)} s` +
      `<br>${count(trial.params)} parameters, ${count(trial.macs)} mult-adds<br>` +
      (trial.values ? `${Object.entries(trial.values).map(([name, v]) => `${escape(name)}=${shown(v)}`).join(" ")}<br>` : "") + `${spark(trial)}<div>${escape(archText(trial.arch))}</div>`;
  }
  function showTip(event, markup) {
    tip.innerHTML = markup;
    tip.hidden = false;
    const { clientX: x, clientY: y } = event, box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 6))}px`;
    tip.style.top = `${y + 14 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 14}px`;
  }
  const hideTip = () => (tip.hidden = true);
  function hover(element, trial, light) {
    element.addEventListener("pointerenter", (event) => (showTip(event, tell(trial)), light?.(true)));
    element.addEventListener("pointerleave", () => (hideTip(), light?.(false)));
    element.addEventListener("click", () => openTrial(trial));
  }

  // ----------------------------------------------------------------------------------------------------- charts

  const charts = {
    anytime(plot, controls) {
      const names = { epochs: "epochs trained", seconds: "compute (s)", wall_seconds: "wall clock (s)" };
      const having = Object.fromEntries(Object.entries(names).filter(([cost]) => data.anytime[cost].length));
      if (!Object.keys(having).length) return false;
      if (!(state.cost in having)) state.cost = Object.keys(having)[0];
      choose(controls, "over", having, "cost", draw);
      const lines = data.anytime[state.cost], at = frame(plot, 340);
      const all = lines.flatMap((l) => [...l.y, ...(l.high ?? []).slice(-1), ...(l.each ?? []).flat()]).filter(known);
      const floor = Math.min(...lines.map((l) => l.y[Math.floor(l.y.length / 20)]));
      const x = linear(0, Math.max(...lines.map((l) => l.x.at(-1))), at.left, at.right, state.cost === "epochs"), y = accuracy(all, at.bottom, at.top, floor);
      axes(at, x, y, names[state.cost], "best valid. so far (%)");
      const steps = (l, values) => l.x.flatMap((cost, k) => (k && known(values[k - 1]) ? [[x.place(cost), y.place(values[k - 1])]] : []).concat(known(values[k]) ? [[x.place(cost), y.place(values[k])]] : []));
      for (const l of lines) {
        const row = data.rows[l.row];
        if (l.low) at.svg.append(node("path", { ...marked(row.color), fill: row.color, opacity: 0.16, d: line([...steps(l, l.high), ...steps(l, l.low).reverse()], {}).getAttribute("d") + "Z" }));
        for (const one of l.each ?? []) at.svg.append(line(steps(l, one), { ...marked(row.color), stroke: row.color, "stroke-width": 0.8, opacity: 0.55 }));
        at.svg.append(line(steps(l, l.y), { ...marked(row.color), stroke: row.color, "stroke-width": 2 }));
      }
      at.svg.addEventListener("pointermove", (event) => {
        const px = event.clientX - at.svg.getBoundingClientRect().left, end = Math.max(...lines.map((l) => l.x.at(-1)));
        const cost = ((px - at.left) / (at.right - at.left)) * end;
        if (cost < 0 || cost > end) return hideTip();
        const told = lines.map((l) => [l, l.y[l.x.filter((c) => c <= cost).length - 1]]).filter(([, v]) => known(v)).sort((a, b) => b[1] - a[1]);
        showTip(event, `<b>${names[state.cost]}: ${shown(+cost.toPrecision(3))}</b>` + told.map(([l, v]) => `${escape(data.rows[l.row].name)}: ${percent(v)}${l.n > 1 ? ` (n=${l.n})` : ""}`).join("<br>"));
      });
      at.svg.addEventListener("pointerleave", hideTip);
    },

    scatter(plot, controls) {
      const names = { params: "parameters", macs: "mult-adds an image", seconds: "compute of the trial (s)", id: "trial", epochs: "epochs" };
      const of = { params: (t) => t.params, macs: (t) => t.macs, seconds: total, id: (t) => t.id, epochs: (t) => t.epochs };
      for (const name of new Set(data.trials.flatMap((t) => Object.keys(t.values ?? {})))) if (!(name in names)) (names[name] = name), (of[name] = (t) => t.values?.[name]);
      const having = Object.fromEntries(Object.entries(names).filter(([name]) => data.trials.some((t) => known(value(t)) && known(of[name](t)))));
      if (!Object.keys(having).length) return false;
      if (!(state.x in having)) state.x = Object.keys(having)[0];
      choose(controls, "over", having, "x", draw);
      const logx = ["params", "macs", "seconds"].includes(state.x), get = of[state.x];
      const points = data.trials.filter((t) => known(value(t)) && known(get(t)) && (!logx || get(t) > 0));
      if (!points.length) return void plot.replaceChildren("nothing measured yet");
      const at = frame(plot, 380), xs = points.map(get), ys = points.map(value);
      const x = (logx ? logarithmic : linear)(Math.min(...xs) * (logx ? 0.95 : 1), Math.max(...xs) * (logx ? 1.05 : 1), at.left + 8, at.right - 8, !logx);
      const y = scored() ? linear(Math.min(...ys), Math.max(...ys), at.bottom - 8, at.top + 8) : accuracy(ys, at.bottom, at.top);
      axes(at, x, y, names[state.x], scored() ? "score" : "validation accuracy (%)");
      const most = data.rows.map((_, row) => Math.max(...points.filter((t) => data.runs[t.run].row === row).map((t) => t.epochs)));
      if (!["id", "epochs"].includes(state.x)) {
        let best = -Infinity;
        const front = [...points].sort((a, b) => get(a) - get(b) || value(b) - value(a)).filter((t) => value(t) > best && ((best = value(t)), true));
        const path = front.flatMap((t, k) => (k ? [[x.place(get(t)), y.place(value(front[k - 1]))]] : []).concat([[x.place(get(t)), y.place(value(t))]]));
        at.svg.append(line([...path, [at.right, path.at(-1)[1]]], { stroke: "currentColor", "stroke-width": 1.2, opacity: 0.7 }));
      }
      for (const t of points) {
        const full = t.epochs === most[data.runs[t.run].row];
        const dot = node("circle", { ...marked(color(t)), cx: x.place(get(t)), cy: y.place(value(t)), r: 4.5, stroke: color(t), fill: color(t), "fill-opacity": full ? 0.7 : 0, "data-trial": `${t.run}:${t.id}` });
        hover(dot, t, (on) => dot.setAttribute("r", on ? 7 : 4.5));
        at.svg.append(dot);
      }
    },

    curves(plot, controls) {
      const having = data.trials.filter((t) => t.curve.filter((p) => known(p[1])).length > 1);
      if (!having.length) return false;
      controls.innerHTML = keys();
      const best = [...having].sort((a, b) => b.epochs - a.epochs || b.valid - a.valid).slice(0, 300);
      if (best.length < having.length) controls.insertAdjacentHTML("beforeend", `<span>${best.length} of ${having.length} curves</span>`);
      const at = frame(plot, 340), all = best.flatMap((t) => t.curve.map((p) => p[1])).filter(known).sort((a, b) => a - b);
      const x = linear(best.reduce((m, t) => Math.min(m, t.curve[0][0]), Infinity), best.reduce((m, t) => Math.max(m, t.curve.at(-1)[0]), 0), at.left, at.right, true);
      const y = accuracy([all[0], all.at(-1)], at.bottom, at.top, all[Math.floor(all.length / 20)]);
      axes(at, x, y, "epoch", "validation accuracy (%)");
      for (const t of best.reverse()) {
        const points = t.curve.filter((p) => known(p[1])).map((p) => [x.place(p[0]), y.place(p[1])]);
        const seen = line(points, { ...marked(color(t)), stroke: color(t), "stroke-width": 1.2, opacity: 0.6, "data-trial": `${t.run}:${t.id}` });
        const wide = line(points, { stroke: "transparent", "stroke-width": 9 });
        hover(wide, t, (on) => (seen.setAttribute("stroke-width", on ? 3.2 : 1.2), seen.setAttribute("opacity", on ? 1 : 0.6)));
        at.svg.append(seen, wide);
      }
    },

    parallel(plot, controls) {
      const trials = data.trials.filter((t) => known(value(t)) && !("derived" in t));
      const names = [...new Set(trials.flatMap((t) => Object.keys(t.arch)))].filter((name) => new Set(trials.map((t) => t.arch[name]).filter((v) => v !== undefined && v !== null)).size > 1);
      if (trials.length < 2 || !names.length) return false;
      const result = scored() ? "score" : "valid. %", margin = { left: 60, right: 60, top: 46, bottom: 12 };
      const at = frame(plot, 380, margin, Math.max(Math.min(plot.clientWidth, 1280), 120 + 92 * names.length));
      const place = (k) => at.left + (k * (at.right - at.left)) / names.length;
      const scales = names.map((name) => {
        const values = trials.map((t) => t.arch[name]).filter((v) => v !== undefined && v !== null);
        const numbers = values.every((v) => typeof v === "number"), distinct = [...new Set(values)];
        if (numbers && distinct.length > 8) {
          const [low, high] = [Math.min(...values), Math.max(...values)];
          return low > 0 && high / low > 50 ? logarithmic(low, high, at.bottom, at.top) : linear(low, high, at.bottom, at.top);
        }
        distinct.sort((a, b) => (numbers ? a - b : String(a).localeCompare(String(b))));
        const y = (v) => (distinct.length < 2 ? (at.top + at.bottom) / 2 : at.bottom - (distinct.indexOf(v) / (distinct.length - 1)) * (at.bottom - at.top));
        return { place: y, ticks: distinct.slice(0, 24).map((v) => [v, shown(v)]) };
      });
      const ys = trials.map(value), low = Math.min(...ys), high = Math.max(...ys);
      scales.push(scored() ? linear(low, high, at.bottom, at.top) : accuracy(ys, at.bottom, at.top));
      const ranks = new Map([...ys].sort((a, b) => a - b).map((v, k, of) => [v, k / Math.max(1, of.length - 1)]));
      const hue = (v) => `hsl(${250 - 200 * ranks.get(v)} 75% ${35 + 20 * ranks.get(v)}%)`;
      const kept = (t) => Object.entries(state.brushes).every(([name, [a, b]]) => {
        const k = name === result ? names.length : names.indexOf(name), v = k === names.length ? value(t) : t.arch[name];
        return k < 0 || (v !== undefined && scales[k].place(v) >= a && scales[k].place(v) <= b);
      });
      for (const t of [...trials].sort((a, b) => value(a) - value(b)).slice(-2000)) {
        const pieces = [[]];
        names.forEach((name, k) => (t.arch[name] === undefined || t.arch[name] === null ? pieces.push([]) : pieces.at(-1).push([place(k), scales[k].place(t.arch[name])])));
        pieces.at(-1).push([place(names.length), scales.at(-1).place(value(t))]);
        const path = pieces.filter((p) => p.length).map((p) => line(p.length > 1 ? p : [p[0], [p[0][0] + 3, p[0][1]]], {}).getAttribute("d")).join("");
        const on = kept(t), seen = node("path", { fill: "none", d: path, stroke: hue(value(t)), "stroke-width": 1.3, opacity: on ? 0.75 : 0.06, "data-trial": `${t.run}:${t.id}`, "data-kept": on });
        at.svg.append(seen);
        if (on) hover(seen, t, (lit) => seen.setAttribute("stroke-width", lit ? 4 : 1.3));
      }
      [...names, result].forEach((name, k) => {
        at.svg.append(node("line", { class: "axis", x1: place(k), x2: place(k), y1: at.top, y2: at.bottom }));
        const head = node("text", { x: place(k), y: k % 2 ? 14 : 30, "text-anchor": "middle" }, name.length > 20 ? name.slice(0, 19) + "…" : name);
        head.append(node("title", {}, name));
        at.svg.append(head);
        let last = Infinity;
        for (const [v, text] of scales[k].ticks.toSorted((a, b) => scales[k].place(b[0]) - scales[k].place(a[0])))
          if (last - scales[k].place(v) > 12) {
            last = scales[k].place(v);
            at.svg.append(node("text", { class: "soft", x: place(k) + (k === names.length ? 6 : -6), y: last + 4, "text-anchor": k === names.length ? "start" : "end" }, text.length > 9 ? text.slice(0, 8) + "…" : text));
          }
        if (state.brushes[name]) at.svg.append(node("rect", { x: place(k) - 7, width: 14, y: state.brushes[name][0], height: state.brushes[name][1] - state.brushes[name][0], fill: "var(--accent)", opacity: 0.3 }));
        const grip = node("rect", { x: place(k) - 12, width: 24, y: at.top - 6, height: at.bottom - at.top + 12, fill: "transparent", style: "cursor: ns-resize; touch-action: none", "data-axis": name });
        grip.addEventListener("pointerdown", (event) => {
          grip.setPointerCapture(event.pointerId);
          const y = (e) => e.clientY - at.svg.getBoundingClientRect().top, from = y(event);
          grip.addEventListener("pointerup", (end) => {
            const [a, b] = [from, y(end)].sort((p, q) => p - q);
            if (b - a < 5) delete state.brushes[name];
            else state.brushes[name] = [a, b];
            draw();
          }, { once: true });
        });
        at.svg.append(grip);
      });
      const many = trials.filter(kept).length;
      controls.innerHTML = Object.keys(state.brushes).length ? `<span>${many} of ${trials.length} trials</span><button type="button">all</button>` : "";
      controls.querySelector("button")?.addEventListener("click", () => ((state.brushes = {}), draw()));
    },

    importance(plot) {
      const titles = Object.keys(data.importance);
      if (!titles.length) return false;
      plot.replaceChildren();
      for (const title of titles) {
        const found = data.importance[title], choices = found.choices.slice(0, 20);
        const box = document.createElement("div");
        plot.append(box);
        const at = frame(box, 24 * choices.length + 52, { left: Math.min(170, 40 + 7 * Math.max(...choices.map((c) => c.choice.length), 4)), right: 70, top: 4, bottom: 44 });
        const x = linear(0, Math.max(0.01, ...choices.map((c) => Math.max(c.high, c.chance_share))) * 100, at.left, at.right);
        axes(at, x, { ticks: [] }, "variance explained by the choice alone (%)", "");
        choices.forEach((c, k) => {
          const y = at.top + 24 * k + 12, px = (share) => x.place(100 * share);
          const row = node("g", { "data-choice": c.choice });
          row.append(node("text", { x: at.left - 8, y: y + 4, "text-anchor": "end" }, c.choice.length > 22 ? c.choice.slice(0, 21) + "…" : c.choice));
          row.append(node("rect", { x: at.left, y: y - 8, width: Math.max(0, px(c.share) - at.left), height: 16, fill: "var(--accent)", opacity: 0.8 }));
          row.append(node("line", { x1: px(c.low), x2: px(c.high), y1: y, y2: y, stroke: "currentColor", "stroke-width": 1.6 }));
          row.append(node("line", { x1: px(c.chance_share), x2: px(c.chance_share), y1: y - 10, y2: y + 10, stroke: "#d55e00", "stroke-width": 2 }));
          row.append(node("text", { class: "soft", x: at.right + 6, y: y + 4 }, `${(100 * c.share).toFixed(1)} %`));
          row.addEventListener("pointermove", (event) => showTip(event, `<b>${escape(c.choice)}</b>${(100 * c.share).toFixed(1)} % (90 % of trees: ${(100 * c.low).toFixed(1)} to ${(100 * c.high).toFixed(1)} %)<br>chance stays below ${(100 * c.chance_share).toFixed(1)} %`));
          row.addEventListener("pointerleave", hideTip);
          at.svg.append(row);
        });
        box.insertAdjacentHTML("afterbegin", `${titles.length > 1 ? `<h3>${escape(title)}</h3>` : ""}${found.warning ? `<p class="warning">${escape(found.warning)}</p>` : ""}`);
        box.insertAdjacentHTML("beforeend", `<p class="caption">${found.trials} trials at budget ${found.budget}; orange: what chance alone stays below in 95 of 100 trees.</p>`);
      }
    },

    trials(plot, controls) {
      if (!data.trials.length) return false;
      if (!controls.querySelector("input")) {
        controls.innerHTML = '<label>only with <input type="search" placeholder="depth=3 failed …"></label><span class="many"></span>';
        controls.querySelector("input").value = state.filter;
        controls.querySelector("input").oninput = (event) => ((state.filter = event.target.value), fillTrials(plot, controls));
      }
      fillTrials(plot, controls);
    },
  };

  // -------------------------------------------------------------------------------------------- the list of trials

  const columns = [
    ["Run", (t) => data.runs[t.run].name], ["Trial", (t) => t.id], ["State", (t) => t.status], ["Result", (t) => value(t)],
    ["Epochs", (t) => t.epochs], ["Params", (t) => t.params], ["Mult-adds", (t) => t.macs], ["Seconds", total], ["Architecture", (t) => archText(t.arch)],
  ];
  const cell = (t, k) => {
    const text = [escape(data.runs[t.run].name), t.id, t.status, "score" in t ? shown(t.score) : percent(t.valid), t.epochs, count(t.params), count(t.macs), total(t).toFixed(1), escape(archText(t.arch)) + (t.error ? ` <span class="failed">${escape(t.error)}</span>` : "")][k];
    return k === 8 ? `<td class="text">${text}</td>` : `<td>${text}</td>`;
  };
  function fillTrials(plot, controls) {
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    let chosen = data.trials.filter((t) => {
      const text = `${data.runs[t.run].name} ${t.status} ${archText(t.arch)} ${t.error ?? ""}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const [column, direction] = state.sort.trials ?? [3, -1], get = columns[column][1];
    chosen.sort((a, b) => {
      const [p, q] = [get(a), get(b)];
      if (!known(p) && typeof p !== "string") return 1;
      if (!known(q) && typeof q !== "string") return -1;
      return direction * (typeof p === "string" ? p.localeCompare(q, undefined, { numeric: true }) : p - q);
    });
    controls.querySelector(".many").textContent = `${chosen.length} of ${data.trials.length + data.left_out} trials`;
    const head = columns.map(([name], k) => `<th scope="col" tabindex="0"${k === 8 ? ' class="text"' : ""}${k === column ? ` aria-sort="${direction > 0 ? "ascending" : "descending"}"` : ""}>${k === 3 ? (scored() ? "Score" : "Valid. %") : name}</th>`).join("");
    const body = chosen.slice(0, state.shown).map((t) => `<tr data-trial="${t.run}:${t.id}" tabindex="0">${columns.map((_, k) => cell(t, k)).join("")}</tr>`).join("");
    const table = document.createElement("table");
    table.className = "trials sortable";
    table.innerHTML = `<thead><tr>${head}</tr></thead><tbody>${body}</tbody>`;
    plot.innerHTML = `<div class="wide"></div>${chosen.length > state.shown ? '<button type="button">show more</button>' : ""}`;
    plot.querySelector(".wide").append(table);
    plot.querySelectorAll("th").forEach((th, k) => onPress(th, () => {
      const [was, way] = state.sort.trials ?? [3, -1];
      state.sort.trials = [k, was === k ? -way : [1, 0, 2, 8].includes(k) ? 1 : -1];
      fillTrials(plot, controls);
    }));
    plot.querySelector("button")?.addEventListener("click", () => ((state.shown += 500), fillTrials(plot, controls)));
    plot.querySelectorAll("tbody tr").forEach((row) => {
      onPress(row, () => {
        state.open.has(row.dataset.trial) ? state.open.delete(row.dataset.trial) : state.open.add(row.dataset.trial);
        fillTrials(plot, controls);
      });
      if (state.open.has(row.dataset.trial)) row.after(details(find(row.dataset.trial)));
    });
  }
  const find = (key) => data.trials.find((t) => `${t.run}:${t.id}` === key);
  function details(trial) {
    const row = document.createElement("tr");
    const seconds = Object.entries(trial.seconds).map(([name, s]) => `${name} ${(s ?? 0).toFixed(1)} s`).join(", ");
    const curve = trial.curve.map(([epoch, valid, train]) => [epoch, percent(valid), percent(train)]);
    row.innerHTML = `<td class="open" colspan="9">${spark(trial)}<div><code>${escape(JSON.stringify(trial.arch))}</code></div>` +
      (trial.derived ? `<div>derived: <code>${escape(JSON.stringify(trial.derived))}</code></div>` : "") +
      `<div>${seconds}</div>` + (trial.values ? `<div>${escape(archText(trial.values))}</div>` : "") +
      (curve.length ? `<div>epoch: valid. % / training %: ${curve.slice(-60).map(([e, v, t]) => `${e}: ${v} / ${t}`).join(", ")}</div>` : "") +
      (trial.error ? `<pre>${escape(trial.traceback ?? trial.error)}</pre>` : "") + "</td>";
    return row;
  }
  function openTrial(trial) {
    const section = document.querySelector('[data-chart="trials"]'), key = `${trial.run}:${trial.id}`;
    state.open.add(key);
    state.filter = "";
    section.querySelector("input").value = "";
    state.shown = Math.max(state.shown, data.trials.length);
    fillTrials(section.querySelector(".plot"), section.querySelector(".controls"));
    section.querySelector(`tr[data-trial="${key}"]`)?.scrollIntoView({ block: "center" });
    hideTip();
  }

  // ----------------------------------------------------------------------------------------------- other tables

  function onPress(element, act) {
    element.addEventListener("click", act);
    element.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), act()));
  }
  function numeric(text) {
    const found = /^[+−-]?[\d,.]+(e[+-]?\d+)?/i.exec(text.trim());
    if (!found) return null;
    const unit = { k: 1e3, M: 1e6, G: 1e9, T: 1e12 }[/^\S+ ([kMGT])\b/.exec(text.trim())?.[1]] ?? 1;
    return parseFloat(found[0].replace(/,/g, "").replace("−", "-")) * unit;
  }
  function sortTable(table, column, direction) {
    const rows = [...table.tBodies[0].rows], texts = new Map(rows.map((row) => [row, row.cells[column].textContent.trim()]));
    const numbers = [...texts.values()].every((text) => text === "–" || text === "" || numeric(text) !== null);
    rows.sort((a, b) => {
      const [p, q] = [texts.get(a), texts.get(b)];
      if (!numbers) return direction * p.localeCompare(q, undefined, { numeric: true });
      const [m, n] = [numeric(p), numeric(q)];
      return m === null ? 1 : n === null ? -1 : direction * (m - n);
    });
    table.tBodies[0].append(...rows);
    table.querySelectorAll("th").forEach((th, k) => (k === column ? th.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending") : th.removeAttribute("aria-sort")));
  }
  function sortable(table, key) {
    table.querySelectorAll("th").forEach((th, k) => {
      th.tabIndex = 0;
      onPress(th, () => {
        const [was, way] = state.sort[key] ?? [null, 0];
        state.sort[key] = [k, was === k ? -way : k === 0 ? 1 : -1];
        sortTable(table, ...state.sort[key]);
      });
    });
    if (state.sort[key]) sortTable(table, ...state.sort[key]);
  }

  // ------------------------------------------------------------------------------------------------- the whole

  function draw() {
    if (data === null) return;
    for (const section of document.querySelectorAll("[data-chart]"))
      section.hidden = charts[section.dataset.chart](section.querySelector(".plot"), section.querySelector(".controls")) === false;
  }
  function start() {
    data = JSON.parse(document.getElementById("data").textContent);
    document.querySelectorAll("table.sortable").forEach((table, k) => sortable(table, `table${k}`));
    draw();
  }
  start();
  let width = innerWidth;
  addEventListener("resize", () => innerWidth !== width && ((width = innerWidth), draw()));
  addEventListener("scroll", hideTip, { passive: true });

  // A running search: ask for the page anew, keep what was sorted, opened and typed.
  if ("watched" in document.body.dataset) {
    let seen = null;
    const news = document.createElement("p");
    news.id = "news";
    document.body.prepend(news);
    const look = async () => {
      try {
        const version = await (await fetch("version")).text();
        if (seen !== null && version !== seen && !document.querySelector("main").contains(document.activeElement?.closest("select, input"))) {
          const fresh = new DOMParser().parseFromString(await (await fetch("./")).text(), "text/html");
          document.title = fresh.title;
          document.querySelector("main").replaceWith(fresh.querySelector("main"));
          start();
          seen = version;
        } else if (seen === null) seen = version;
        news.textContent = "";
      } catch {
        news.textContent = "no longer watched: report.py --watch has ended";
      }
    };
    setInterval(look, 2000);
    look();
  }
})();
