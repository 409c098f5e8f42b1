"use strict";
// The page: one state, `view`; what shows it; and what changes it.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const runs = data.runs.map((described) => new Run(described, data.blobs));
const dark = matchMedia("(prefers-color-scheme: dark)");
const onPaper = document.documentElement.classList;  // "paper" while the page is printed, always in light colours
const isDark = () => dark.matches && !onPaper.contains("paper");
const view = { step: 1, pin: null, tensor: "", range: null, values: {}, log: false, symlog: false, difference: false };
const SWITCHES = ["log", "symlog", "difference"];
let lastStep = 1; // of all runs
let held = false; // the cursor does not follow the mouse
let playing = null; // the time of the film's last frame
let plots = [];

/** An element; texts among the children stay texts, whatever is in them. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const button = (text, act, title = text) => make("button", { type: "button", title, click: act }, text);
const styled = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const range = () => view.range ?? [1, lastStep];
const scale = () => stepScale(range(), view.log);
const clamp = (step, [first, last] = [1, lastStep]) => Math.max(first, Math.min(last, Math.round(step) || 0));
const rowAt = (shown, series, step) => (!series || step === null || step > until(shown) ? -1 : series.at(step));
const inRange = (series) => series.extent(...series.rows(...range()));
const around = (extents) => [Math.min(...extents.map((e) => e[0])), Math.max(...extents.map((e) => e[1]))];
/** A text that breaks after commas, as those in the names of runs. */
const parted = (text) => make("span", {}, ...text.split(/(?<=,)/).flatMap((part) => [make("wbr"), part]).slice(1));
const numbered = (run) => (runs.length > 1 ? `run ${runs.indexOf(run) + 1}` : "");
const minus = (shown) => shown.map(numbered).join(" − ");
const until = (shown) => Math.min(...shown.map((run) => run.steps));
const compared = () => (view.difference ? [runs.slice(0, 2)] : runs.map((run) => [run]));
const tensors = () => data.tensors.flatMap((row) => row.tags);
const chosenBase = () => data.tensors.find((row) => row.tags.includes(view.tensor))?.base;

function sized(canvas) {
  const ratio = Math.min(devicePixelRatio, 2);
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
}

// ---------------------------------------------------------------- plots over the axis of steps

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) target.plot.visible = isIntersecting;
  schedule();
}, { rootMargin: "200px" });
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) target.plot.dirty = true;
  schedule();
});

/** A picture with the cursor on it. `draw` is called when it is seen and not up to date, and returns
 * the range of its values; `move` whenever the step changes. */
function plot(kind, title, draw, options = {}) {
  const canvas = make("canvas", { role: "img", "aria-label": title });
  const [cursor, pinned] = ["cursor", "pinned"].map((name) => make("div", { class: name }));
  const box = make("div", { class: `plot ${kind}` }, canvas, pinned, cursor);
  const extent = make("span", { class: "extent" });
  box.plot = { box, canvas, extent, cursor, pinned, title, draw, dirty: true, visible: false, ...options };
  plots.push(box.plot);
  seen.observe(box);
  resized.observe(box);
  listen(box);
  return box;
}

async function redraw(one) {
  one.dirty = false;
  const values = await one.draw(one.canvas);
  if (!values) return;
  const [low, high, log] = values;
  one.extent.textContent = low > high ? "none" : `${short(low)} to ${short(high)}${log ? ", log scale" : ""}`;
  const words = `steps ${range().join(" to ")}, values ${one.extent.textContent}`;
  one.canvas.setAttribute("aria-label", `${one.title}: ${words}`);
}

/** The mouse: over a plot it moves the cursor; a click holds it; a drag zooms. */
function listen(box) {
  let start = null;
  const area = box.appendChild(make("div", { class: "area", hidden: "" }));
  const at = ({ clientX, clientY }) => {
    const { left, top, width, height } = box.getBoundingClientRect();
    return [(clientX - left) / width, (clientY - top) / height].map((u) => Math.max(0, Math.min(1, u)));
  };
  const stepAt = (u) => clamp(scale().from(u), range());
  const touch = (event) => event.pointerType === "touch";
  const dragged = (event) => start && !touch(event) && Math.abs(at(event)[0] - start[0]) * box.clientWidth > 5;
  const show = (event) => {
    const [a, b] = [start, at(event)].map(([u]) => 100 * u).sort((x, y) => x - y);
    Object.assign(area.style, { left: `${a}%`, right: `${100 - b}%` });
    area.hidden = false;
  };
  box.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    start = at(event);
    if (touch(event)) return;
    box.setPointerCapture(event.pointerId);
  });
  box.addEventListener("pointermove", (event) => {
    if (dragged(event)) show(event);
    else if (touch(event) || (!held && playing === null)) change({ step: stepAt(at(event)[0]) });
  });
  box.addEventListener("pointercancel", () => { start = null; area.hidden = true; });
  box.addEventListener("pointerup", (event) => {
    if (!start) return;
    const [a, b, drag, { tag, values }] = [start, at(event), dragged(event), box.plot];
    start = null;
    area.hidden = true;
    if (drag) {
      const tall = tag && Math.abs(a[1] - b[1]) * box.clientHeight > 20;
      const ends = [a[1], b[1]].sort((x, y) => y - x).map((u) => values?.from(1 - u));
      change({ range: [a, b].map(([u]) => stepAt(u)), ...(tall && { values: { ...view.values, [tag]: ends } }) });
    } else {
      const hold = !held || Boolean(tag && tag !== view.tensor) || touch(event);
      change({ step: stepAt(b[0]), tensor: tag ?? view.tensor, hold });
    }
  });
}

/** The range of a tensor's pictures: as zoomed, or all that its runs have in these steps. */
function valuesOf(tag) {
  const series = runs.map((run) => run.histograms.get(tag)).filter((one) => one?.ready);
  return view.values[tag] ?? around(series.map(inRange));
}

function heatMap(tag, shown) {
  const all = runs.map((run) => run.histograms.get(tag)).filter(Boolean);
  const title = `${tag} ${minus(shown)}`.trim();
  const box = plot("heat", title, async (canvas) => {
    await Promise.all(all.map((series) => series.load()));
    const values = valuesOf(tag);
    box.plot.values = valueScale(values, view.symlog && Math.min(...all.map((series) => series.linear)));
    sized(canvas);
    const found = shown.map((run) => shares(run.histograms.get(tag), canvas, scale(), box.plot.values, until(shown)));
    paint(canvas, found[0], isDark(), found[1]);
    return values;
  }, { tag });
  return box;
}

/** The pictures of a tensor: of each run, or of the difference of the first two. */
function cells(tag) {
  return compared().map((shown) => {
    const missing = shown.find((run) => !run.histograms.has(tag));
    const choose = button(tag, () => change({ tensor: tag }), "Show its histogram");
    const none = missing && make("div", { class: "absent" }, parted(`not on record in ${missing.name}`));
    const picture = none ?? heatMap(tag, shown);
    const caption = make("figcaption", {}, choose, minus(shown), picture.plot?.extent ?? "");
    return make("figure", { "data-tag": tag }, caption, picture);
  });
}

/** A strip of scalars, with the values at the cursor in its caption. */
function strip({ title, lines: entries, runs: places }) {
  const names = [...new Set(entries.map(([, name]) => name))];
  const many = names.length > 12;
  const has = (run, tag) => run.scalars.has(tag) && places.includes(runs.indexOf(run));
  const lines = compared().flatMap((shown, r) => entries.filter(([tag]) => shown.every((run) => has(run, tag)))
    .map(([tag, name]) => ({ tag, name, shown, dashed: r % 2 === 1, value: make("span"),
      colour: `--c${names.indexOf(name) % 8}`, own: () => name === chosenBase() })));
  const draw = async (canvas) => {
    for (const line of lines) line.series = await ofLine(line);
    const [low, high] = around(lines.map((line) => inRange(line.series)));
    const least = Math.min(...lines.map((line) => line.series.least));
    const wide = low >= 0 && high > 100 * least;
    sized(canvas);
    drawLines(canvas, lines.map((line) => ({
      ...line, thick: line.own(), colour: styled(many && !line.own() ? "--rule" : line.colour),
    })).sort((a, b) => a.thick - b.thick), scale(), valueScale([low, high], wide && Math.max(least, high * 1e-12)));
    schedule();
    return [low, high, wide];
  };
  const move = () => {
    for (const line of lines) {
      const row = rowAt(line.shown, line.series, view.step);
      line.value.textContent = row < 0 ? "–" : short(line.series.values[row]);
      line.value.parentNode.hidden = many && !line.own();
    }
  };
  const legend = lines.map(({ name, shown, value, colour }) =>
    make("span", many ? {} : { style: `color: var(${colour})` }, `${name} ${minus(shown)} `, value));
  const box = plot("strip", title, draw, { move, lines: true });
  const csv = () => saveRows(title, [["run", "tag", "step", "value"], ...lines.flatMap(({ shown, tag, series }) =>
    Array.from(series.steps, (step, i) => [shown.map((run) => run.name).join(" − "), tag, step, series.values[i]]))]);
  const saves = [button("CSV", csv), button("PNG", () => savePicture(box))];
  const caption = make("figcaption", {}, make("b", {}, title), box.plot.extent, ...legend, ...saves);
  return lines.length ? make("figure", { "data-strip": title }, caption, box) : "";
}

/** The series of a line; for the difference of two runs, of the steps that both have. */
async function ofLine({ tag, shown }) {
  const [a, b] = shown.map((run) => run.scalars.get(tag));
  await Promise.all([a.load(), b?.load()]);
  if (!b) return a;
  const rows = [...a.steps.keys()].filter((i) => b.steps[b.at(a.steps[i])] === a.steps[i]);
  const values = Float64Array.from(rows, (i) => a.values[i] - b.values[b.at(a.steps[i])]);
  return Object.assign(new Series({}), { ready: true, steps: Uint32Array.from(rows, (i) => a.steps[i]), values });
}

/** The marks of a run on the axis and, but for routine ones, in words. */
function lane(run) {
  const box = plot("lane", `Marks of ${run.name}`, (canvas) => {
    sized(canvas);
    for (const { kind, step, routine } of run.marks) {
      const context = canvas.getContext("2d");
      context.fillStyle = styled(kind === "evaluation" ? "--soft" : routine ? "--c0" : "--c1");
      const [place, half] = [scale().to(step) * canvas.width, routine ? 1 : 3];
      context.fillRect(place - half, kind === "evaluation" ? canvas.height / 2 : 0, 2 * half, canvas.height);
    }
  });
  const list = run.marks.filter((mark) => !mark.routine).map(({ step, kind, text, tag }) => {
    const go = () => change({ step, hold: true, tensor: run.histograms.has(tag) ? tag : view.tensor });
    const words = [make("b", {}, `step ${step}`), ` ${kind}: ${text}`];
    return make("li", {}, make("button", { type: "button", click: go }, ...words));
  });
  const happened = list.length ? " Orange: what happened." : "";
  const caption = `${runs.length > 1 ? `${numbered(run)}. ` : ""}Blue: checkpoints. Grey: evaluations.${happened}`;
  return make("figure", {}, make("figcaption", {}, caption), make("ul", { class: "happened" }, ...list), box);
}

// ---------------------------------------------------------------- the panel

/** Fills the panel; returns its columns: of each run the row at the cursor and that at the pin. */
function fillPanel() {
  const shown = runs.filter((run) => run.histograms.get(view.tensor)?.ready);
  const places = $("histograms").children;
  while (places.length > shown.length) places[0].remove();
  const columns = shown.flatMap((run, i) => {
    const series = run.histograms.get(view.tensor);
    if (!places[i]) {
      const ends = make("div", { class: "ends" }, make("span"), make("span"));
      $("histograms").append(make("figure", {}, make("figcaption"), make("canvas", { role: "img" }), ends));
    }
    const [caption, canvas, { children: [low, high] }] = places[i].children;
    if (canvas.width !== Math.round(canvas.clientWidth * Math.min(devicePixelRatio, 2))) sized(canvas);
    const rows = [view.step, view.pin].map((step) => rowAt([run], series, step));
    const pair = rows.map((row) => (row < 0 ? null : series.histogram(row)));
    const values = drawHistograms(canvas, pair, [styled("--c0"), styled("--c1")], view.symlog && series.linear);
    caption.replaceChildren(runs.length > 1 ? parted(`${numbered(run)}: ${run.name}`) : "");
    const none = !(pair[0] || pair[1]) ? "no record at this step" : values[0] > values[1] && "no finite entry";
    [low.textContent, high.textContent] = none ? ["", none] : values.map(short);
    canvas.setAttribute("aria-label", `Histogram of ${view.tensor} at step ${view.step}`);
    const columns = rows.map((row, j) => ({ run, series, row, name: ["cursor", "pinned"][j] }));
    return columns.slice(0, view.pin === null ? 1 : 2);
  });
  const figures = columns.map(({ run, series, row }) => {
    const broken = run.scalars.get(`${view.tensor}/nonfinite`);
    const place = broken?.ready && row >= 0 ? broken.at(series.steps[row]) : -1;
    const nonfinite = place >= 0 && broken.steps[place] === series.steps[row] ? broken.values[place] : 0;
    return row < 0 ? {} : { ...series.figures(row), nonfinite };
  });
  for (const line of $("figures").rows) {
    const key = line.dataset.figure;
    const text = (value = NaN) => (key === "near" && value >= 0 ? `${+(100 * value).toFixed(2)}%` : short(value));
    const heads = columns.map(({ run, name }) => `${numbered(run)} ${name}`);
    const texts = key ? figures.map((one) => text(one[key])) : heads;
    line.replaceChildren(line.cells[0], ...texts.map((one) => make("td", {}, one)));
  }
  if ($("buckets").open && columns[0]?.row >= 0) {
    const { edges, counts } = columns[0].series.histogram(columns[0].row);
    const line = (...numbers) => make("tr", {}, ...numbers.map((one) => make("td", {}, String(one))));
    $("buckets").querySelector("tbody").replaceChildren(...counts.map((n, k) => line(edges[k], edges[k + 1], n)));
  }
  return columns.filter(({ row }) => row >= 0);
}

/** A number for a field; empty if it is none. */
const written = (number) => (Number.isFinite(number) ? short(number).replaceAll("−", "-") : "");

function fillControls() {
  const put = (id, value) => { if (document.activeElement !== $(id)) $(id).value = value; };
  [$("slider").min, $("slider").max] = range();
  $("slider").value = view.step;
  $("slider").setAttribute("aria-valuetext", `step ${view.step}`);
  put("step", view.step);
  ["first", "last"].forEach((id, i) => put(id, range()[i]));
  ["low", "high"].forEach((id, i) => put(id, written(valuesOf(view.tensor)[i])));
  for (const name of SWITCHES) $(name).checked = view[name];
  $("tensor").value = view.tensor;
  $("pin").setAttribute("aria-pressed", view.pin !== null);
  $("pin").textContent = view.pin === null ? "Pin" : `Pinned ${view.pin}`;
  $("held").hidden = !held;
  $("play").textContent = playing === null ? "Play" : "Pause";
}

// ---------------------------------------------------------------- saving

function save(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name.replace(/[^\w.,=-]+/g, "_") });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function saveRows(name, rows) {
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const text = rows.map((row) => `${row.map((one) => quoted(String(one))).join(",")}\n`).join("");
  save(`${name}.csv`, new Blob([text], { type: "text/csv" }));
}

function saveHistogram() {
  const rows = fillPanel().flatMap(({ run, series, row }) => {
    const { edges, counts } = series.histogram(row);
    return counts.map((count, k) => [run.name, view.tensor, series.steps[row], edges[k], edges[k + 1], count]);
  });
  saveRows(`${view.tensor},step=${view.step}`, [["run", "tag", "step", "from", "to", "entries"], ...rows]);
}

/** A plot as it is now, also where nobody sees it, under its title, with its ranges and the cursor. */
async function savePicture({ plot: one }) {
  await redraw(one);
  const { canvas, title, extent } = one;
  const size = 13 * Math.min(devicePixelRatio, 2);
  const whole = make("canvas", { width: canvas.width + 2 * size, height: canvas.height + 5 * size });
  const context = whole.getContext("2d");
  const rectangle = (colour, ...place) => { context.fillStyle = styled(colour); context.fillRect(...place); };
  rectangle("--paper", 0, 0, whole.width, whole.height);
  rectangle("--field", size, 2 * size, canvas.width, canvas.height);
  context.drawImage(canvas, size, 2 * size);
  rectangle("--ink", size + scale().to(view.step) * canvas.width, 2 * size, 2, canvas.height);
  context.font = `${size}px system-ui, sans-serif`;
  context.fillText(`${title}: ${extent.textContent}`, size, 1.5 * size, canvas.width);
  const below = `steps ${range().join(" to ")}, cursor at ${view.step}`;
  context.fillText(below, size, canvas.height + 3.5 * size, canvas.width);
  whole.toBlob((blob) => save(`${title}.png`, blob));
}

// ---------------------------------------------------------------- one frame

let asked = false;
let drawn = "";
function schedule() {
  if (!asked) requestAnimationFrame(frame);
  asked = true;
}

function frame(time) {
  asked = false;
  if (playing !== null) film(time);
  const now = JSON.stringify([range(), SWITCHES.map((name) => view[name]), view.values, isDark()]);
  for (const one of plots) one.dirty ||= now !== drawn;
  drawn = now;
  const visible = plots.filter((one) => one.visible);
  visible.forEach(move);
  fillPanel();
  fillControls();
  const end = performance.now() + 12;
  for (const one of visible.filter(({ dirty }) => dirty)) {
    if (performance.now() > end) return schedule();
    redraw(one);
  }
}

function move(one) {
  [one.cursor, one.pinned].forEach((line, i) => {
    line.style.transform = `translateX(${100 * scale().to([view.step, view.pin ?? -1][i])}%)`;
  });
  one.pinned.hidden = view.pin === null;
  one.move?.();
}

/** Draws what was not seen yet, one plot at a time: then it can be printed, too. */
async function drawUnseen() {
  for (const one of [...plots]) {
    if (one.dirty && !one.visible) await redraw(one).catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

let due = 0; // steps of the film, as far as they are not whole yet
function film(time) {
  due += ((time - playing) / 1000) * $("speed").value;
  playing = view.step < range()[1] ? time : null;
  const whole = Math.max(0, Math.floor(due));
  due -= whole;
  if (whole) change({ step: clamp(view.step + whole, range()) });
  schedule();
}

/** Changes the view, and shows it. */
let settling = 0, followed = location.hash;
function change({ hold = held, ...parts }) {
  const { tensor, difference } = view;
  held = hold;
  Object.assign(view, parts, { step: clamp(parts.step ?? view.step) });
  if (view.range) view.range = view.range.map((step) => clamp(step)).sort((a, b) => a - b);
  if (parts.range) view.step = clamp(view.step, view.range);
  if (difference !== view.difference) build();
  if (tensor !== view.tensor) choose();
  schedule();
  clearTimeout(settling);
  settling = setTimeout(() => {
    if (location.hash === followed) history.replaceState(null, "", link());  // else there is a new one to follow
    followed = location.hash;
    const words = [...$("figures").rows].map((row) => [...row.cells].map((cell) => cell.textContent).join(" "));
    $("said").textContent = `${view.tensor}: ${words.join(", ")}`;
  }, 300);
}

function choose() {
  const figures = document.querySelectorAll("[data-tag]");
  for (const one of figures) one.classList.toggle("chosen", one.dataset.tag === view.tensor);
  for (const one of plots) one.dirty ||= Boolean(one.lines);
  for (const run of runs) {
    run.histograms.get(view.tensor)?.load().then(schedule);
    run.scalars.get(`${view.tensor}/nonfinite`)?.load().then(schedule);
  }
}

// ---------------------------------------------------------------- the link

function link() {
  const found = new URLSearchParams({ step: view.step, tensor: view.tensor });
  if (view.range) found.set("range", view.range.join(".."));
  if (view.values[view.tensor]) found.set("values", view.values[view.tensor].join(".."));
  if (view.pin !== null) found.set("pin", view.pin);
  for (const name of SWITCHES) if (view[name]) found.set(name, 1);
  return `#${String(found).replaceAll("%2F", "/")}`;
}

function followLink() {
  followed = location.hash;
  const given = new URLSearchParams(location.hash.slice(1));
  const numbers = (name) => (given.get(name) ?? "").split("..").map(parseFloat);
  const pair = (name) => {
    const [a, b, ...rest] = numbers(name);
    return Number.isFinite(a) && a <= b && b < Infinity && !rest.length ? [a, b] : null;
  };
  const tensor = tensors().includes(given.get("tensor")) ? given.get("tensor") : view.tensor;
  const pin = numbers("pin")[0];
  const switches = Object.fromEntries(SWITCHES.map((name) => [name, given.get(name) === "1"]));
  if (runs.length < 2) switches.difference = false;
  change({
    ...switches, tensor, hold: given.has("step"), step: numbers("step")[0] || view.step, pin: pin ? clamp(pin) : null,
    range: pair("range"), values: pair("values")?.[0] < pair("values")?.[1] ? { [tensor]: pair("values") } : {},
  });
}

// ---------------------------------------------------------------- building the page

function describe() {
  lastStep = Math.max(1, ...runs.map((run) => run.steps));
  const about = (run) => `${runs.length > 1 ? `${numbered(run)}: ${run.name}, ` : ""}${run.status}, step ${run.steps}`;
  $("runs").replaceChildren(...runs.map((run) => make("li", {}, parted(about(run)))));
  const thin = runs.filter((run) => run.thinned).map((run) => `${run.name}: this page holds ${run.thinned}.`);
  $("thinned").hidden = !thin.length;
  $("thinned").textContent = `${thin.join(" ")} bin/view --steps=A..B keeps every step from A to B.`;
}

function build() {
  seen.disconnect();
  resized.disconnect();
  plots = [];
  describe();
  $("ramp").className = view.difference ? "difference" : "";
  $("ramp").textContent = view.difference ? "more in run 2, more in run 1" : "0.01% to 100%";
  $("marks").replaceChildren(...runs.map(lane));
  const [usual, more] = [true, false].map((which) => data.strips.filter((one) => one.usual === which).map(strip));
  const open = $("strips").querySelector("details")?.open;
  const details = make("details", open ? { open } : {}, make("summary", {}, "More scalars"), ...more);
  $("strips").replaceChildren(...usual, ...(more.length ? [details] : []));
  $("tensors").replaceChildren(...data.tensors.flatMap(({ layer, tags }, i) => {
    const pictures = tags.flatMap(cells);
    const least = `max(8rem, 100% / ${Math.max(2, pictures.length)} - 0.8rem)`;  // so many a row at most
    const style = `grid-template-columns: repeat(auto-fill, minmax(${least}, 1fr))`;
    const heading = layer === data.tensors[i - 1]?.layer ? [] : [make("h2", {}, layer)];
    return [...heading, make("div", { class: "tensors", style }, ...pictures)];
  }));
  $("tensor").replaceChildren(...tensors().map((tag) => make("option", {}, tag)));
  choose();
}

/** Zooms at the cursor or, near an end, from that end; where all steps fit, also those to come. */
function zoom(factor) {
  const wide = Math.max(2, Math.round((range()[1] - range()[0]) * factor));
  const first = Math.max(1, Math.min(view.step - Math.round(wide / 2), lastStep - wide));
  change({ range: wide < lastStep - 1 ? [first, first + wide] : null });
}

function neighbour(by) {
  const all = tensors();
  return all[clamp(all.indexOf(view.tensor) + by, [0, all.length - 1])] ?? "";
}

const actions = {
  play: () => {
    playing = playing === null ? performance.now() : null;
    if (playing !== null && view.step >= range()[1]) change({ step: range()[0] });
    schedule();
  },
  pin: () => change({ pin: view.pin === null ? view.step : null }),
  in: () => zoom(0.5),
  out: () => zoom(2),
  all: () => change({ range: null, values: {} }),
  csv: saveHistogram,
  png: () => plots.filter((one) => one.tag === view.tensor).forEach((one) => savePicture(one.box)),
};
const MOVES = {
  ArrowLeft: (far) => ({ step: view.step - far }), ArrowRight: (far) => ({ step: view.step + far }),
  Home: () => ({ step: range()[0] }), End: () => ({ step: range()[1] }),
  ArrowUp: () => ({ tensor: neighbour(-1) }), ArrowDown: () => ({ tensor: neighbour(1) }),
};
const KEYS = { " ": "play", p: "pin", "+": "in", "=": "in", "-": "out", 0: "all" };

for (const [name, act] of Object.entries(actions)) $(name).addEventListener("click", act);
for (const name of SWITCHES) $(name).addEventListener("change", () => change({ [name]: $(name).checked }));
for (const name of ["first", "last"]) {
  $(name).addEventListener("change", () => change({ range: [+$("first").value, +$("last").value] }));
}
["low", "high"].forEach((name, i) => {
  $(name).addEventListener("change", () => {
    const two = [...valuesOf(view.tensor)];
    two[i] = parseFloat($(name).value.replaceAll("−", "-"));
    if (two.every(Number.isFinite) && two[0] < two[1]) change({ values: { ...view.values, [view.tensor]: two } });
  });
});
document.addEventListener("focusout", schedule);  // what was typed and not taken goes
for (const name of ["slider", "step"]) {
  $(name).addEventListener("input", () => $(name).value && change({ step: +$(name).value, hold: true }));
}
$("tensor").addEventListener("change", () => change({ tensor: $("tensor").value }));
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("buckets").addEventListener("toggle", schedule);
document.addEventListener("keydown", (event) => {
  const pressing = event.target.matches("button, summary, [type=checkbox]") && [" ", "Enter"].includes(event.key);
  if (pressing || event.target.matches("select, .number") || event.ctrlKey || event.metaKey || event.altKey) return;
  const move = MOVES[event.key]?.(event.shiftKey ? 100 : 1);
  if (event.key === "Escape") change({ hold: false });
  else if (KEYS[event.key.toLowerCase()]) actions[KEYS[event.key.toLowerCase()]]();
  else if (move) change({ ...move, hold: true });
  else return;
  event.preventDefault();
});
addEventListener("hashchange", followLink);
dark.addEventListener("change", schedule);

// ---------------------------------------------------------------- a run that is still training

/** Asks the server again and again for what has come since; less often where that takes long. */
async function renew() {
  const begun = performance.now();
  const series = runs.map((run) => [...run.scalars, ...run.histograms]);
  await Promise.all(series.flat().map(([, one]) => one.load()));
  const have = series.map((of) => Object.fromEntries(of.map(([tag, { steps }]) => [tag, steps[steps.length - 1]])));
  const body = JSON.stringify({ epoch: data.epoch, status: runs.map((run) => run.status), have });
  const reply = await fetch("more", { method: "POST", body }).catch(() => ({ status: 0 }));
  if (reply.status === 205) return location.reload();
  if (reply.status === 200) await add(await reply.json());
  const live = runs.every((run) => !run.status.startsWith("still")) ? "The record is complete." : "Live: new steps appear as they are recorded.";
  $("live").textContent = [200, 204].includes(reply.status) ? live : "bin/view does not respond: this is the last data it sent.";
  setTimeout(renew, Math.max(1000, 4 * (performance.now() - begun)));
}

async function add({ runs: described, blobs, ...rows }) {
  const [before, atEnd] = [JSON.stringify([data.tensors, data.strips]), view.step === lastStep && !view.range];
  await Promise.all(described.map((one, i) => runs[i].add(one, blobs)));
  Object.assign(data, rows);
  if (before !== JSON.stringify([data.tensors, data.strips])) build();
  $("marks").replaceChildren(...runs.map(lane));
  plots = plots.filter((one) => one.box.isConnected);
  for (const one of plots) one.dirty = true;
  describe();
  change({ step: atEnd ? lastStep : view.step, tensor: view.tensor || neighbour(0) });
}

/** Where a run died, or at the first other mark: one step later, with that one pinned; or at the end. */
function begin() {
  const dead = ({ status }) => ["collapsed", "nonfinite"].includes(status);
  const marks = [...runs].sort((a, b) => dead(b) - dead(a)).flatMap((run) => run.marks);
  const found = marks.filter((mark) => !mark.routine);
  const { step, tag } = found.find((mark) => mark.tag) ?? found[0] ?? { step: lastStep };
  const known = [`${tag}/gradient`, tag, ...tensors()].find((one) => tensors().includes(one));
  const early = step <= 50 && step < lastStep;
  change({ tensor: known ?? "", step: step + 1, pin: step < lastStep ? step : null, log: early });
}

build();
begin();
$("differs").hidden = runs.length < 2;
const below = () => document.documentElement.style.setProperty("--top", `${$("controls").offsetHeight}px`);
new ResizeObserver(below).observe($("controls"));  // the panel stays below them, however many rows they take
if (location.hash) followLink();
function paper(on) {
  onPaper.toggle("paper", on);
  for (const one of plots) one.dirty ||= dark.matches;
}
addEventListener("beforeprint", () => {
  paper(true);
  plots.forEach(move);
  plots.filter((one) => one.dirty).forEach(redraw);
  fillPanel();
});
addEventListener("afterprint", () => { paper(false); schedule(); });
setTimeout(drawUnseen, 500);
if (data.epoch !== undefined) {
  $("live").hidden = false;
  renew();
}
