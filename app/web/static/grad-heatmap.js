// <grad-heatmap>: the gradient of each layer at each sampled step, of one matrix of one module.
//
// It loads data-src, and holds a select (`module` in the page's address), a canvas that takes arrows,
// an output for what is under the cursor, and two <b> for the ends of the scale of colours.

const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const SICK = { dead: '×', not_moving: '=', nonfinite: '!' };
const [ROW, LEFT, BOTTOM] = [18, 34, 18];

// A colour for a place between 0 and 1.
function viridis(place) {
  const scaled = place * (VIRIDIS.length - 1);
  const index = Math.min(Math.floor(scaled), VIRIDIS.length - 2);
  const mix = (low, i) => low + (VIRIDIS[index + 1][i] - low) * (scaled - index);
  return `rgb(${VIRIDIS[index].map(mix)})`;
}

class GradHeatmap extends HTMLElement {
  connectedCallback() {
    for (const name of ['select', 'canvas', 'output']) this[name] = this.querySelector(name);
    this.hidden = false;
    this.select.addEventListener('change', () => this.choose());
    this.canvas.addEventListener('mousemove', (event) => this.point(event));
    this.canvas.addEventListener('keydown', (event) => this.pressed(event));
    new ResizeObserver(() => this.draw()).observe(this);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
    this.load();
  }

  choose() {
    const url = new URL(location);
    url.searchParams.set('module', this.select.value);
    history.replaceState(null, '', url);
    this.load();
  }

  async load() {
    try {
      const answer = await fetch(`${this.dataset.src}?module=${encodeURIComponent(this.select.value)}`);
      this.heat = await answer.json();
    } catch {
      this.output.value = 'The gradients did not come: the server does not answer. Choose again.';
      return;
    }
    const logs = this.heat.norms.flat().filter((norm) => norm > 0).map(Math.log10);
    this.ends = [Math.min(...logs), Math.max(...logs)];
    this.querySelectorAll('b').forEach((end, i) => (end.textContent = (10 ** this.ends[i]).toExponential(1)));
    this.move(this.heat.steps.length - 1, 0);
  }

  draw() {
    if (!this.heat) return;
    const { canvas, heat: { steps, layers } } = this;
    const [width, height, zoom] = [canvas.clientWidth, layers.length * ROW + BOTTOM, devicePixelRatio];
    Object.assign(canvas, { width: width * zoom, height: height * zoom });
    const ctx = canvas.getContext('2d');
    ctx.scale(zoom, zoom);
    ctx.font = '11px system-ui';
    this.wide = (width - LEFT) / steps.length;
    steps.forEach((_, i) => layers.forEach((_, j) => this.cell(ctx, i, j)));
    ctx.fillStyle = ctx.strokeStyle = getComputedStyle(this.output).color;
    layers.forEach((layer, j) => ctx.fillText(layer ?? '–', 4, j * ROW + 13));
    const every = Math.ceil(60 / this.wide);
    steps.forEach((step, i) => i % every || ctx.fillText(step, LEFT + i * this.wide, height - 4));
    ctx.lineWidth = 2;
    ctx.strokeRect(LEFT + this.cursor[0] * this.wide, this.cursor[1] * ROW, this.wide, ROW);
  }

  cell(ctx, i, j) {
    const [norm, state] = [this.heat.norms[i][j], this.heat.states[i][j]];
    const [x, y, [low, high]] = [LEFT + i * this.wide, j * ROW, this.ends];
    if (!state) return;
    const isGrey = state in SICK || !norm;
    ctx.fillStyle = isGrey ? '#666' : viridis((Math.log10(norm) - low) / (high - low || 1));
    ctx.fillRect(x, y, Math.max(this.wide - 0.5, 1), ROW - 1);
    ctx.fillStyle = '#fff';
    if (isGrey) ctx.fillText(SICK[state] ?? '·', x + this.wide / 2 - 3, y + 13);
  }

  point({ offsetX, offsetY }) {
    this.move(Math.floor((offsetX - LEFT) / this.wide), Math.floor(offsetY / ROW));
  }

  pressed(event) {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!by || !this.heat) return;
    event.preventDefault();
    this.move(this.cursor[0] + by[0], this.cursor[1] + by[1]);
  }

  // Put the cursor on a cell, and say what it is.
  move(column, row) {
    if (!this.heat) return;
    const { steps, layers, norms, states } = this.heat;
    const within = (value, end) => Math.min(Math.max(value, 0), end - 1);
    const [i, j] = (this.cursor = [within(column, steps.length), within(row, layers.length)]);
    const norm = norms[i][j] == null ? 'not finite' : norms[i][j].toPrecision(3);
    const state = states[i][j]?.replaceAll('_', ' ') ?? 'not measured';
    this.output.value = `step ${steps[i]}, layer ${layers[j] ?? 'none'}: gradient norm ${norm}, ${state}`;
    this.draw();
  }
}
customElements.define('grad-heatmap', GradHeatmap);
