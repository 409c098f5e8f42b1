"use strict";
// Pictures on canvases: heat maps, lines, histograms. Nothing here knows of the page's state.

/** An axis of steps: `to` gives the fraction of the width at which a step is, `from` the step at a
 * fraction. Each step takes the room from half a step before to half a step after it. */
function stepScale([first, last], logarithmic) {
  const [a, b] = [first - 0.5, last + 0.5];
  if (!logarithmic) return { to: (s) => (s - a) / (b - a), from: (u) => a + u * (b - a) };
  const [c, d] = [Math.log(Math.max(a, 0.5)), Math.log(b)];
  return { to: (s) => (Math.log(Math.max(s, 0.5)) - c) / (d - c), from: (u) => Math.exp(c + u * (d - c)) };
}

/** An axis of values: linear; or symmetric-log, which is linear below `linear`. */
function valueScale([low, high], linear = 0) {
  const bend = linear ? (v) => Math.sign(v) * Math.log1p(Math.abs(v) / linear) : (v) => v;
  const unbend = linear ? (v) => Math.sign(v) * linear * Math.expm1(Math.abs(v)) : (v) => v;
  let [a, b] = [bend(low), bend(high)];
  if (!(b > a)) [a, b] = [a - (Math.abs(a) || 1) / 2, b + (Math.abs(b) || 1) / 2];
  return { to: (v) => (bend(v) - a) / (b - a), from: (u) => unbend(a + u * (b - a)) };
}

/** Which rows each column of pixels shows: [first, behind the last]. */
function columnRows(series, width, scale, lastStep) {
  return Array.from({ length: width }, (_, x) => {
    const a = Math.round(scale.from(x / width));
    const b = Math.max(a, Math.round(scale.from((x + 1) / width)) - 1);
    return a > lastStep ? [0, 0] : series.rows(a, b);
  });
}

/** For each pixel the largest share of a tensor's finite entries in the bucket that is drawn there,
 * over the steps of its column: Float32Array [height * width]. Buckets within one pixel are added. */
function shares(series, { width, height }, scale, values, lastStep) {
  const found = new Float32Array(width * height);
  const column = new Float32Array(height);
  const n = series.steps.length;
  const places = new Float64Array(BUCKETS + 1);
  const pixel = (u) => Math.min(Math.floor(u * height), height - 1);
  columnRows(series, width, scale, lastStep).forEach(([first, end], x) => {
    for (let row = first; row < end; row++) {
      const [low, high] = [series.low[row], series.high[row]];
      let entries = 0;
      for (let k = 0; k <= BUCKETS; k++) {
        const edge = series.edges ? series.edges[row * (BUCKETS + 1) + k] : low + ((high - low) * k) / BUCKETS;
        places[k] = 1 - values.to(edge); // from the top, 0 to 1
        if (k < BUCKETS) entries += series.counts[k * n + row];
      }
      column.fill(0);
      for (let k = 0; k < BUCKETS; k++) {
        const share = series.counts[k * n + row] / entries;
        if (!share || places[k] < 0 || places[k + 1] > 1) continue; // empty, above or below
        const [top, bottom] = [pixel(Math.max(places[k + 1], 0)), Math.floor(Math.min(places[k], 1) * height)];
        if (bottom <= top) column[top] += share;
        for (let y = top; y < bottom; y++) column[y] = Math.max(column[y], share);
      }
      for (let y = 0, i = x; y < height; y++, i += width) if (column[y] > found[i]) found[i] = column[y];
    }
  });
  return found;
}

// Matplotlib's cividis: perceptually even, and the same to those who are colour-blind.
const CIVIDIS = "00224d 003070 2a3f6d 434e6b 575d6d 696b71 7c7b78 908b77 a59b73 bbad6c d2bf60 e9d24d fde737"
  .split(" ").map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));

/** Where a share lies on the scale of colours, which is logarithmic from one in 10,000 on: 0 to 1. */
const strength = (share) => Math.max(0, Math.min(1, 1 + Math.log10(share) / 4));

function colour(share, dark) {
  const place = (dark ? 0.15 + 0.85 * strength(share) : 1 - strength(share)) * (CIVIDIS.length - 1);
  const below = Math.min(Math.floor(place), CIVIDIS.length - 2);
  return CIVIDIS[below].map((one, i) => one + (CIVIDIS[below + 1][i] - one) * (place - below));
}

/** Paints shares, or the difference of two: blue where the first is larger, orange the other. */
function paint(canvas, found, dark, other) {
  const image = new ImageData(canvas.width, canvas.height);
  found.forEach((one, i) => {
    const share = other ? one - other[i] : one;
    const rgb = !other ? colour(share, dark) : share > 0 ? [0, 114, 178] : [207, 82, 0];
    if (share) image.data.set([...rgb, other ? 40 + 215 * strength(Math.abs(share)) : 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Lines of scalars: {series, colour, dashed, thick}; in each column of pixels from the smallest to the
 * largest value of its steps. What is not finite leaves a gap. */
function drawLines(canvas, lines, scale, values) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (const line of lines) {
    context.beginPath();
    let drawn = false;
    const { steps } = line.series;
    columnRows(line.series, canvas.width, scale, steps[steps.length - 1]).forEach((rows, x) => {
      for (const value of line.series.extent(...rows)) {
        const y = (1 - values.to(value)) * (canvas.height - 4) + 2;
        if (Number.isFinite(y)) context[drawn ? "lineTo" : "moveTo"](x, y);
        drawn = Number.isFinite(y);
      }
    });
    context.strokeStyle = line.colour;
    context.lineWidth = (line.thick ? 2 : 1.2) * devicePixelRatio;
    context.setLineDash(line.dashed ? [4 * devicePixelRatio, 3 * devicePixelRatio] : []);
    context.stroke();
  }
}

/** Histograms over each other: the first filled, the second, of a pinned step, as outlines; each may
 * be null. Returns the range of values. */
function drawHistograms(canvas, pair, colours, linear) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  const shown = pair.filter((one) => Number.isFinite(one?.edges[0]));
  const range = [Math.min(...shown.map((h) => h.edges[0])), Math.max(...shown.map((h) => h.edges[BUCKETS]))];
  const values = valueScale(range, linear);
  const most = Math.max(1, ...shown.flatMap((h) => h.counts));
  context.fillStyle = colours[0];
  context.strokeStyle = colours[1];
  context.lineWidth = 1.5 * devicePixelRatio;
  for (const { edges, counts } of shown) {
    for (let k = 0; k < BUCKETS; k++) {
      const [left, right] = [values.to(edges[k]) * width, values.to(edges[k + 1]) * width];
      const bar = [left, height + 2, Math.max(right - left, 2), (-counts[k] / most) * (height - 2) - 2];
      if (pair[0]?.edges === edges) context.fillRect(...bar);
      else if (counts[k]) context.strokeRect(...bar);
    }
  }
  return range;
}

/** A number for reading: four significant digits. */
function short(number) {
  if (!Number.isFinite(number)) return Number.isNaN(number) ? "–" : number > 0 ? "∞" : "−∞";
  const size = Math.abs(number);
  const plain = size === 0 || (size >= 1e-3 && size < 1e6);
  return (plain ? String(+number.toPrecision(4)) : number.toExponential(3)).replaceAll("-", "−").replace("e+", "e");
}
