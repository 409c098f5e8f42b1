"use strict";
// What the page holds of each run: series that are unpacked when they are first drawn.

const BUCKETS = 30;
const TYPES = { u1: Uint8Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };

/** The array of a blob: base64 of deflated bytes, those of equal significance side by side. */
async function unpack([dtype, text]) {
  const deflated = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  const shuffled = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = TYPES[dtype].BYTES_PER_ELEMENT;
  const n = shuffled.length / size;
  const plain = new Uint8Array(shuffled.length);
  for (let k = 0; k < size; k++) {
    for (let i = 0; i < n; i++) plain[i * size + k] = shuffled[k * n + i];
  }
  return new TYPES[dtype](plain.buffer);
}

/** The blocks of `a`, each followed by the block of `b` that belongs to it. */
function joined(a, b, blocks) {
  const Type = a.BYTES_PER_ELEMENT < b.BYTES_PER_ELEMENT ? b.constructor : a.constructor;
  const whole = new Type(a.length + b.length);
  const [m, n] = [a.length / blocks, b.length / blocks];
  for (let i = 0; i < blocks; i++) {
    whole.set(a.subarray(i * m, (i + 1) * m), i * (m + n));
    whole.set(b.subarray(i * n, (i + 1) * n), i * (m + n) + m);
  }
  return whole;
}

/** The edges of buckets of equal width, 31 for each of the pairs, in their precision. */
function evenEdges(low, high) {
  const edges = new low.constructor(low.length * (BUCKETS + 1));
  for (let row = 0, place = 0; row < low.length; row++) {
    for (let k = 0; k < BUCKETS; k++) edges[place++] = low[row] + (high[row] - low[row]) * (k * (1 / BUCKETS));
    edges[place++] = high[row];
  }
  return edges;
}

/** What is on record under one tag: `steps`, in order, and of a scalar `values`; of a tensor `low`,
 * `high`, `counts`, bucket by bucket, and `edges` where these do not follow from low and high. */
class Series {
  constructor(entry, blobs) {
    this.unpack = () => this.add(entry, blobs);
  }

  load() {
    return (this.loading ??= this.unpack());
  }

  /** Adds what an entry holds to what is there. */
  async add({ linear, ...numbers }, blobs) {
    const names = Object.keys(numbers);
    const arrays = await Promise.all(names.map((name) => unpack(blobs[numbers[name]])));
    const more = Object.fromEntries(names.map((name, i) => [name, arrays[i]]));
    if (this.ready && (this.edges || more.edges)) {
      for (const one of [this, more]) one.edges ??= evenEdges(one.low, one.high);
    }
    for (const [name, array] of Object.entries(more)) {
      this[name] = this.ready ? joined(this[name], array, name === "counts" ? BUCKETS : 1) : array;
    }
    Object.assign(this, { linear: this.linear ?? linear, ready: true });
  }

  /** The row that holds at a step: the newest one that is not after it; -1 if there is none. */
  at(step) {
    if (!this.ready || !this.steps.length || step < this.steps[0]) return -1;
    let [low, high] = [0, this.steps.length];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.steps[middle] <= step) low = middle;
      else high = middle;
    }
    return low;
  }

  /** The rows of the steps from a to b, [first, behind the last], or of none the one that holds at a. */
  rows(a, b) {
    const [first, end] = [this.at(a - 1) + 1, this.at(b) + 1];
    return first < end ? [first, end] : [Math.max(end - 1, 0), end];
  }

  /** The smallest and the largest finite value in some rows; of none Infinity and -Infinity. */
  extent(first, end) {
    let [low, high] = [Infinity, -Infinity];
    const [lows, highs] = [this.low ?? this.values, this.high ?? this.values];
    for (let row = first; row < end; row++) {
      if (Number.isFinite(lows[row])) low = Math.min(low, lows[row]);
      if (Number.isFinite(highs[row])) high = Math.max(high, highs[row]);
    }
    return [low, high];
  }

  /** The smallest value above 0. */
  get least() {
    return this.values.reduce((least, value) => (value > 0 && value < least ? value : least), Infinity);
  }

  /** A histogram as it is on record: 31 edges, 30 counts. */
  histogram(row) {
    const edges = this.edges?.subarray(row * (BUCKETS + 1), (row + 1) * (BUCKETS + 1))
      ?? evenEdges(this.low.subarray(row, row + 1), this.high.subarray(row, row + 1));
    const counts = Array.from({ length: BUCKETS }, (_, k) => this.counts[k * this.steps.length + row]);
    return { edges, counts };
  }

  /** What a histogram says; for mean and deviation each entry is in the middle of its bucket. */
  figures(row) {
    const { edges, counts } = this.histogram(row);
    const finite = counts.reduce((a, b) => a + b, 0);
    const mean = counts.reduce((sum, c, k) => sum + (c * (edges[k] + edges[k + 1])) / 2, 0) / finite;
    const square = counts.reduce((sum, c, k) => sum + c * ((edges[k] + edges[k + 1]) / 2 - mean) ** 2, 0);
    const zero = counts.findLastIndex((_, k) => edges[k] <= 0 && 0 <= edges[k + 1]);
    const near = (zero < 0 ? 0 : counts[zero]) / finite; // NaN where no entry is finite
    const deviation = Math.sqrt(square / finite);
    return { step: this.steps[row], smallest: edges[0], largest: edges[BUCKETS], mean, deviation, near };
  }
}

/** A run of the page's data. */
class Run {
  constructor(described, blobs) {
    this.scalars = new Map();
    this.histograms = new Map();
    this.add(described, blobs);
  }

  /** Adds series, and to those that are there, unpacked, what came later. */
  add({ scalars, histograms, ...rest }, blobs) {
    Object.assign(this, rest);
    const more = [[this.scalars, scalars], [this.histograms, histograms]];
    return Promise.all(more.flatMap(([known, entries]) => Object.entries(entries).map(([tag, entry]) => {
      if (known.has(tag)) return known.get(tag).add(entry, blobs);
      known.set(tag, new Series(entry, blobs));
    })));
  }
}
