// <chat-pane> sends what is typed in its form to one or two models and streams their answers.

class ChatPane extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector('form');
    this.stopButton = this.querySelector('[data-stop]');
    this.turns = { model: [], beside: [] };
    this.form.addEventListener('submit', (event) => { event.preventDefault(); this.send(); });
    this.form.addEventListener('keydown', (event) => {
      if (event.target.name !== 'prompt' || event.key !== 'Enter') return;
      if (event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    this.form.addEventListener('change', ({ target }) => {
      if (!(target.name in this.turns)) return;
      this.turns[target.name] = []; // another model has not said what the last one did
      const url = new URL(location);
      url.searchParams.set(target.name, target.value);
      history.replaceState(null, '', url);
    });
    this.stopButton.addEventListener('click', () => this.stopping?.abort());
  }

  async send() {
    const { prompt, system } = this.form.elements;
    if (this.stopping || !prompt.value.trim()) return;
    this.stopping = new AbortController();
    this.stopButton.hidden = false;
    const text = prompt.value;
    prompt.value = '';
    const asked = Object.keys(this.turns).filter((side) => this.form.elements[side].value);
    await Promise.all(asked.map((side) => this.ask(side, text, system.value)));
    this.stopButton.hidden = true;
    this.stopping = undefined;
  }

  async ask(side, text, system) {
    const { elements } = this.form;
    const turns = [...this.turns[side], { role: 'user', content: text }];
    const first = system.trim() ? [{ role: 'system', content: system }] : [];
    const body = { model: elements[side].value, messages: [...first, ...turns] };
    for (const name of ['temperature', 'top_p', 'max_tokens', 'seed']) {
      const typed = elements[name].value.trim();
      if (typed) body[name] = Number.isNaN(Number(typed)) ? typed : Number(typed);
    }
    if (side === 'model') this.copies(body);
    const [answer, note] = this.card(body.model, text);
    const began = performance.now();
    try {
      await this.read(body, answer, note, began);
    } catch (error) {
      note.textContent = this.stopping.signal.aborted ? '■ stopped' : `✗ ${error.message}`;
    }
    if (answer.textContent) {
      this.turns[side] = [...turns, { role: 'assistant', content: answer.textContent }];
    }
  }

  async read(body, answer, note, began) {
    const reply = await fetch('/v1/chat/completions', {
      method: 'POST', signal: this.stopping.signal, headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let reason = 'cut off';
    for (let rest = '', part; !(part = await reader.read()).done;) {
      const lines = (rest + part.value).split('\n');
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith('data: {')) continue;
        const { choices, usage, error } = JSON.parse(line.slice(6));
        if (error) throw new Error(error.message);
        answer.append(choices?.[0]?.delta?.content ?? '');
        reason = choices?.[0]?.finish_reason ?? reason;
        const rate = usage && (usage.completion_tokens * 1000) / (performance.now() - began);
        if (usage) note.textContent = `finished: ${reason} · ${usage.completion_tokens} tokens · ${rate.toFixed(1)} tokens/s`;
      }
    }
  }

  card(...texts) {
    const card = this.querySelector('#card').content.cloneNode(true).firstElementChild;
    texts.forEach((text, at) => { card.children[at].textContent = text; });
    this.querySelector('#answers').append(card);
    return [...card.children].slice(2);
  }

  copies(body) {
    const json = JSON.stringify(body);
    const forms = { curl: json.replaceAll("'", "'\\''"), sdk: JSON.stringify(json) };
    for (const [name, text] of Object.entries(forms)) {
      const place = this.querySelector(`#as-${name}`);
      place.textContent = place.dataset.form.replace('HOST', location.origin).replace('BODY', () => text);
    }
    this.querySelector('#copies').hidden = false;
  }
}

customElements.define('chat-pane', ChatPane);
