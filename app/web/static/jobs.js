// The page of all jobs: lines change in place, and keys move through them.

const { setStatus, subscribe } = window.lorad;
let stop;

// Again after the filter has put another table in the place of this one.
function follow() {
  stop?.();
  const table = document.querySelector('#jobs');
  if (!table) return;
  setStatus(table.dataset.kind, table.dataset.text);
  stop = subscribe(table.dataset.live, {
    line({ id, html }) {
      const old = document.querySelector(`#line-${id}`);
      const made = document.createElement('template');
      made.innerHTML = html;
      const cells = made.content.querySelectorAll('[data-live]');
      // Only cells that can hold neither focus nor a mark.
      old?.querySelectorAll('[data-live]').forEach((cell, index) => {
        if (cell.innerHTML !== cells[index].innerHTML) cell.replaceWith(cells[index]);
      });
    },
    gone({ id }) { document.querySelector(`#line-${id}`)?.classList.add('quiet'); },
    counts({ kind, text }) { setStatus(kind, text); },
    news({ count }) {
      const link = document.createElement('a');
      link.href = table.dataset.fresh;
      link.textContent = count === 1 ? '1 new job: show' : `${count} new jobs: show`;
      document.querySelector('#news').replaceChildren(...(count ? [link] : []));
    },
    workers({ html }) { document.querySelector('#workers').innerHTML = html; },
  });
}

follow();
document.addEventListener('htmx:after:swap', follow);

const links = () => [...document.querySelectorAll('#jobs th a')];

function move(by) {
  const all = links();
  const row = document.activeElement.closest?.('#jobs tbody tr');
  const at = row ? all.indexOf(row.querySelector('th a')) : -1;
  all[at < 0 ? 0 : Math.min(Math.max(at + by, 0), all.length - 1)]?.focus();
}

addEventListener('keydown', (event) => {
  const typing = event.target.matches('input:not([type=checkbox]), select, textarea');
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const inside = event.target.closest('#jobs');
  const act = {
    j: () => move(1),
    k: () => move(-1),
    ArrowDown: inside && (() => move(1)),
    ArrowUp: inside && (() => move(-1)),
    x: inside && (() => event.target.closest('tr')?.querySelector('[name=job]')?.click()),
    '/': () => document.querySelector('[name=q]')?.focus(),
    '?': () => document.querySelector('#keys').showModal(),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
