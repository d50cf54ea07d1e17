// <new-job> holds the form of a new job and #plan. Without this script the form works as it is.
//
// Each change asks the server for the plan of what is typed and shows it; what is wrong is put at
// its field. A chosen file is uploaded at once, and then is the chosen data set.

const WAIT = 500;

class NewJob extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector('form');
    this.plan = this.querySelector('#plan');
    this.file = this.form.elements.file;
    this.form.addEventListener('input', ({ target }) => target !== this.file && this.later());
    this.file.addEventListener('change', () => this.upload());
    this.form.addEventListener('submit', (event) => {
      if (this.isSent && !event.submitter?.formAction.endsWith('/plan')) event.preventDefault();
      this.isSent = !event.submitter?.formAction.endsWith('/plan');
    });
    addEventListener('pageshow', () => { this.isSent = false; });
    if (this.form.elements['dataset.id'].value) this.later();
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), WAIT);
  }

  async ask() {
    this.asking?.abort();
    const asking = new AbortController();
    this.asking = asking;
    const typed = new FormData(this.form);
    typed.delete('file');
    try {
      const answer = await fetch('/ui/new/plan', {
        method: 'POST', body: new URLSearchParams(typed), signal: asking.signal,
        headers: { 'hx-request': 'true' },
      });
      this.plan.innerHTML = await answer.text();
    } catch {
      if (!asking.signal.aborted) this.plan.textContent = 'No connection to the server: no plan.';
      return;
    }
    const wrong = new Map([...this.plan.querySelectorAll('[data-param]')]
      .map((each) => [each.dataset.param, each.querySelector('span').textContent]));
    for (const place of this.form.querySelectorAll('[data-problem]')) {
      const path = place.dataset.problem;
      const field = this.form.elements[path];
      // What is not chosen yet is no mistake before the form is sent.
      this.say(path, field?.value ? wrong.get(path) : undefined);
      field?.toggleAttribute('aria-invalid', Boolean(field.value && wrong.has(path)));
    }
  }

  say(path, problem) {
    this.form.querySelector(`[data-problem="${path}"]`).textContent = problem ? `✗ ${problem}` : '';
  }

  upload() {
    const [file] = this.file.files;
    if (!file) return;
    const bar = this.form.querySelector('progress');
    const request = new XMLHttpRequest(); // fetch tells nothing of how far an upload is
    const body = new FormData();
    body.append('file', file);
    bar.hidden = false;
    this.say('dataset.id', '');
    request.upload.onprogress = ({ loaded, total }) => { bar.value = loaded / total; };
    request.onerror = () => { bar.hidden = true; this.say('dataset.id', 'no connection to the server'); };
    request.onload = () => {
      bar.hidden = true;
      let answer = {};
      try { answer = JSON.parse(request.response); } catch { /* told below */ }
      if (request.status !== 201) {
        this.say('dataset.id', answer.error?.message ?? `the upload failed (${request.status})`);
        return;
      }
      const choice = new Option(`${answer.name} (${answer.num_rows} rows)`, answer.id, true, true);
      this.form.elements['dataset.id'].add(choice);
      this.file.value = '';
      this.ask();
    };
    request.open('POST', '/datasets');
    request.send(body);
  }
}

customElements.define('new-job', NewJob);
