// <token-preview src="/ui/datasets/ID/preview?base_model=NAME"> shows a row of a data set as tokens.
//
// The server writes the row; this loads it in place, and follows its links to other rows in place.
// Without a script the links inside lead to the page of the preview.

class TokenPreview extends HTMLElement {
  connectedCallback() {
    this.addEventListener('click', (event) => {
      const link = event.target.closest('a[data-row]');
      if (!link || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      this.load(link.href);
    });
    this.load(this.getAttribute('src'));
  }

  async load(url) {
    try {
      const answer = await fetch(url, { headers: { 'hx-request': 'true' } });
      this.innerHTML = await answer.text();
    } catch {
      this.textContent = 'No connection to the server: no preview.';
    }
  }
}

customElements.define('token-preview', TokenPreview);
