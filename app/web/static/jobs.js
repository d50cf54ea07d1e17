// The page of all jobs: keys move through them.

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
