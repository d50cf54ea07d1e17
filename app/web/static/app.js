// What every page has. Other scripts find it at `window.lorad`, which is there before they run:
//
//   setStatus(kind, text)  Put a state into the tab; kind is a key of DOTS, or ''.
//   subscribe(url, handlers, cursor)
//                          Follow a stream: handlers has (data, id) => per kind of event. It goes on
//                          behind the last id after an interruption; `complete` or a 404 ends it.
//                          Returns a function that ends it.
//   connection(text)       Say how the connection is; '' when there is nothing to say.
//
// data-follow names a stream of parts: what is in the element of an id. Where parts of that have
// data-live, only those of them that changed are put in, so that focus and marks stay.
// data-copy makes a button copy its value, or the text of the element that "#id" names.

const title = document.title;
const DOTS = { running: '#56b4e9', done: '#2fc79b', failed: '#ff5a4f', waiting: '#f2b134' };
const SLOWEST = 15_000;

function setStatus(kind, text) {
  document.title = text ? `${text} · ${title}` : title;
  const dot = DOTS[kind] ?? '#0a5c66';
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16"
    rx="3" fill="#0a5c66"/><path d="M4 3v10h8" fill="none" stroke="#fff" stroke-width="2"/>
    <circle cx="11" cy="5" r="4" fill="${dot}"/></svg>`;
  document.querySelector('link[rel=icon]').href = `data:image/svg+xml,${encodeURIComponent(svg)}`;
}

function connection(text) {
  const place = document.querySelector('#connection');
  if (place.textContent !== text) place.textContent = text;
}

function subscribe(url, handlers, cursor) {
  const stop = new AbortController();
  let last = cursor;
  let failures = 0;
  const take = (text) => {
    const event = { event: 'message', data: [] };
    for (const line of text.split('\n')) {
      const [, name, value] = /^([a-z]*):? ?(.*)$/s.exec(line) ?? [];
      if (name === 'data') event.data.push(value);
      else if (name) event[name] = value;
    }
    if (!event.data.length) return false;
    let data = event.data.join('\n');
    try { data = JSON.parse(data); } catch { /* it is text */ }
    if (event.id) last = event.id;
    handlers[event.event]?.(data, event.id);
    return event.event === 'complete';
  };
  const follow = async () => {
    const headers = { accept: 'text/event-stream', ...(last && { 'last-event-id': last }) };
    const answer = await fetch(url, { headers, signal: stop.signal });
    if (answer.status === 404) return true;
    if (answer.status === 401) {
      connection('○ signed out: reload the page to sign in');
      return true;
    }
    if (!answer.ok) throw new Error(answer.statusText);
    failures = 0;
    connection('');
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = '', part; !(part = await reader.read()).done;) {
      const pieces = (rest + part.value.replaceAll('\r', '')).split('\n\n');
      rest = pieces.pop();
      for (const piece of pieces) if (take(piece)) return true;
    }
    return false;
  };
  (async () => {
    while (!stop.signal.aborted) {
      try {
        if (await follow()) return;
      } catch {
        if (stop.signal.aborted) return;
      }
      failures += 1;
      if (failures > 1) connection('○ no connection to the server; trying again');
      await new Promise((go) => { setTimeout(go, Math.min(SLOWEST, 250 * 2 ** failures)); });
    }
  })();
  addEventListener('pagehide', () => stop.abort(), { once: true });
  return () => stop.abort();
}

let stop;
let place;

// Again after a filter has put another table in the place of this one.
function follow() {
  stop?.();
  place = document.querySelector('[data-follow]');
  stop = place && subscribe(place.dataset.follow, {
    tab({ kind, text }) { setStatus(kind, text); },
    gone({ id }) { document.querySelector(`#line-${id}`)?.classList.add('quiet'); },
    part({ id, html }) {
      const old = document.getElementById(id);
      const made = document.createElement('template');
      made.innerHTML = html;
      const cells = made.content.querySelectorAll('[data-live]');
      if (!cells.length) old?.replaceChildren(made.content);
      old?.querySelectorAll('[data-live]').forEach((cell, index) => {
        if (cells[index] && cell.innerHTML !== cells[index].innerHTML) cell.replaceWith(cells[index]);
      });
    },
  });
}

follow();
document.addEventListener('htmx:after:swap', () => place?.isConnected || follow());

document.addEventListener('click', async ({ target }) => {
  const button = target.closest?.('[data-copy]');
  if (!button) return;
  const from = button.dataset.copy;
  const text = from.startsWith('#') ? document.querySelector(from).textContent : from;
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = '✓ Copied';
  } catch {
    button.textContent = 'Not allowed: select and copy';
  }
  setTimeout(() => { button.textContent = label; }, 2000);
});

window.lorad = { setStatus, subscribe, connection };
