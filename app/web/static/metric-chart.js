// <metric-chart>: the curves of one job or of several, with one cursor and one range for all charts.
//
// In it are an element with data-src for each job (data-stream, or data-live "poll", while it may train),
// a figure with data-y for each chart (its columns), and a form. The page's address carries the view:
// x (step, tokens or time), log, smooth, and after a zoom from and to, in units of x.

const MOST = 2000;
const MARKS = { resume: '↻', heal: '✚', skipped: '✕', nonfinite: '✕', spike: '▲', checkpoint: '◆' };
const NOTICES = { healed: 'heal', nonfinite_skipped: 'skipped', nonfinite_step: 'nonfinite' };
const SECONDS = [1, 2, 5, 10, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 43200, 86400, 604800];
const HEIGHT = 210;
const COLUMNS = ['step', 'tokens', 'time', 'loss', 'grad_norm', 'param_norm', 'learning_rate',
  'tokens_per_second', 'peak_memory_bytes'];
const compact = Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 4 });
const colourOf = (element) => getComputedStyle(element).color;

function short(value) {
  if (value == null) return '–';
  return value && Math.abs(value) < 1e-3 ? value.toExponential(1) : compact.format(value);
}

function clock(seconds) {
  const [h, m, s] = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map(Math.floor);
  return h ? `${h} h ${m}` : m ? `${m} min ${s}` : `${s} s`;
}

// Index of the first element that is not below the value.
function find(sorted, value) {
  const index = sorted.findIndex((each) => each >= value);
  return index < 0 ? sorted.length : index;
}

// Counted in 200ths of the view: a weight looks the same however many points there are.
function smoothed(steps, values, weight, span) {
  let [mean, last] = [null, 0];
  return values.map((value, i) => {
    if (value == null) return value;
    const kept = mean === null ? 0 : weight ** (((steps[i] - last) * 200) / span);
    last = steps[i];
    return (mean = kept * mean + (1 - kept) * value);
  });
}

class Source {
  constructor(element) {
    Object.assign(this, element.dataset, { swatches: element.querySelectorAll('line') });
    this.data = Object.fromEntries(COLUMNS.map((name) => [name, []]));
    Object.assign(this, { evaluations: [], markers: [], added: 0 });
  }

  async get(query) {
    const answer = await fetch(`${this.src}?${new URLSearchParams({ max_points: MOST, ...query })}`);
    if (!answer.ok) throw Error(answer.status);
    return answer.json();
  }

  async load() {
    const { columns, ...rest } = await this.get();
    // The stream is ahead of the database by a moment; what it brought stays.
    const start = this.stream ? find(this.data.step, (columns.step.at(-1) ?? 0) + 1) : Infinity;
    for (const name in columns) columns[name].push(...this.data[name].slice(start));
    Object.assign(this, rest, { data: columns, added: 0 });
  }

  // Finer points where the view is; those beside it stay, so that lines run out of it.
  async refine(x, low, high) {
    const { step, [x]: xs } = this.data;
    const [first, last] = [Math.max(find(xs, low) - 1, 0), Math.min(find(xs, high), xs.length - 1)];
    if (step[last] - step[first] <= last - first) return;
    const { columns } = await this.get({ from_step: step[first], to_step: step[last] });
    for (const name in columns) this.data[name].splice(first, last - first + 1, ...columns[name]);
  }

  // What to do with the events of the stream; one may come a second time.
  handlers(redraw) {
    const put = (name, item) => {
      const others = this[name].filter(({ step, kind }) => step !== item.step || kind !== item.kind);
      this[name] = [...others, item];
    };
    const take = {
      step: ({ metrics }) => this.append(metrics),
      ready: ({ step }) => this.cut(step),
      evaluation: ({ evaluation }) => put('evaluations', evaluation),
    };
    const mark = (event, { code, step }) => {
      const kind = { checkpoint: 'checkpoint', ready: step && 'resume', notice: NOTICES[code] }[event];
      if (kind) put('markers', { kind, step });
    };
    const handler = (event) => [event, (data) => {
      take[event]?.(data);
      mark(event, data);
      redraw();
    }];
    return Object.fromEntries([...Object.keys(take), 'checkpoint', 'notice'].map(handler));
  }

  // A resume goes on behind a step; what was done past it counts no more.
  cut(step) {
    const end = find(this.data.step, step + 1);
    for (const column of Object.values(this.data)) column.length = end;
    for (const name of ['evaluations', 'markers']) this[name] = this[name].filter((each) => each.step <= step);
  }

  append(metrics) {
    if (metrics.step <= this.data.step.at(-1)) return;
    const sums = { tokens: metrics.num_tokens, time: metrics.step_seconds };
    for (const [name, column] of Object.entries(this.data))
      column.push(name in sums ? (column.at(-1) ?? 0) + sums[name] : metrics[name]);
    this.added += 1;
    if (this.added > MOST) this.load();
  }

  at(step, x) {
    return x === 'step' ? step : this.data[x][find(this.data.step, step)];
  }
}

class MetricChart extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector('form');
    this.sources = [...this.querySelectorAll('[data-src]')].map((each) => new Source(each));
    this.plots = [];
    this.form.hidden = false;
    this.form.addEventListener('input', () => this.changed());
    this.addEventListener('click', ({ target }) => this.clicked(target));
    this.addEventListener('keydown', (event) => this.pressed(event));
    addEventListener('popstate', () => this.open());
    const dark = matchMedia('(prefers-color-scheme: dark)');
    dark.addEventListener('change', () => this.plots.forEach((plot) => plot.redraw()));
    new ResizeObserver(() => this.plots.forEach((plot) => plot.setSize(this.size(plot)))).observe(this);
    this.open().then(() => this.sources.forEach((source) => this.follow(source)));
  }

  // Show what the address says.
  async open() {
    const query = new URLSearchParams(location.search);
    const { x, log, smooth } = this.form;
    x.value = query.get('x') ?? 'step';
    log.checked = query.has('log');
    smooth.value = query.get('smooth') ?? smooth.defaultValue;
    this.range = query.has('to') ? [+query.get('from'), +query.get('to')] : null;
    this.x = x.value;
    await Promise.allSettled(this.sources.map((source) => source.load()));
    this.build();
    if (this.range) this.refine();
  }

  changed() {
    if (this.x !== this.form.x.value) this.range = null;
    this.x = this.form.x.value;
    this.write('replaceState');
    this.build();
  }

  write(how) {
    const [from, to] = this.range ?? [];
    const url = new URL(location);
    const view = { x: this.x, log: this.log ? 1 : null, smooth: this.form.smooth.value, from, to };
    for (const [name, value] of Object.entries(view))
      value == null ? url.searchParams.delete(name) : url.searchParams.set(name, value);
    history[how](null, '', url);
  }

  zoom(range) {
    const [low, high] = range?.map(Math.round) ?? [];
    this.range = range ? [low, Math.max(high, low + 1)] : null;
    this.write('pushState');
    this.draw();
    if (range) this.refine();
  }

  async refine() {
    await Promise.allSettled(this.sources.map((source) => source.refine(this.x, ...this.range)));
    this.draw();
  }

  get log() {
    return this.form.log.checked;
  }

  scaled(value) {
    return this.log ? Math.log10(value) : value;
  }

  told(value) {
    return short(this.log && value != null ? 10 ** value : value);
  }

  size({ figure }) {
    return { width: figure.querySelector('.plot').clientWidth, height: HEIGHT };
  }

  // The curves of a chart: their number depends on the view alone, not on what came so far.
  lines({ y, unit = 1, soft }) {
    const weight = +this.form.smooth.value;
    // On a log scale, uPlot's own would show whole decades only; its axes write 10 to the power.
    const fit = (value) => (value == null || (this.log && value <= 0) ? null : this.scaled(value * unit));
    const curves = (source, column) => {
      const { data, evaluations, name } = source;
      const curve = { source, label: name ? `\u2068${name}\u2069` : column.replace('_bytes', ' GB').replaceAll('_', ' ') };
      if (column === 'eval_loss') {
        curve.xs = evaluations.map(({ step }) => source.at(step, this.x));
        curve.ys = evaluations.map(({ eval_loss }) => fit(eval_loss));
        return { ...curve, isSparse: true };
      }
      curve.xs = data[this.x];
      curve.ys = data[column].map(fit);
      if (!soft || !weight) return curve;
      const [low, high] = (this.x === 'step' && this.range) || [0, data.step.at(-1)];
      const mean = smoothed(data.step, curve.ys, weight, high - low);
      return [{ ...curve, isThin: true }, { ...curve, label: 'smoothed', ys: mean, isMean: true }];
    };
    return this.sources.flatMap((source) => y.split(' ').flatMap((column) => curves(source, column)));
  }

  build() {
    for (const plot of this.plots) plot.destroy();
    this.plots = [...this.querySelectorAll('figure')].map((figure) => this.plot(figure));
    this.draw();
  }

  plot(figure) {
    const words = this.x === 'time' ? clock : short;
    const grid = { stroke: () => getComputedStyle(figure).borderTopColor, width: 1 };
    const axis = { stroke: () => colourOf(figure.querySelector('output')), grid, ticks: grid };
    const series = this.lines(figure.dataset).map(({ source, isThin, isSparse }) => {
      const stroke = () => colourOf(source.swatches[isSparse ? source.swatches.length - 1 : 0]);
      const dash = isSparse ? [2, 3] : source.dash?.split(' ').map(Number);
      const look = isThin ? { width: 1, alpha: 0.4 } : { width: 2 };
      return { ...look, stroke, dash, points: { fill: stroke, ...(isSparse && { show: true }) } };
    });
    const cursor = {
      y: false,
      drag: { setScale: false },
      sync: { key: 'charts', filters: { sub: (type) => type === 'mousemove' } },
      bind: { dblclick: () => () => this.zoom() },
    };
    const range = (_, low, high) => this.range ?? (low < high ? [low, high] : [low - 1, low + 1]);
    const options = {
      ...this.size({ figure }),
      legend: { show: false },
      cursor,
      scales: { x: { time: false, range } },
      axes: [
        { ...axis, space: 70, values: (_, all) => all.map(words), ...(words === clock && { incrs: SECONDS }) },
        { ...axis, size: 58, values: (_, all) => all.map((value) => this.told(value)) },
      ],
      series: [{}, ...series],
      hooks: { draw: [(u) => this.mark(u)], setCursor: [(u) => this.tell(u)], setSelect: [(u) => this.select(u)] },
    };
    return Object.assign(new uPlot(options, null, figure.querySelector('.plot')), { figure });
  }

  draw() {
    if (this.sources.some(({ data }) => data.step.length)) this.querySelector('.empty')?.remove();
    for (const plot of this.plots) {
      plot.lines = this.lines(plot.figure.dataset);
      plot.setData(uPlot.join(plot.lines.map(({ xs, ys }) => [xs, ys])));
      this.tell(plot);
    }
  }

  // What happened at which step, the seam of a resume, and the limit of a norm.
  mark({ ctx, bbox: { left, top, width, height }, figure, valToPos }) {
    if (!figure) return;
    const line = (...points) => ctx.stroke(new Path2D(`M${points.join(' ')}`));
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    ctx.font = `${12 * devicePixelRatio}px system-ui`;
    ctx.textAlign = 'center';
    ctx.strokeStyle = ctx.fillStyle = colourOf(figure);
    ctx.setLineDash([6, 4]);
    const limit = valToPos(this.scaled(figure.dataset.limit), 'y', true);
    if (limit) line(left, limit, left + width, limit);
    for (const source of this.sources) {
      const last = {};
      for (const { kind, step } of source.markers) {
        const x = valToPos(source.at(step, this.x), 'x', true);
        if (x - last[kind] < 12 || (kind === 'checkpoint' && this.sources.length > 1)) continue;
        last[kind] = x;
        ctx.fillText(MARKS[kind], x, kind === 'checkpoint' ? top + height - 4 : top + 12);
        if (kind === 'resume') line(x, top + 16, x, top + height);
      }
    }
    ctx.restore();
  }

  // Say in words what is under the cursor, or what came last.
  tell({ figure, cursor, data, lines, valToPos }) {
    if (!lines) return;
    const index = cursor.idx ?? data[0].length - 1;
    const at = data[0][index] ?? 0;
    const seen = data.slice(1).map((ys) => ys.findLast((y, k) => k <= index && y !== undefined));
    const values = lines.flatMap(({ label, isMean }, i) => (isMean && lines[i].source.name ? [] : `${label} ${this.told(seen[i])}`));
    const isNear = (source, step) => Math.abs(valToPos(source.at(step, this.x), 'x') - cursor.left) < 6;
    const events = this.sources.flatMap((source) =>
      source.markers.filter(({ step }) => isNear(source, step)).map(({ kind, step }) => `${MARKS[kind]} ${kind} ${step}`),
    );
    const text = [this.x === 'time' ? clock(at) : `${this.x} ${short(at)}`, ...values, ...events].join(' · ');
    figure.querySelector('output').value = text;
    Object.assign(figure.querySelector('.plot'), { ariaValueNow: at, ariaValueText: text });
  }

  select(plot) {
    const { left, width } = plot.select;
    plot.setSelect({ left: 0, width: 0 }, false);
    if (width > 4) this.zoom([left, left + width].map((each) => plot.posToVal(each, 'x')));
  }

  pressed(event) {
    const plot = this.plots.find(({ root }) => root.parentElement === event.target);
    if (!plot) return;
    const [xs] = plot.data;
    const { min, max } = plot.scales.x;
    const at = plot.cursor.idx ?? xs.length - 1;
    const by = event.shiftKey ? 10 : 1;
    const to = { ArrowLeft: at - by, ArrowRight: at + by, Home: find(xs, min), End: find(xs, max) }[event.key];
    const reach = { '+': (max - min) / 4, '-': max - min }[event.key];
    if (reach) this.zoom([Math.max(xs[at] - reach, xs[0]), Math.min(xs[at] + reach, xs.at(-1))]);
    else if (event.key === 'Escape') this.zoom();
    else if (to !== undefined) {
      const x = xs[Math.min(Math.max(to, 0), xs.length - 1)];
      plot.setCursor({ left: plot.valToPos(x, 'x'), top: 0 }, true, true);
    } else return;
    event.preventDefault();
  }

  clicked(button) {
    if (button.name === 'reset') this.zoom();
    if (button.name === 'png') this.save(button.closest('figure'));
  }

  save(figure) {
    const chart = figure.querySelector('canvas');
    const { width, height } = chart;
    const picture = Object.assign(document.createElement('canvas'), { width, height });
    const ctx = picture.getContext('2d');
    ctx.fillStyle = getComputedStyle(figure).backgroundColor;
    ctx.fillRect(0, 0, width, height);
    ctx.drawImage(chart, 0, 0);
    const link = document.createElement('a');
    Object.assign(link, { href: picture.toDataURL(), download: `${figure.dataset.y}.png` }).click();
  }

  // Go on where the answer ended. A comparison asks again instead: a browser has few streams.
  follow(source) {
    if (source.stream) lorad.subscribe(source.stream, source.handlers(() => this.redraw()), source.cursor);
    else if (source.live) setInterval(() => source.load().then(() => this.redraw(), () => {}), 5000);
  }

  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }
}
customElements.define('metric-chart', MetricChart);
